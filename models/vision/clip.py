"""CLIP's vision transformer (Radford et al. 2021; ViT of Dosovitskiy et al. 2020) from its weights alone:
importing open_clip takes longer than importing torch, and its products are slower on a CPU (docs/speed.md).
Equal to open_clip to 2e-6."""

from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import nn

from models import hub, onednn

from .tower import Tower
from .weights import local_file, reader

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# The weights in open_clip's repositories.
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PACKAGED = "efficientnet-lite0-stages"  # the tower that needs no hub: it comes with requirements.txt


class Clip(Tower):
    """A vision transformer of open_clip's `model`, whose settings are `shape`. Places are the patches after
    the last norm, before the projection. By default OpenAI's ViT-B/16. `model` has to name QuickGELU where
    the weights were trained with it: plain ViT-B-16 builds another activation and gives other features,
    silently."""

    has_text = True
    at_once = 8

    def __init__(
        self,
        device,
        name,
        path=None,
        download=True,
        model="ViT-B-16-quickgelu",
        repository="timm/vit_base_patch16_clip_224.openai",
        files=FILES,
        pixel_spec=None,
        shape=None,
        dim=512,
        dtype=torch.float32,
        public_name=None,
    ):
        self.model = model
        self.dtype = dtype
        self.shape = shape or dict(patch_size=16, width=768, layers=12, head_width=64, quick_gelu=True)
        super().__init__(
            device,
            name,
            local_file(name, path) if path else self._fetch(name, repository, files, download),
            dim=dim,
            places_dim=self.shape.get("width", 0),
            pixel_spec=pixel_spec or dict(size=224, mean=MEAN, std=STD, resize="shortest"),
            settings=model,
            public_name=public_name,
        )

    def _fetch(self, name, repository, files, download):
        try:
            return hub.fetch_file(repository, files, download)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"image tower {name}: {error}; connect once, or type --vision {PACKAGED}, or "
                f"--vision open_clip:{self.model}/FILE with a local .safetensors file"
            ) from None

    def build(self):
        return self._transformer(torch.float32)

    @cached_property
    def fast(self):
        return self._transformer(self.dtype, packed=self.device.type == "cpu").eval().to(self.device)

    def _transformer(self, dtype, packed=False):
        read, size = reader(self.path, "visual."), self.pixel_spec["size"]
        try:
            return VisionTransformer(read, size, self.dim, **self.shape, dtype=dtype, packed=packed)
        except ValueError as error:
            raise self.misfit(error) from None

    def misfit(self, error):
        return ValueError(
            f"{self.path}: not the weights of open_clip's {self.model}; no 'visual.' tensors that fit: "
            f"{str(error)[:300]} ..."
        )

    def encode_text(self, captions):
        """M captions -> (M, dim) unit rows of CLIP's own text tower, see Tower.encode_text."""
        import open_clip

        model, _ = open_clip.create_model_from_pretrained(self.model, str(self.path), device=self.device)
        model.eval()
        tokenizer = open_clip.get_tokenizer(self.model)
        rows = []
        with torch.no_grad():
            for i in range(0, len(captions), 64):
                rows.append(model.encode_text(tokenizer(captions[i : i + 64]).to(self.device)))
        return F.normalize(torch.cat(rows).float(), dim=-1)  # (M, dim)

    def explain(self, pixels, mean):
        network = self.network
        with torch.no_grad():
            first, patches = network.tokens(pixels, blocks=-1).tensor_split([1], dim=1)
        patches = network.as_map(patches)  # (1, width, h, w)
        baseline = patches.mean((2, 3), keepdim=True).expand_as(patches)
        return [patches], [baseline], partial(_last_block, network, first)


def _last_block(network, first, patches):
    first = first.expand(len(patches), -1, -1)
    tokens = torch.cat([first, patches.flatten(2).mT], dim=1)  # (B, P + 1, width)
    return F.normalize(network.pooled(network.blocks[-1](tokens)), dim=-1)


def shapes_of(size, dim, patch_size, width, layers, mlp):
    """{name: shape} of the tensors of an image tower."""
    shapes = {
        "conv1.weight": (width, 3, patch_size, patch_size),
        "positional_embedding": ((size // patch_size) ** 2 + 1, width),  # one place is the class token's
        "class_embedding": (width,),
        "proj": (width, dim),
    }
    shapes |= {f"ln_{at}.{kind}": (width,) for at in ("pre", "post") for kind in ("weight", "bias")}
    products = {
        "attn.in_proj_": (3 * width, width),
        "attn.out_proj.": (width, width),
        "mlp.c_fc.": (mlp, width),
        "mlp.c_proj.": (width, mlp),
        "ln_1.": (width,),
        "ln_2.": (width,),
    }
    for i in range(layers):
        for name, shape in products.items():
            shapes[f"transformer.resblocks.{i}.{name}weight"] = shape
            shapes[f"transformer.resblocks.{i}.{name}bias"] = shape[:1]
    return shapes


class VisionTransformer(nn.Module):
    """(B, 3, S, S) -> (B, dim), both of `dtype` (float32 or bfloat16).

    `read(prefix)` returns the tensors of the image tower whose names start with it. They are taken over block
    by block, so that a mapped file is never in memory twice. `packed` puts the weights in the order of
    oneDNN's kernels; then they cannot be saved. ValueError when the tensors are of another network."""

    def __init__(
        self,
        read,
        size,
        dim,
        patch_size,
        width,
        layers,
        head_width,
        mlp_ratio=4.0,
        quick_gelu=True,
        dtype=torch.float32,
        packed=False,
    ):
        super().__init__()
        weights = read("")
        _check(weights, shapes_of(size, dim, patch_size, width, layers, int(width * mlp_ratio)))
        # Copies: a view would keep the file's pages in memory.
        self.patches = nn.Parameter(weights["conv1.weight"].to(dtype, copy=True))
        self.positions = nn.Parameter(weights["positional_embedding"].to(dtype, copy=True))
        self.first = nn.Parameter(weights["class_embedding"].to(dtype, copy=True))
        self.projection = nn.Parameter(weights["proj"].to(dtype, copy=True))
        del weights
        self.norm_before = _norm(read("ln_pre."), dtype)
        self.norm_after = _norm(read("ln_post."), dtype)
        self.side = size // patch_size
        rows = 8 * (self.side**2 + 1) if packed else 0
        self.blocks = nn.ModuleList(
            Block(
                partial(_below, read, f"transformer.resblocks.{i}."),
                width // head_width,
                quick_gelu,
                dtype,
                rows,
            )
            for i in range(layers)
        )

    def forward(self, x):
        return self.pooled(self.tokens(x))

    def with_places(self, x):
        """((B, dim), (B, width, h, w)): features, and the patches after the last norm."""
        x = self.tokens(x)
        return self.pooled(x), self.as_map(self.norm_after(x[:, 1:]))

    def tokens(self, x, blocks=None):
        """(B, P + 1, width): class token and patches after the first `blocks` blocks, all of them by
        default."""
        x = F.conv2d(x, self.patches, stride=self.patches.shape[2:]).flatten(2).mT  # (B, P, width)
        x = torch.cat([self.first.expand(x.shape[0], 1, -1), x], dim=1) + self.positions
        x = self.norm_before(x)
        for block in self.blocks[:blocks]:
            x = block(x)
        return x

    def pooled(self, tokens):
        return self.norm_after(tokens[:, 0]) @ self.projection  # (B, dim)

    def as_map(self, patches):
        return patches.mT.unflatten(2, (self.side, self.side))  # (B, width, h, w)


class Block(nn.Module):
    """Attention and MLP of a residual block. What is constant goes into the weights: the scale of the
    queries, and the 1.702 of QuickGELU, x sigmoid(1.702 x) = swish(1.702 x) / 1.702, so that oneDNN's fused
    swish can do it."""

    def __init__(self, read, heads, quick_gelu, dtype, rows):
        super().__init__()
        self.heads = heads
        self.norm_1 = _norm(read("ln_1."), dtype)
        self.norm_2 = _norm(read("ln_2."), dtype)
        qkv = _floats(read("attn.in_proj_"))
        for tensor in qkv.values():
            width = len(tensor) // 3
            tensor[:width] *= (width // heads) ** -0.5
        self.qkv = onednn.Linear(**qkv, rows=rows, dtype=dtype)
        self.out = onednn.Linear(**_floats(read("attn.out_proj.")), rows=rows, dtype=dtype)
        up, down = _floats(read("mlp.c_fc.")), _floats(read("mlp.c_proj."))
        self.activation = "swish" if quick_gelu else "gelu"
        if quick_gelu:
            up["weight"] *= 1.702
            up["bias"] *= 1.702
            down["weight"] /= 1.702
        self.up = onednn.Linear(**up, rows=rows, dtype=dtype)
        self.down = onednn.Linear(**down, rows=rows, dtype=dtype)

    def forward(self, x):
        """(B, T, D) -> (B, T, D)."""
        b, t, d = x.shape
        q, k, v = (
            self.qkv(self.norm_1(x))
            .view(b, t, 3, self.heads, -1)
            .permute(2, 0, 3, 1, 4)
            .reshape(3, b * self.heads, t, -1)
        )
        # Softmax between two products: torch's fused attention takes twice as long in bfloat16 on a CPU.
        y = torch.bmm(_softmax(torch.bmm(q, k.transpose(1, 2))), v)  # (B * H, P, d / H)
        y = y.view(b, self.heads, t, -1).transpose(1, 2).reshape(b, t, d)
        x = self.out.add(y, x)
        return self.down.add(self.up(self.norm_2(x), self.activation), x)


def _softmax(x):
    """Over the last dimension, in place where no gradient is wanted and nothing records the operations."""
    plain = x.requires_grad or torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.softmax(-1) if plain else torch.softmax(x, -1, out=x)


def _below(read, prefix, name):
    return read(prefix + name)


def _floats(weights):
    """float32 copies of mapped tensors."""
    return {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}


def _norm(weights, dtype):
    norm = nn.LayerNorm(len(weights["weight"]), device="meta")
    norm.weight = nn.Parameter(weights["weight"].to(dtype, copy=True))
    norm.bias = nn.Parameter(weights["bias"].to(dtype, copy=True))
    return norm


def _check(weights, expected):
    """ValueError naming the first tensor that is missing, of another shape, not of floats, or not part of the
    network."""
    for name in sorted(weights.keys() | expected.keys()):
        tensor = weights.get(name)
        floats = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        found = tuple(tensor.shape) if floats else "not a tensor of floats" if name in weights else "missing"
        if found != expected.get(name):
            raise ValueError(f"{name} is {found}, not {expected.get(name, 'part of it')}")
