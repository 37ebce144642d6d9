"""Feature shards as files: written whole or not at all, checked when they are read."""

import json

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.files import replacing, sha256, unpacked

from .tars import Tally

FORMAT = "vl-jepa features 3"
NOT_JSON = (UnicodeDecodeError, json.JSONDecodeError)
DIGESTED = ("tar_sha256", "vision", "vision_key", "text", "text_key")


def write(path, tensors, tally, metadata):
    """Write a feature shard: tensors image (N, Dv) and text (M, Dt) float16, image_of (M,) int64, names (N)
    and captions (M) as `packed`, the Tally of its tar, and metadata {str: str}."""
    with replacing(path) as new:
        save_file(tensors, new, dict(format=FORMAT, tally=json.dumps(vars(tally)), **metadata))


def read(path, towers=None):
    """(metadata, tensors, Tally) of a feature shard. The tensors are mapped, not read. ValueError when it is
    damaged, or was made with other towers than `towers` (a dict with vision, vision_key, text, text_key);
    FileNotFoundError when it is not there."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        if metadata.get("format") != FORMAT:
            raise damaged(path, f"format {metadata.get('format')}, not {FORMAT}")
        tally = Tally(**json.loads(metadata["tally"]))
        metadata["digest"] = " ".join(metadata[key] for key in DIGESTED)
        image, text, image_of = (tensors[key] for key in ("image", "text", "image_of"))
        counts = (len(unpacked(tensors["names"])), len(text), len(unpacked(tensors["captions"])))
        if counts != (len(image), len(image_of), len(image_of)) or not _are_indices(image_of, len(image)):
            raise damaged(path, "its parts do not fit each other")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such feature shard; let every rank encode its tars first"
        ) from None
    except (SafetensorError, OSError, LookupError, TypeError, *NOT_JSON) as error:
        raise damaged(path, error) from None
    for kind in ("vision", "text") if towers else ():
        found, asked = ((made[kind], made[f"{kind}_key"]) for made in (metadata, towers))
        if found[1] != asked[1]:
            raise ValueError(
                f"{path}: made with the {kind} tower {found[0]} (key {found[1]}), not with {asked[0]} "
                f"(key {asked[1]}); name another folder of features"
            )
    return metadata, tensors, tally


def _are_indices(values, count):
    return not len(values) or (0 <= int(values.min()) and int(values.max()) < count)


def damaged(path, why):
    """The ValueError for a feature shard that cannot be used."""
    return ValueError(f"{path}: damaged, or no feature shard ({why}); delete it and encode again")


def is_up_to_date(path, tar, towers):
    """Whether `path` is a feature shard of these towers and this tar (copied or touched, too), or of a tar
    that is gone. False when there is none; ValueError when it is one of other towers or of another tar."""
    if not path.exists():
        return False
    metadata, *_ = read(path, towers)
    if tar.exists() and any(metadata.get(key) != value for key, value in size_and_time(tar).items()):
        if metadata["tar_sha256"] != sha256(tar):
            raise ValueError(
                f"{path}: {tar} is not the tar it was made from (SHA-256 {metadata['tar_sha256']}); "
                "delete it to encode the tar again, or name another folder of features"
            )
    return True


def size_and_time(tar):
    """The size and time of a tar as metadata. As long as both stay, the tar is not hashed again."""
    stat = tar.stat()
    return dict(tar_size=str(stat.st_size), tar_mtime_ns=str(stat.st_mtime_ns))
