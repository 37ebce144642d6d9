"""Reading a tar of images and captions, member by member. It is a stranger's file: nothing is unpacked or executed, and what can't be
used is counted.

The webdataset package would read members of any size, and hand an address that begins with pipe: to a shell.
"""

import json
import os
import re
import tarfile
from glob import glob
from itertools import groupby
from operator import itemgetter
from pathlib import Path

MEMBER = re.compile(
    r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL
)  # (key, ending) as WebDataset has them: a key ends at the first dot
KINDS = dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image") | dict(
    txt="txt", json="json"
)  # no other member is read
LIMITS = dict(image=64 << 20, txt=1 << 20, json=1 << 20)  # bytes of a member
DAMAGED = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)  # of headers, mutated


def expand(pattern):
    """{name: path} of the tars of a pattern, in order."""
    from braceexpand import braceexpand

    tars = {}
    for text in braceexpand(pattern, escape=False):
        for path in map(Path, sorted(glob(text)) if "*" in text else [text]):
            if path.stem in tars:
                raise ValueError(
                    f"{tars[path.stem]} and {path}: both would become {path.stem}.safetensors; give each its own folder"
                )
            tars[path.stem] = path
    if not tars:
        raise ValueError(f"{pattern}: no such tars")
    return tars


def members_of(tar, skipped):
    """(key, kind, name, content) of each member that is read, in order; the content of one over its limit is None."""
    with open(tar, "rb") as file, tarfile.open(fileobj=file, mode="r:") as members:
        try:
            while member := members.next():
                if not member.offset < members.offset <= os.fstat(file.fileno()).st_size:
                    raise tarfile.ReadError(
                        "an impossible size"
                    )  # CVE-2025-8194: older Pythons read such a member for ever
                members.members.clear()  # tarfile would keep every header it has read
                name = (
                    member.name.encode(errors="surrogateescape")
                    .decode(errors="backslashreplace")
                    .removeprefix("./")
                )
                key, ending = match.groups() if (match := MEMBER.fullmatch(name)) else (name, "")
                if (kind := KINDS.get(ending.lower())) and member.isreg():
                    yield (
                        key,
                        kind,
                        name,
                        members.extractfile(member).read() if member.size <= LIMITS[kind] else None,
                    )
            file.seek(members.offset)
            if file.read(512) != bytes(512):
                raise tarfile.ReadError("no end mark")  # tarfile takes a damaged header, or none, for the end
        except DAMAGED:
            skipped["rest of the tar, cut short or damaged"] += 1


def samples(tar, skipped):
    """(name, content, captions) of each image: neighbouring members with one key make a sample, of one image (its last)."""
    for _, members in groupby(members_of(tar, skipped), itemgetter(0)):
        sample = {kind: (name, content) for _, kind, name, content in members}
        try:
            captions = captions_of({kind: content for kind, (_, content) in sample.items()})
        except ValueError as error:
            skipped[str(error)] += 1
        else:
            yield *sample["image"], captions


def captions_of(sample):
    """The captions of a sample {kind: content}; ValueError says why it can't be used."""
    if "image" not in sample:
        raise ValueError("without an image")
    if None in (sample["image"], sample.get("txt", sample.get("json", b""))):
        raise ValueError("over the limit of 64 MiB an image, 1 MiB a text")
    try:
        captions = (
            [sample["txt"].decode("utf-8-sig")]
            if "txt" in sample
            else json.loads(sample.get("json", "{}"))["captions"]
        )
        captions = (
            [caption.strip() for caption in captions if caption.strip()] if isinstance(captions, list) else []
        )
        "".join(captions).encode()  # JSON can spell half a character, which no tokenizer takes
    except UnicodeError:
        raise ValueError("with a caption that is not UTF-8") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ValueError('without .txt or .json with "captions"') from None
    if not captions:
        raise ValueError("with an empty caption")
    return captions
