"""Feature shards as files: written whole or not at all, checked when they are read."""

import json

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.files import replacing, sha256, unpacked

from .tars import Tally

FORMAT = "vl-jepa features 3"
NOT_JSON = (UnicodeDecodeError, json.JSONDecodeError)
WITH, WITHOUT = "with", "without"  # questions
DIGESTED = ("tar_sha256", "vision", "vision_key", "text", "text_key", "questions")


def write(path, tensors, tally, metadata):
    """Write a feature shard: tensors image (N, Dv) and text (M, Dt) float16, image_of (M,) int64, names (N)
    and captions (M) as `packed`, the Tally of its tar, and metadata {str: str}.

    With questions also the images that they are about, asked_about (Q,) int64, the questions as `packed`
    [question, answer, type], and the places of each tower, places-0, places-1, ... (N, P, Dp) float16."""
    with replacing(path) as new:
        save_file(tensors, new, dict(format=FORMAT, tally=json.dumps(vars(tally)), **metadata))


def read(path, towers=None):
    """(metadata, tensors, Tally) of a feature shard. The tensors are mapped, not read. ValueError when it is
    damaged, or was made otherwise than `towers` (a dict with vision, vision_key, text, text_key, questions,
    frames);
    FileNotFoundError when it is not there."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = dict(frames="8") | metadata  # older ones hold no videos
        if metadata.get("format") != FORMAT:
            raise damaged(path, f"format {metadata.get('format')}, not {FORMAT}")
        tally = Tally(**json.loads(metadata["tally"]))
        metadata["digest"] = " ".join(metadata[key] for key in DIGESTED)
        if not _fit(tensors, metadata["questions"] == WITH):
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
    if towers and metadata["questions"] != towers["questions"]:
        made = f"made {metadata['questions']} questions, which --recipe answer reads"
        raise ValueError(
            f"{path}: {made}; this run is {towers['questions']}: name another folder of features"
        )
    if towers and metadata["frames"] != towers["frames"]:
        made = f"made with --frames {metadata['frames']}, not {towers['frames']}"
        raise ValueError(f"{path}: {made}; name another folder of features")
    return metadata, tensors, tally


def _fit(tensors, questions):
    """Whether the tensors of a feature shard fit each other."""
    image, image_of = tensors["image"], tensors["image_of"]
    counted = [
        (image, unpacked(tensors["names"])),
        (image_of, tensors["text"], unpacked(tensors["captions"])),
    ]
    numbers = [image_of]
    if questions:
        asked_about = tensors["asked_about"]
        counted += [(image, *places_of(tensors)), (asked_about, unpacked(tensors["questions"]))]
        numbers.append(asked_about)
    fits = all(len(part) == len(parts[0]) for parts in counted for part in parts)
    return fits and all(_are_indices(found, len(image)) for found in numbers)


def places_of(tensors):
    """The places of each tower in a feature shard, a list of (N, P, Dp) float16."""
    return [tensors[key] for key in sorted(tensors) if key.startswith("places-")]


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
