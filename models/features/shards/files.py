"""Feature shards as files: written whole or not at all, checked when they are read."""

import hashlib
import json
import os
import time
from glob import escape

from safetensors import SafetensorError, safe_open

FORMAT = "vl-jepa features 1"
STALE = 3600  # seconds: writing a shard takes a few, so an older temporary file is that of a dead process


def write(path, content):
    """The whole file or none: a temporary file beside it takes its name once it is on the disk."""
    for old in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        if time.time() - old.stat().st_mtime > STALE:
            old.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path, towers=None):
    """(metadata, tensors) of a feature shard that was made with these towers. The tensors are mapped, not read."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
        if metadata.get("format") != FORMAT:
            raise damaged(path, f"format {metadata.get('format')}, not {FORMAT}")
        image, text, image_of = (tensors[key] for key in ("image", "text", "image_of"))
        metadata["digest"] = " ".join(
            metadata[key] for key in ("tar_sha256", "vision", "vision_key", "text", "text_key")
        )
        if (
            len(names_of(tensors)) != len(image)
            or len(text) != len(image_of)
            or not set(image_of.tolist()) <= set(range(len(image)))
        ):
            raise damaged(path, "its parts don't fit each other")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such feature shard; let every rank encode its tars first"
        ) from None
    except (SafetensorError, OSError, LookupError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise damaged(path, error) from None
    for kind in ("vision", "text") if towers else ():
        if metadata[f"{kind}_key"] != towers[f"{kind}_key"]:
            raise ValueError(
                f"{path}: made with the {kind} tower {metadata[kind]} (key {metadata[f'{kind}_key']}), not with "
                f"{towers[kind]} (key {towers[f'{kind}_key']}); name another folder of features"
            )
    return metadata, tensors


def names_of(tensors):
    """The member name of each image of a feature shard."""
    return json.loads(bytes(tensors["names"].numpy()))


def damaged(path, why):
    """The error that names a feature shard and what is wrong with it."""
    return ValueError(f"{path}: damaged, or no feature shard ({why}); delete it and encode again")


def is_made_from(path, tar, towers):
    """True for a feature shard of these towers and this tar (a copied or touched one too), or of a tar that is gone; else ValueError."""
    metadata, _ = read(path, towers)
    if (
        tar.exists()
        and any(metadata.get(key) != value for key, value in stamp(tar).items())
        and metadata["tar_sha256"] != sha256(tar)
    ):
        raise ValueError(
            f"{path}: {tar} is another tar than it was made from (SHA-256 {metadata['tar_sha256']}); delete it to encode "
            "the tar again, or name another folder of features"
        )
    return True


def stamp(tar):
    """Size and time of a tar, which a feature shard keeps: as long as they stay, the tar is not hashed again."""
    stat = tar.stat()
    return dict(tar_size=str(stat.st_size), tar_mtime_ns=str(stat.st_mtime_ns))


def sha256(path):
    """Hex digest of a file of any size."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
