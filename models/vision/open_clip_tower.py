"""Any image tower of open_clip: `open_clip:MODEL/PRETRAINED`, where PRETRAINED is one of its tags or a local
file."""

from functools import cached_property, partial
from pathlib import Path

import torch

from . import clip
from .clip import Clip
from .tower import Tower
from .weights import read_weights

# The settings that clip.VisionTransformer takes; `mlp_ratio` has a default.
PLAIN = {"layers", "width", "patch_size", "head_width", "mlp_ratio"}


class OpenClip(Clip):
    """An architecture that clip.py has not: open_clip's own module, without places."""

    at_once = None

    def __init__(self, *args, **options):
        super().__init__(*args, **options, shape={"width": 0})

    @cached_property
    def fast(self):
        return self.network

    def build(self):
        import open_clip
        from open_clip.model import _build_vision_tower

        config = open_clip.get_model_config(self.model)
        # CoCa would return its tokens beside the features.
        vision = config["vision_cfg"] | dict(output_tokens=False)
        build = partial(_build_vision_tower, config["embed_dim"], vision, config.get("quick_gelu", False))
        weights = read_weights(self.path, "visual.")
        with torch.device("meta"):  # no random weights that are then thrown away
            network = build()
        try:
            network.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise self.misfit(error) from None
        if any(buffer.is_meta for buffer in network.buffers()):
            # No file holds some buffers, such as EVA-02's rotary tables: building computes them.
            network = build()
            network.load_state_dict(weights, assign=True)
        return network.float()

    def explain(self, pixels, mean):
        return Tower.explain(self, pixels, mean)  # Clip's needs the blocks of clip.VisionTransformer


def open_clip_tower(device, name, path=None, download=True):
    """The tower of a name after --vision. ValueError for a model open_clip does not have or whose
    preprocessing is not known."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    model, _, pretrained = name.removeprefix("open_clip:").partition("/")
    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"image tower {name}: open_clip has no model {model!r}; see open_clip.list_models()")
    tags = list_pretrained_tags_by_model(model)
    tag = pretrained if get_pretrained_cfg(model, pretrained) else None
    if not (tag or path or pretrained):
        raise FileNotFoundError(
            f"image tower {name}: no weights named; add /PRETRAINED, one of {tags} or a local file"
        )
    # A local file is preprocessed as the weights of the model's first tag are.
    seen = get_pretrained_cfg(model, tag or tags[0]) if tag or tags else {}
    _check_preprocessing(name, seen)
    if tag and seen.get("quick_gelu") and not config.get("quick_gelu"):
        raise ValueError(
            f"image tower {name}: trained with QuickGELU; type open_clip:{model}-quickgelu/{pretrained}"
        )
    vision = config["vision_cfg"]
    options = dict(
        model=model,
        dim=config["embed_dim"],
        public_name=None if tag else f"open_clip:{model}",
        pixel_spec=dict(
            size=vision.get("image_size", 224),
            mean=tuple(seen.get("mean", clip.MEAN)),
            std=tuple(seen.get("std", clip.STD)),
            resize=seen.get("resize_mode", "shortest"),
        ),
    )
    if tag is None:
        path = _local(name, path or pretrained)
    elif path is None:
        options |= _repository(name, seen)
    shape = {"head_width": 64} | {key: value for key, value in vision.items() if key != "image_size"}
    if shape.keys() | {"mlp_ratio"} == PLAIN and isinstance(shape["layers"], int):
        shape["quick_gelu"] = config.get("quick_gelu", False)
        return Clip(device, name, path, download, shape=shape, **options)
    return OpenClip(device, name, path, download, **options)


def _local(name, path):
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"image tower {name}: {path}: no such file, and not a pretrained tag of open_clip"
        )
    return Path(path)


def _check_preprocessing(name, seen):
    interpolation = seen.get("interpolation", "bicubic")
    resize = seen.get("resize_mode", "shortest")
    if interpolation != "bicubic" or resize not in ("shortest", "squash"):
        raise ValueError(f"image tower {name}: its preprocessing ({seen}) is not one of those written here")


def _repository(name, seen):
    owner, _, rest = seen.get("hf_hub", "").partition("/")
    repository, _, file = rest.partition("/")
    if not repository:
        raise ValueError(
            f"image tower {name}: not on the Hugging Face hub; download its weights and name the file"
        )
    return dict(repository=f"{owner}/{repository}", files=(file,) if file else clip.FILES)
