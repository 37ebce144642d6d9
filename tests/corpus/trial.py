"""Try files one by one in child processes, and sort what comes of each."""

import os
import re
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from models.dataset import open_image
from tests.corpus.encoders import three

LIMIT = 10  # seconds per file; the slowest takes less than one
MEMORY = 4 << 30  # bytes of address space beyond the fork's; a bomb of the corpus asks for 10 to 600 GB
NOBODY = 65534
ENDS = ("TRACEBACK", "HANG", "CRASH")
PLAIN = "what Pillow decodes by itself"


class Came(NamedTuple):
    """What came out of a case."""

    items: list
    accounted: int  # things that came out, or that are counted as left out


class Case(NamedTuple):
    kind: str
    path: Path
    want: object = None  # pixels (H, W, 3), PLAIN, or a list; None where there must be an error
    error: str = None  # pattern of the error; None where there must be none. With both, either is right
    close: float = 0.0  # largest mean difference from `want`, of 255; 0: no value is off by more than 1
    read: Callable = open_image  # path -> an image, a list, or Came
    seen: int = 0  # things that go in, where a list or Came is wanted; 0: as many as are wanted


def write(folder, kind, name, data, *rest, **more):
    """The Case of a file in a folder of its kind. `data` is bytes or text, or None to write no file."""
    path = folder / re.sub("[^a-z0-9]+", "-", kind.lower()) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return Case(kind, path, *rest, **more)


def plain(path):
    """(H, W, 3): the pixels that Pillow and numpy make of a file in the plainest way."""
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return three(np.asarray(image, float) / 257)
    rgba = np.asarray(image.convert("RGBA"), float)
    return rgba[:, :, :3] * rgba[:, :, 3:] / 255 + 255 - rgba[:, :, 3:]


def difference(case, got):
    """Why a PIL image is not what the case wants; "" when it is."""
    if got.mode != "RGB":
        return f"WRONG PIXELS: mode {got.mode}"
    want = plain(case.path) if case.want is PLAIN else case.want
    if want.shape != np.shape(got):
        return f"WRONG PIXELS: {np.shape(got)}, not {want.shape}"
    off = np.abs(np.asarray(got) - want.astype(float))
    if off.mean() > case.close if case.close else off.max() > 1:
        return f"WRONG PIXELS: off by {off.mean():.2f}, {off.max():.0f} at most"
    return ""


def examine(case):
    """ "right", "error" (a clear one, where there may be one), or in capitals what is wrong."""
    try:
        got = case.read(case.path)
    except (ValueError, OSError) as error:
        message, path = str(error), str(case.path)
        if case.error is None:
            return f"REFUSED: {message}"
        if path not in message and repr(path)[1:-1] not in message:
            return f"NO PATH: {message}"
        clear = len(message) <= 1000 + len(path) and re.search(case.error, message, re.S)
        return "error" if clear else f"UNCLEAR: {message}"
    if case.want is None:
        return "ACCEPTED, and must be refused"
    if isinstance(case.want, list):
        items, accounted = got if isinstance(got, Came) else (got, len(got))
        if accounted < (case.seen or len(case.want)):
            return f"UNCOUNTED: {accounted} of {case.seen or len(case.want)}"
        return "right" if items == case.want else f"WRONG ROWS: {items}"
    return difference(case, got) or "right"


def trial(cases, examine=examine, limit=LIMIT):
    """([outcome of each case], largest resident memory in bytes). A child process examines one case after the
    other. One that hangs is killed, and after a hang or a crash a new process continues with the next
    case."""
    outcomes, peak = [], 0
    while len(outcomes) < len(cases):
        ours, theirs = Pipe(duplex=False)
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            try:
                _child(cases[len(outcomes) :], theirs, examine)
            finally:
                os._exit(0)
        theirs.close()
        try:
            while ours.poll(limit):
                outcomes.append(ours.recv())
            ended = f"HANG: over {limit} s"
        except EOFError:
            ended = "CRASH: the process ended"
        os.kill(pid, signal.SIGKILL)
        peak = max(peak, os.wait4(pid, 0)[2].ru_maxrss * 1024)
        if len(outcomes) < len(cases):
            outcomes.append(ended)
    return outcomes, peak


def _child(cases, results, examine):
    """Examine the cases in this process with limited memory, and send each outcome."""
    pages = Path("/proc/self/statm") if os.path.exists("/proc/self/statm") else None
    inherited = int(pages.read_text().split()[0]) * resource.getpagesize() if pages else 0
    resource.setrlimit(resource.RLIMIT_AS, (inherited + MEMORY, inherited + MEMORY))
    for case in cases:
        root = getattr(case, "path", Path()).name.startswith("unreadable") and os.geteuid() == 0
        if root:  # root may read any file
            os.seteuid(NOBODY)
        try:
            outcome = examine(case)
        except BaseException as error:
            outcome = f"TRACEBACK: {type(error).__name__}: {error}"
        if root:
            os.seteuid(0)
        results.send(outcome)


def table(title, kinds, cases, outcomes):
    """The lines of a Markdown table: how many files of each kind there are, and what came of them."""
    columns = "files | right result | clear error | wrong or unclear | less came out than went in, uncounted"
    lines = [f"| {title} | {columns} | traceback | hang | crash |", "|---" * 9 + "|"]
    pairs = [
        (case.kind, outcome.split(":")[0]) for case, outcome in zip(cases, outcomes) if case.kind in kinds
    ]
    for kind in [*kinds, "**all**"]:
        came = Counter(outcome for of, outcome in pairs if kind in (of, "**all**"))
        right, error, *rest = (came[word] for word in ("right", "error", "UNCOUNTED", *ENDS))
        counts = (came.total(), right, error, came.total() - right - error - sum(rest), *rest)
        lines.append(f"| {kind} | {' | '.join(map(str, counts))} |")
    return lines
