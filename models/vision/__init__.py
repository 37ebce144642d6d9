"""Frozen image towers: pixels in, unit rows out.

    vision = VisionEncoder("cpu")                                   # CLIP ViT-B/16
    features = vision.encode(vision.preprocess(image)[None])        # (1, 512) float32, norm 1

tower.py has the contract that all towers fulfil; docs/towers.md lists the names and says how to add a family.
"""

import re
from functools import partial

import torch

from models import hub

from .clip import FILES, PACKAGED, Clip
from .efficientnet import LITE0, LITE2, EfficientNetTower
from .hf_tower import HuggingFaceTower
from .joined import Joined
from .open_clip_tower import open_clip_tower
from .timm_tower import TimmTower
from .tower import Tower

__all__ = ["FAMILIES", "PACKAGED", "VISION_ENCODERS", "Tower", "VisionEncoder", "choose"]

# Towers with a name of their own, and families whose names go on after a colon. Both map to a function
# (device, name, path=None, download=True) -> Tower. Adding a family is one class and one row here.
VISION_ENCODERS = {
    "clip-vit-b-16": Clip,
    "clip-vit-b-16-bf16": partial(Clip, dtype=torch.bfloat16),
    "efficientnet-lite0": EfficientNetTower,
    "efficientnet-lite2": partial(EfficientNetTower, model=LITE2),
    "efficientnet-lite0-stages": partial(EfficientNetTower, stages=True),
    "efficientnet-lite2-stages": partial(EfficientNetTower, model=LITE2, stages=True),
    "efficientnet-lite0-stages-320": partial(EfficientNetTower, model=LITE0 | dict(size=320), stages=True),
    "efficientnet-lite2-stages-448": partial(EfficientNetTower, model=LITE2 | dict(size=448), stages=True),
    "efficientnet-lite0-layout": partial(EfficientNetTower, layout=True),
    "efficientnet-lite2-layout": partial(EfficientNetTower, model=LITE2, layout=True),
}
FAMILIES = {
    "open_clip": open_clip_tower,
    "timm": TimmTower,
    "hf": HuggingFaceTower,
}


def VisionEncoder(device="cpu", name="clip-vit-b-16", path=None, download=True):
    """The frozen image tower of that name, on `device`: a `Tower`.

    `name` is a key of VISION_ENCODERS, `open_clip:MODEL/PRETRAINED`, `timm:NAME`, `timm:NAME@FILE`,
    `hf:NAME`, or several of these joined with `+`. `path` is a local weights file (hf: a folder) to take in
    place of the one that the name implies. With `download=False` nothing is fetched. Finds and hashes the
    weights; the network is built on first use.

    Raises ValueError for an unknown name and for other weights than the name promises, and FileNotFoundError
    for weights that are not on this machine and cannot be fetched."""
    names = _split_names(name)
    if len(names) == 1:
        return _single(device, name, path, download)
    paths = _paths(name, names, path)
    parts = [_single(device, part, file, download) for part, file in zip(names, paths)]
    return Joined(device, name, parts)


def _split_names(name):
    """The names that are joined in `name`, a list. A + joins only where another tower's name follows it,
    since the path of a file may hold a + too."""
    families = [f"{family}:" for family in FAMILIES]
    towers = [rf"{re.escape(tower)}(?=\+|$)" for tower in VISION_ENCODERS]
    return re.split(rf"\+(?={'|'.join(families + towers)})", name)


def _single(device, name, path, download):
    make = VISION_ENCODERS.get(name) or (FAMILIES.get(name.partition(":")[0]) if ":" in name else None)
    if make is None:
        raise ValueError(
            f"no image tower {name!r}; take {', '.join(VISION_ENCODERS)}, open_clip:MODEL/PRETRAINED, "
            "timm:NAME, hf:NAME, or several joined by +"
        )
    return make(device, name, path, download)


def _paths(name, names, path):
    """A path for each of the joined names: `path` belongs to the only one that is not packaged."""
    takes_path = [not n.startswith("efficientnet-") for n in names]
    if path and sum(takes_path) != 1:
        raise ValueError(
            f"image tower {name}: {sum(takes_path)} of its towers can take the path {path}; it has to be one"
        )
    return [path if takes else None for takes in takes_path]


def choose(name="auto"):
    """(tower name, why) for --vision. 'auto' is CLIP when its weights are cached or the hub answers within 3
    seconds, else the packaged tower. Any other name is returned as it is."""
    if name != "auto":
        return name, "as asked"
    if hub.cached_file("timm/vit_base_patch16_clip_224.openai", FILES):
        return "clip-vit-b-16", "CLIP's weights are in the Hugging Face cache"
    if hub.answers():
        return "clip-vit-b-16", "CLIP's weights can be fetched from the Hugging Face hub"
    why = "CLIP's weights are not cached and the Hugging Face hub does not answer"
    return PACKAGED, f"{why}, so the packaged tower is used instead"
