"""Read a tar of images, videos and captions, member by member. The file is untrusted: nothing is
unpacked or executed, and each member is either read or left out and counted, see `Tally`.

The webdataset package is not used: it reads members of any size, and passes an address that begins with pipe:
to a shell."""

import json
import os
import re
import tarfile
from dataclasses import dataclass, field
from glob import glob
from itertools import chain, groupby, zip_longest
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from models.dataset.images import VIDEO_SUFFIXES
from models.files import level, printable

# (key, ending) as WebDataset has them: a key ends at the first dot of the file name.
MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.DOTALL)
# Endings of the formats that open_image reads.
IMAGES = """jpg jpeg jpe jfif mpo png apng webp avif avifs gif bmp tif tiff pbm pgm ppm pnm pfm
    jp2 j2k jpc jpf jpx j2c heic heics heif heifs hif""".split()
VIDEOS = ["ts", *(suffix[1:] for suffix in VIDEO_SUFFIXES)]
# What each file ending holds. No other member is read.
KINDS = dict.fromkeys(IMAGES + VIDEOS, "image") | dict(txt="txt", json="json")
LIMITS = dict(image=64 << 20, txt=1 << 20, json=1 << 20)  # bytes of a member
NAMED = 3  # members that are named for each reason
# Why members are left out.
TOO_LARGE = "over the limit of 64 MiB per image or video, 1 MiB per text"
UNDECODABLE = "with an image that cannot be decoded"
NO_IMAGE = "without an image next to it"
NO_CAPTION = 'without .txt or .json with "captions" next to it'
SECOND = "followed by another of the same key"
BESIDE = ".json beside a .txt"
NO_KEY = "whose name gives no key and ending"
DOTTED = "with a dot in the key, which WebDataset ends at the first dot"
OTHER = "of other kinds"
LINK = "links, which tar --dereference --hard-dereference packs as files"
NOT_A_FILE = "folders, pipes or devices"
QUESTIONS = "questions (--recipe answer trains on them)"
# What tarfile raises for damaged headers.
DAMAGED = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError)


class Member(NamedTuple):
    key: str
    kind: str  # a value of KINDS
    name: str
    content: bytes | None  # None: over its limit


class Sample(NamedTuple):
    name: str  # the .json's "image_name", else the name of the image's member
    content: bytes
    captions: list
    questions: list  # of (question, answer, type)
    members: list  # the names of those it was read from, the image's first


@dataclass
class Tally:
    """What became of the members of tars, seen = read + left out, and which texts in those read are not
    used."""

    seen: int = 0
    read: int = 0
    left_out: dict = field(default_factory=dict)  # {reason: [how many, the names of the first few]}
    passed_over: dict = field(default_factory=dict)  # {kind of text: how many}
    cut_short: list = field(default_factory=list)  # of each tar that ends early: after which member

    def leave_out(self, reason, *names, count=None):
        """Count members as left out: those named, or `count` of which these are the first."""
        before, first = self.left_out.get(reason, (0, []))
        named = [*first, *map(printable, names)][:NAMED]
        self.left_out[reason] = [before + (len(names) if count is None else count), named]

    def pass_over(self, kind, count):
        """Count texts that are not used."""
        if count:
            self.passed_over[kind] = self.passed_over.get(kind, 0) + count

    def add(self, other):
        """Add the counts of another Tally."""
        self.seen += other.seen
        self.read += other.read
        self.cut_short += other.cut_short
        for reason, (count, names) in other.left_out.items():
            self.leave_out(reason, *names, count=count)
        for kind, count in other.passed_over.items():
            self.pass_over(kind, count)

    def level(self):
        """The logging level of these counts."""
        return level(self.left_out | self.passed_over | dict(cut_short=self.cut_short))

    def __str__(self):
        """'from 2 of 3 members; left out 1: 1 without an image next to it (c.txt)'."""
        found = [f"from {self.read:,} of {self.seen:,} members"]
        if self.left_out:
            by_count = sorted(self.left_out.items(), key=lambda item: -item[1][0])
            reasons = [
                f"{count:,} {reason} ({', '.join(names)}{', ...' if count > len(names) else ''})"
                for reason, (count, names) in by_count
            ]
            total = sum(count for count, _ in self.left_out.values())
            found.append(f"left out {total:,}: {'; '.join(reasons)}")
        if self.passed_over:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.passed_over.items())
            found.append(f"passed over {kinds}")
        if self.cut_short:
            more = ", ..." if len(self.cut_short) > NAMED else ""
            where = f"{', '.join(self.cut_short[:NAMED])}{more}"
            found.append(f"{len(self.cut_short):,} cut short or damaged ({where})")
        return "; ".join(found)


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


def members_of(tar, tally):
    """Yield a Member for each member that is read, in order; the others are left out. A tar that is cut short
    or damaged ends early."""
    name = "its beginning"
    with open(tar, "rb") as file:
        try:
            for members, member in _files(file):
                name = member.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
                name = name.removeprefix("./")
                tally.seen += 1
                match = MEMBER.fullmatch(name)
                key, ending = match.groups() if match else (name, "")
                kind = KINDS.get(ending.lower())
                if kind and member.isreg():
                    small = member.size <= LIMITS[kind]
                    yield Member(key, kind, name, members.extractfile(member).read() if small else None)
                else:
                    tally.leave_out(_why_not_read(member, ending), name)
        except DAMAGED:
            tally.cut_short.append(f"{Path(tar).name} after {printable(name)}")


def _files(file):
    """Yield (TarFile, TarInfo) of each member of an open tar, or of several that `cat` joined."""
    size = os.fstat(file.fileno()).st_size
    start = 0
    while start is not None:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as members:
            while member := members.next():
                if not member.offset < members.offset <= size:
                    # CVE-2025-8194: older Pythons read such a member for ever.
                    raise tarfile.ReadError("an impossible size")
                members.members.clear()  # tarfile keeps every header it has read
                yield members, member
            start = _next_archive(file, members.offset)


def _next_archive(file, end):
    """Where the next tar begins after the end mark at `end`, or None."""
    file.seek(end)
    if file.read(512) != bytes(512):  # tarfile takes a damaged header, or none, for the end
        raise tarfile.ReadError("no end mark")
    while block := file.read(1 << 16):
        if content := block.lstrip(b"\0"):
            return (file.tell() - len(content)) // 512 * 512
    return None


def _why_not_read(member, ending):
    """Why a member of a tar is left out by its type or name."""
    if not member.isreg():
        return LINK if member.issym() or member.islnk() else NOT_A_FILE
    if not ending:
        return NO_KEY
    return DOTTED if ending.lower().rpartition(".")[2] in KINDS else OTHER


def samples(tar, tally, questions=False):
    """Yield a Sample for each image: neighbouring members with one key, of which one is an image (the last
    counts). What is not part of one is left out; so are questions, without `questions`."""
    for _, members in groupby(members_of(tar, tally), attrgetter("key")):
        by_kind = {}
        for member in members:
            if member.kind in by_kind:
                tally.leave_out(SECOND, by_kind[member.kind].name)
            by_kind[member.kind] = member
        record = record_of(by_kind.get("json"))
        asked, odd = questions_of(record)
        if not questions:
            tally.pass_over(QUESTIONS, len(asked))
            asked = []
        if "txt" in by_kind and "json" in by_kind and not asked:
            tally.leave_out(BESIDE, by_kind.pop("json").name)
        names = [by_kind[kind].name for kind in LIMITS if kind in by_kind]
        try:
            captions, empty = captions_of(by_kind, record, bool(asked))
        except ValueError as error:
            tally.leave_out(str(error), *names)
            continue
        tally.pass_over("questions without a text and an answer", odd)
        tally.pass_over("empty captions", empty)
        image_name = record.get("image_name") if "json" in by_kind else None
        if not isinstance(image_name, str):
            image_name = names[0]
        image_name = image_name.encode(errors="backslashreplace").decode()
        yield Sample(image_name, by_kind["image"].content, captions, asked, names)


def record_of(member):
    """The object in a .json as a dict; {} for no member, one over its limit, and one without an object."""
    try:
        record = json.loads(member.content) if member and member.content else {}
    except (ValueError, RecursionError):
        record = {}
    return record if isinstance(record, dict) else {}


def captions_of(by_kind, record, is_asked):
    """(the captions of a sample, how many more are empty). `by_kind` is {kind: Member} and `record` the
    object in its .json. A sample that `is_asked` needs no caption. ValueError says why it cannot be used."""
    if "image" not in by_kind:
        raise ValueError(NO_IMAGE)
    if any(member.content is None for member in by_kind.values()):
        raise ValueError(TOO_LARGE)
    try:
        if "txt" in by_kind:
            found = [by_kind["txt"].content.decode("utf-8-sig")]
        else:
            found = record.get("captions", []) if is_asked else record["captions"]
        found = found if isinstance(found, list) else []
        captions = [caption.strip() for caption in found if caption.strip()]
        "".join(captions).encode()  # JSON can spell half a character, which no tokenizer accepts
    except UnicodeError:
        raise ValueError("with a caption that is not UTF-8") from None
    except (LookupError, AttributeError):
        raise ValueError(NO_CAPTION) from None
    if not captions and not is_asked:
        raise ValueError("with an empty caption")
    return captions, len(found) - len(captions)


def questions_of(record):
    """([(question, answer, type), ...], how many entries are no such texts) of the object in a .json.

    {"questions": [{"question": "What is it?", "answer": "a dog", "type": "what"}, ...]}, or the same fields
    without the list around them, each of which may then be a list. The `type` may be missing, and an answer
    that is a list is several right ones."""
    entries = record.get("questions", [])
    entries = list(entries) if isinstance(entries, list) else [entries]
    if isinstance(record.get("question"), list):
        columns = [record.get(name) for name in ("question", "answer", "type")]
        columns = [column if isinstance(column, list) else [] for column in columns]
        entries += [dict(zip(("question", "answer", "type"), row)) for row in zip_longest(*columns)]
    elif "question" in record:
        entries.append(record)
    found = list(map(_pairs_of, entries))
    return list(chain.from_iterable(found)), found.count([])


def _pairs_of(entry):
    """[(question, answer, type), ...] of one question; [] for one that lacks a text."""
    try:
        answers = entry["answer"]
        texts = [entry["question"], *(answers if isinstance(answers, list) else [answers])]
        question, *answers = [text.strip() for text in texts]
        kind = (entry.get("type") or "").strip()
        "".join([question, kind, *answers]).encode()  # as for captions
    except (LookupError, TypeError, AttributeError, UnicodeError):
        return []
    return [(question, answer, kind) for answer in answers] if all([question, *answers]) else []
