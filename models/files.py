"""Files: what they hash to, whether they changed, and how to write one whole or not at all.

sha256("weights.safetensors")                # 64 hex digits
stamp(path)                                  # changes whenever the file does
with replacing("runs/default/log.jsonl") as new:
    new.write_text(...)                      # takes the file's name when the block ends without an error
"""

import hashlib
import json
import logging
import os
import secrets
import time
from contextlib import contextmanager
from glob import escape
from pathlib import Path

YOUNG = " seen "  # in the stamp of a file that may still change without changing its times
STALE = 3600  # seconds after which a temporary file must be that of a dead process: writing one takes seconds

HIDDEN = "."  # how a hidden name begins: .DS_Store, ._a.jpg, .git, .thumbnails, .ipynb_checkpoints
# What operating systems, NAS boxes and archivers leave in folders. Case does not matter.
SYSTEM = (
    "__MACOSX, Thumbs.db, ehthumbs.db, desktop.ini, Icon\r, @eaDir, @tmp, @Recycle, #recycle, #snapshot, "
    "@Recently-Snapshot, Network Trash Folder, Temporary Items, FOUND.000, RECYCLED, "
    "$RECYCLE.BIN, RECYCLER, System Volume Information, lost+found"
).split(", ")


def sha256(path):
    """SHA-256 of a file's content, 64 hex digits. Reads a megabyte at a time."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def times_of(stat):
    """Size, inode and times of an `os.stat_result`, as text."""
    return f"{stat.st_size} {stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def stamp(path_or_stat):
    """Text that changes whenever the file does, so that equal stamps mean equal content.

    Within 2 s (the clock tick of FAT) a file can change again and keep its times. The stamp of a file that
    young, or of one from the future, is therefore unique: it equals no later stamp."""
    stat = path_or_stat if isinstance(path_or_stat, os.stat_result) else os.stat(path_or_stat)
    now = time.time_ns()
    young = now - max(stat.st_mtime_ns, stat.st_ctime_ns) < 2e9
    return times_of(stat) + (f"{YOUNG}{now}" if young else "")


def unchanged(path, read):
    """What `read()` returns, or the ValueError that it raises, for a file that it opens several times. Called
    again while another process replaces the file."""
    while True:
        before = times_of(os.stat(path))
        try:
            found = read()
        except ValueError:
            if times_of(os.stat(path)) == before:
                raise
            continue
        if times_of(os.stat(path)) == before:
            return found


@contextmanager
def replacing(path):
    """Yield a temporary path beside `path` to write to. When the block ends, the file is flushed to the disk
    and takes the name in one step, so a reader sees the old file or the new one and never a part. An error
    leaves the old file alone.

    Raises OSError naming `path` when it cannot be written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path.parent, path.name, older_than=STALE)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is intact"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(folder, name="*", older_than=0):
    """Delete what a killed process left half written in `folder`: temporary files of `name`, at least
    `older_than` seconds old."""
    pattern = name if name == "*" else escape(name)
    for leftover in Path(folder).glob(f".{pattern}.*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime >= older_than:
                leftover.unlink()
        except FileNotFoundError:
            pass  # another process has renamed or deleted it


def why_passed_over(name):
    """Why a file or folder of this name is no part of what a user keeps in a folder: "hidden", or its name in
    SYSTEM. None for any other."""
    if name.startswith(HIDDEN):
        return "hidden"
    return next((known for known in SYSTEM if known.lower() == name.lower()), None)


def relative(path, start=os.curdir, system=os.path):
    """`path` as seen from the folder `start`; the absolute path where there is no way, as from one drive of
    Windows to another. `system` is os.path, or that of another system."""
    try:
        return system.relpath(path, start)
    except ValueError:
        return system.abspath(path)


def printable(text):
    """`text` fit for a terminal: control characters and bytes that are not UTF-8 come out as \\x1b and
    \\udcff."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(lines, most=20):
    """Lines as the end of a message, each on a line of its own; of more than `most` the first ones and how
    many there are besides."""
    rest = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in [*lines[:most], *rest])


def level(left_out):
    """The logging level for a line of counts: --quiet silences those that say nothing was left out."""
    return logging.WARNING if any(left_out.values()) else logging.INFO


def tally(unit, used, left_out):
    """'12 rows = 10 used + 2 left out (1 blank, 1 no such file)' from {reason: count}."""
    reasons = {reason: count for reason, count in left_out.items() if count}
    total = sum(reasons.values())
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f"{used + total:,} {unit} = {used:,} used + {total:,} left out" + (f" ({why})" if why else "")


def packed(texts):
    """A list of str as a uint8 tensor of JSON, which a safetensors file can hold."""
    import torch

    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def unpacked(tensor):
    """The list of str in a tensor of `packed`."""
    return json.loads(bytes(tensor.numpy()))
