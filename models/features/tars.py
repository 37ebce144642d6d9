"""Read a tar of images and captions, member by member. It may be a stranger's file: nothing is unpacked or
executed, and what cannot be used is counted.

The webdataset package is not used: it reads members of any size, and passes an address that begins with pipe:
to a shell."""

import json
import os
import re
import tarfile
from glob import glob
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

# (key, ending) as WebDataset has them: a key ends at the first dot of the file name.
MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
# What each file ending holds. No other member is read.
KINDS = dict(jpg="image", jpeg="image", png="image", webp="image", txt="txt", json="json")
LIMITS = dict(image=64 << 20, txt=1 << 20, json=1 << 20)  # bytes of a member
TOO_LARGE = "over the limit of 64 MiB per image, 1 MiB per text"
# What tarfile raises for damaged headers.
DAMAGED = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)


class Member(NamedTuple):
    key: str
    kind: str  # a value of KINDS
    name: str
    content: bytes | None  # None: over its limit


class Sample(NamedTuple):
    name: str  # of the image's member
    content: bytes
    captions: list


def expand(pattern):
    """{name: path} of the tars of a pattern, in order. ValueError for none, and for two that have one
    name."""
    from braceexpand import braceexpand

    tars = {}
    for text in braceexpand(pattern, escape=False):
        for path in map(Path, sorted(glob(text)) if "*" in text else [text]):
            if path.stem in tars:
                pair = f"{tars[path.stem]} and {path}"
                raise ValueError(
                    f"{pair}: both give {path.stem}.safetensors; encode each into a folder of its own"
                )
            tars[path.stem] = path
    if not tars:
        raise ValueError(f"{pattern}: no such tars")
    return tars


def members_of(tar, left_out):
    """Yield a Member for each member that is read, in order. A tar that is cut short or damaged ends early
    and is counted."""
    with open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r:") as members:
        try:
            while member := members.next():
                if not member.offset < members.offset <= os.fstat(file.fileno()).st_size:
                    # CVE-2025-8194: older Pythons read such a member for ever.
                    raise tarfile.ReadError("an impossible size")
                members.members.clear()  # tarfile keeps every header it has read
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                name = name.removeprefix("./")
                match = MEMBER.fullmatch(name)
                key, ending = match.groups() if match else (name, "")
                kind = KINDS.get(ending.lower())
                if kind and member.isreg():
                    small = member.size <= LIMITS[kind]
                    yield Member(key, kind, name, members.extractfile(member).read() if small else None)
            file.seek(members.offset)
            if file.read(512) != bytes(512):  # tarfile takes a damaged header, or none, for the end
                raise tarfile.ReadError("no end mark")
        except DAMAGED:
            left_out["rest of the tar, cut short or damaged"] += 1


def samples(tar, left_out):
    """Yield a Sample for each image: neighbouring members with one key, of which one is an image (the last
    counts)."""
    for _, members in groupby(members_of(tar, left_out), attrgetter("key")):
        by_kind = {member.kind: member for member in members}
        try:
            captions = captions_of({kind: member.content for kind, member in by_kind.items()})
        except ValueError as error:
            left_out[str(error)] += 1
        else:
            yield Sample(by_kind["image"].name, by_kind["image"].content, captions)


def captions_of(sample):
    """The captions of a sample {kind: content}. ValueError says why it cannot be used."""
    if "image" not in sample:
        raise ValueError("without an image")
    if None in (sample["image"], sample.get("txt", sample.get("json", b""))):
        raise ValueError(TOO_LARGE)
    try:
        if "txt" in sample:
            captions = [sample["txt"].decode("utf-8-sig")]
        else:
            captions = json.loads(sample.get("json", "{}"))["captions"]
        captions = captions if isinstance(captions, list) else []
        captions = [caption.strip() for caption in captions if caption.strip()]
        "".join(captions).encode()  # JSON can spell half a character, which no tokenizer accepts
    except UnicodeError:
        raise ValueError("with a caption that is not UTF-8") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError('without .txt or .json with "captions"') from None
    if not captions:
        raise ValueError("with an empty caption")
    return captions
