"""Image models of `transformers`: `hf:NAME`, a local folder or a repository of the Hugging Face hub."""

import hashlib
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from models import hub
from models.files import sha256

from .tower import Tower

CONFIG = "config.json"
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")  # images have the second alone
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # the numbers in preprocessor_config.json are Pillow's


def first_token(output):
    return output.last_hidden_state[:, 0]


def mean_token(output):
    return output.last_hidden_state.mean(1)


def pooler(output):
    return output.pooler_output.flatten(1)


def projected(output):
    return output.image_embeds


class Family(NamedTuple):
    """How an architecture of transformers is pooled to features (B, dim)."""

    pool: object
    prefix: int = 0  # tokens before the patches, without registers
    loader: str = "AutoModel"
    options: dict = {}
    is_video: bool = False  # it takes clips (B, F, 3, S, S)


# By `model_type` in config.json. A pooler only where it is trained or has no weights: `AutoModel` would give
# ViT and DeiT one with random weights. V-JEPA 2 has no class token, and its attentive pooler is trained with
# a classifier: the mean of the tokens over space and time is what its encoder gives. Adding an architecture
# is one row.
FAMILIES = {
    "clip": Family(projected, 1, "CLIPVisionModelWithProjection"),
    "clip_vision_model": Family(pooler, 1, "CLIPVisionModel"),
    "convnext": Family(pooler),
    "convnextv2": Family(pooler),
    "deit": Family(first_token, 2, options=dict(add_pooling_layer=False)),
    "dinov2": Family(first_token, 1),
    "dinov2_with_registers": Family(first_token, 1),
    "dinov3_vit": Family(first_token, 1),
    "ijepa": Family(mean_token, 0, options=dict(add_pooling_layer=False)),
    "regnet": Family(pooler),
    "resnet": Family(pooler),
    "siglip": Family(pooler, 0, "SiglipVisionModel"),
    "siglip_vision_model": Family(pooler, 0, "SiglipVisionModel"),
    "swin": Family(pooler),
    "swinv2": Family(pooler),
    "vjepa2": Family(mean_token, is_video=True),
    "vit": Family(first_token, 1, options=dict(add_pooling_layer=False)),
    "vit_msn": Family(first_token, 1),
}


class HuggingFaceTower(Tower):
    """Places are the patches of the last layer, or the last feature map of a CNN. `.sha256` is that of the
    weights; `.key` adds both configurations."""

    def __init__(self, device, name, path=None, download=True):
        self.source = name.removeprefix("hf:")
        path = _folder(name, path or self.source, download)
        configs = [_first(name, path, [CONFIG])]
        self.family = _family(name, configs[0])
        configs.append(_first(name, path, PROCESSORS if self.family.is_video else PROCESSORS[1:]))
        files, self.safetensors = _weights(name, path)
        spec = pixel_spec(name, path, self.family.is_video)
        network = self._network(path, spec["size"])
        digests = [sha256(file) for file in files]
        whole = digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        super().__init__(
            device,
            name,
            path,
            dim=network[0].shape[1],
            places_dim=network[1].shape[1],
            pixel_spec=spec,
            settings=f"hf {[sha256(file) for file in configs]}",
            sha256=whole,
            public_name=f"hf:{path.resolve().name}" if Path(self.source).is_dir() else name,
        )

    def _network(self, path, size):
        """(features, places) of one image or clip of that size, without weights: on torch's meta device."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        shape = (1, 3, size, size)
        if self.family.is_video:
            self.clip_frames = config.frames_per_clip
            shape = (1, self.clip_frames, 3, size, size)
            if size != config.crop_size:  # its positions would be wrong, without an error
                raise ValueError(
                    f"{path}: its images are {size} pixels wide, and its {CONFIG} says {config.crop_size}"
                )
        loader = getattr(transformers, self.family.loader)
        with torch.device("meta"), torch.no_grad():
            if self.family.loader == "AutoModel":
                model = loader.from_config(config, **self.family.options)
            else:
                model = loader(getattr(config, "vision_config", config))
            return HuggingFaceNetwork(model.eval(), self.family).with_places(torch.empty(shape))

    def build(self):
        import transformers
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        try:
            model, found = getattr(transformers, self.family.loader).from_pretrained(
                self.path,
                local_files_only=True,
                output_loading_info=True,
                dtype=torch.float32,
                use_safetensors=self.safetensors,
                trust_remote_code=False,
                **self.family.options,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path}: cannot be loaded ({str(error)[:300]})") from None
        wrong = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
        if wrong:
            raise ValueError(
                f"{self.path}: {len(wrong)} weights are missing or of another shape, such as {wrong[0]}"
            )
        return HuggingFaceNetwork(model, self.family)


class HuggingFaceNetwork(nn.Module):
    """A transformers model and its pooling: (B, 3, S, S), or clips (B, F, 3, S, S), -> (B, dim)."""

    def __init__(self, model, family):
        super().__init__()
        self.model = model
        self.pool = family.pool
        self.prefix = family.prefix + (getattr(model.config, "num_register_tokens", None) or 0)

    def output(self, x):
        if x.ndim == 5:
            return self.model(pixel_values_videos=x, skip_predictor=True)
        return self.model(pixel_values=x)

    def forward(self, x):
        return self.pool(self.output(x))

    def with_places(self, x):
        output = self.output(x)
        last = output.last_hidden_state
        if last.ndim == 3:  # tokens, not a map
            last = last[:, self.prefix :]
            times = x.shape[1] // self.model.config.tubelet_size if x.ndim == 5 else 1
            side = math.isqrt(last.shape[1] // times)
            last = last.mT.unflatten(2, (times, side, side)).mean(2)
        return self.pool(output), last


def _folder(name, source, download):
    """The model's folder. FileNotFoundError with the way out."""
    path = Path(source)
    if not path.is_dir():
        patterns = dict(allow_patterns=["*.json", "model*.safetensors"])
        try:
            path = hub.fetch_folder(str(source), download, **patterns)
            if not any((path / file).is_file() for file in WEIGHTS):  # an older model has none in safetensors
                path = hub.fetch_folder(
                    str(source), download, allow_patterns=["*.json", "pytorch_model*.bin"]
                )
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"image tower {name}: no such folder, and {error}; connect once, or type --vision hf:FOLDER"
            ) from None
    return path


def _first(name, path, files):
    """The path of the first of these files that the folder holds. FileNotFoundError when it holds none."""
    found = next((path / file for file in files if (path / file).is_file()), None)
    if found is None:
        missing = " or ".join(files)
        raise FileNotFoundError(
            f"image tower {name}: {path} holds no {missing}, so it is not an image model's folder"
        )
    return found


def _family(name, config):
    try:
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{config}: not a model's configuration ({error})") from None
    if model_type not in FAMILIES:
        raise ValueError(
            f"image tower {name}: type {model_type!r} cannot be pooled; known are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _weights(name, path):
    """(the files of the weights, whether they are safetensors), as transformers chooses them."""
    for file in WEIGHTS:
        if not (path / file).is_file():
            continue
        files = [path / file]
        if file.endswith(".json"):
            parts = set(json.loads(files[0].read_text(encoding="utf-8"))["weight_map"].values())
            files += [path / part for part in sorted(parts)]
        return files, "safetensors" in file
    raise FileNotFoundError(f"image tower {name}: {path} holds no weights ({' or '.join(WEIGHTS)})")


def pixel_spec(name, path, is_video=False):
    """The `pixel_spec` of a folder's image or video processor. ValueError for preprocessing that pixels.py
    lacks."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    options = dict(local_files_only=True, trust_remote_code=False)
    if is_video:
        said = AutoVideoProcessor.from_pretrained(path, **options).to_dict()
    else:
        said = AutoImageProcessor.from_pretrained(path, backend="pil", **options).to_dict()
    unknown = ValueError(f"image tower {name}: its preprocessing ({said}) is not one of those written here")
    resizing = _resizing(said)
    if resizing is None:
        raise unknown
    resize, scale, kept = resizing
    if (
        not said.get("do_resize")
        or not scale
        or kept > scale
        or said.get("do_pad")
        or said.get("resample") not in INTERPOLATIONS
        or abs(said.get("rescale_factor", 0) - 1 / 255) > 1e-9
    ):
        raise unknown
    normalise = said.get("do_normalize")
    return dict(
        size=kept,
        mean=tuple(said["image_mean"]) if normalise else (0.0,) * 3,
        std=tuple(said["image_std"]) if normalise else (1.0,) * 3,
        resize=resize,
        scale=scale,
        interpolation=INTERPOLATIONS[said["resample"]],
        margin="floor",
    )


def _resizing(said):
    """(resize, scale, kept) of an image processor's settings: how it resizes, to how many pixels, and how
    many of them the centre crop keeps. None where the result is not a square."""
    size = dict(said["size"])
    crop = dict(said.get("crop_size") or {})
    edge = size.get("shortest_edge")
    if said.get("crop_pct"):  # ConvNeXT crops a share of small images and squashes large ones
        if edge >= 384:
            return "squash", edge, edge
        return "shortest", int(edge / said["crop_pct"]), edge
    is_cropped = said.get("do_center_crop")
    resize = "shortest" if edge else "squash"
    scale = edge or size.get("height")
    kept = crop.get("height") if is_cropped else scale
    is_square = is_cropped if edge else scale == size.get("width")
    if crop and kept not in (scale, crop.get("width")):
        is_square = False
    return (resize, scale, kept) if is_square else None
