"""The corpus of images: the files that decode, those that do not, and those that are cut or changed."""

import os
import socket
from pathlib import Path

from tests.corpus.bad_images import BAD, CUT, harmless, mutated
from tests.corpus.encoders import LOSSY, RGB, saved, shown, whole
from tests.corpus.good_images import GOOD
from tests.corpus.trial import PLAIN, write

KINDS = [*GOOD, "truncated", "mutated", *BAD, "not files"]


def make_images(folder, mutations=8):
    """Write the images to `folder`, which must be empty, and return their Cases. The same every time."""
    folder, cases = Path(folder), []
    for kind, files in GOOD.items():
        cases += [write(folder, kind, name, data, want, None, close) for name, data, want, close in files()]
    for kind, files in BAD.items():
        cases += [write(folder, kind, name, data, None, error) for name, data, error in files()]
    cases += [write(folder, "bombs", name, data, RGB, CUT) for name, data in harmless()]
    for name, data in whole().items():
        pixels, close = shown(name), LOSSY.get(name, 0)
        short = {f"{tenth}0%": len(data) * tenth // 10 for tenth in range(10)}
        short |= {f"{less} less": len(data) - less for less in (1, 2, 3, 8)}
        for cut, left in short.items():
            error = CUT + "|empty|not one of the formats"
            cases.append(write(folder, "truncated", f"{cut} {name}", data[:left], pixels, error, close))
        for number in range(mutations):
            changed = mutated(data, f"{name}/{number}")
            cases.append(write(folder, "mutated", f"{number} {name}", changed, PLAIN, "."))
    return cases + list(_not_files(folder))


def _not_files(folder):
    """Cases of links, pipes, sockets, folders, and of files that are missing or cannot be read."""

    def add(name, data=None, want=None, error=None):
        return write(folder, "not files", name, data, want, error)

    links = {"circle.jpg": "circle.jpg", "one.jpg": "two.jpg", "two.jpg": "one.jpg"}
    for name, target in links.items():
        yield _linked(add(name, error="symbolic links"), target)
    yield _linked(add("nowhere.jpg", error="No such file"), "gone.jpg")
    yield _linked(add("linked.jpg", want=RGB), "../every-format-whole/plain.png")
    yield _linked(add("pipe behind a link.jpg", error="pipe"), "pipe.jpg")
    yield add("missing.jpg", error="No such file")
    yield add("plain.jpg", saved(RGB, "PNG"), RGB)
    pipe, inside, sock = (add(f"{name}.jpg", error=name) for name in ("pipe", "folder", "socket"))
    os.mkfifo(pipe.path)
    inside.path.mkdir()
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(sock.path.parent)  # the path of a socket is at most 107 bytes long
        unix.bind(sock.path.name)
        os.chdir(here)
    unreadable = add("unreadable.jpg", saved(RGB, "PNG"), None, "ermission")
    unreadable.path.chmod(0)
    yield from (pipe, inside, sock, unreadable)


def _linked(case, target):
    case.path.symlink_to(target)
    return case
