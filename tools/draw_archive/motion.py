"""What moves where in each video: a pure function of its number and the seed. Needs no font.

    first, second = pair(index)      # the second is the first with its frames in reverse order
    first.movers[0].box(0.5)         # where its main thing is halfway

The main things of ten pairs in a row show every motion, so all are equally frequent.
"""

import math
from dataclasses import dataclass, replace
from random import Random

from .layout import SIDE, Scene, background, overlap, skin_tone
from .vocabulary import LEXICON, NAMES, PEOPLE, SETTINGS, TINTS
from .wordings import ALIKE

# What each motion is when the frames are shown in reverse order.
REVERSED = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "in": "out",
    "out": "in",
    "grow": "shrink",
    "shrink": "grow",
    "turn": "turn",
    "stay": "stay",
}
MAIN = ("left", "up", "in", "grow", "turn", "left", "up", "in", "grow", "stay")  # of ten pairs in a row
EDGES = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
OFF_CENTRE = 0.12  # the least distance of a thing from the middle, as a share of the side
LARGE = 96  # pixels, the side of what grows, in the end
TRIES = 200


@dataclass(frozen=True)
class Mover:
    """One thing and its way through a video: centre and side of its box at the start and at the end."""

    name: str  # in LEXICON
    color: str
    glyph: str
    flip: bool  # at the start
    motion: str  # a key of REVERSED
    start: tuple  # (x, y, side) in pixels of a SIDE x SIDE image
    end: tuple
    edge: str = ""  # where it comes in or goes out

    def box(self, time):
        """(x0, y0, x1, y1) at a time from 0 to 1. It is outside the image before coming in and after going
        out."""
        x, y, side = (a + (b - a) * time for a, b in zip(self.start, self.end))
        return x - side / 2, y - side / 2, x + side / 2, y + side / 2

    def width(self, time):
        """The share of its width that is seen: less than 1 while it turns around, and negative behind."""
        return math.cos(math.pi * time) if self.motion == "turn" else 1.0

    @property
    def heading(self):
        """The direction in which it moves: left, right, up, down, or "" where it stays in its place."""
        across, down = (b - a for a, b in zip(self.start[:2], self.end[:2]))
        if abs(across) > abs(down):
            return "left" if across < 0 else "right"
        return "" if down == 0 else "up" if down < 0 else "down"

    def reversed(self):
        """The same in reverse order."""
        return replace(
            self,
            motion=REVERSED[self.motion],
            start=self.end,
            end=self.start,
            flip=self.flip != (self.motion == "turn"),
        )


@dataclass(frozen=True)
class Clip:
    """One video. `is_reversed` says that it is the second of its pair."""

    scene: Scene  # without things
    movers: tuple  # the main one first
    is_reversed: bool

    @property
    def name(self):
        """The name of its file: seed, number of the pair and, for the second, "reversed"."""
        return f"{self.scene.seed}-{self.scene.index:05}{'-reversed' * self.is_reversed}.mp4"


def pair(index, seed=0):
    """The two Clips of pair number `index`. They show one to three things, each with a name
    and a motion of its own."""
    rng = Random(f"{seed}/{index}/motion")
    scene = background(index, seed, rng)
    movers = []
    motion = MAIN[index % 10] if rng.random() < 0.5 else REVERSED[MAIN[index % 10]]
    kinds = [kind for kind in SETTINGS[scene.setting].kinds if kind not in PEOPLE]
    while len(movers) < 1 + index // 5 % 3:
        name = rng.choice(NAMES[rng.choice(kinds)])
        if not any(_alike(name, mover.name) for mover in movers):
            movers.append(_placed(rng, name, motion, movers))
        motions = [motion for motion in REVERSED if motion not in {mover.motion for mover in movers}]
        motion = REVERSED[movers[0].motion]
        if motion not in motions or rng.random() < 0.6:
            motion = rng.choice(motions)
    second = tuple(mover.reversed() for mover in movers)
    return Clip(scene, tuple(movers), False), Clip(scene, second, True)


def _alike(name, other):
    """Whether two names mean the same thing, or things that are easily confused."""
    return name == other or any({name, other} <= group for group in ALIKE)


def _placed(rng, name, motion, others):
    """A Mover whose way crosses those of the `others` as little as 200 tries allow."""
    entry = LEXICON[name]
    glyph = entry.glyph.replace("{tone}", skin_tone(rng))
    color = rng.choice(list(TINTS)) if entry.tinted else ""
    looks = dict(name=name, color=color, glyph=glyph, flip=rng.random() < 0.5, motion=motion)
    times = [i / 8 for i in range(9)]
    best = (2, None)
    for _ in range(TRIES):
        mover = Mover(**looks, **_way(rng, motion))
        boxes = [(mover.box(time), other.box(time)) for other in others for time in times]
        hidden = max((overlap(*both) for both in boxes), default=0)
        if hidden < best[0]:
            best = hidden, mover
        if hidden == 0:
            break
    return best[1]


def _way(rng, motion):
    """Start, end and edge of a Mover."""
    side = rng.uniform(52, 84)
    near, far = side / 2 + 2, SIDE - side / 2 - 2  # what keeps it inside the image
    x = rng.choice(
        (rng.uniform(near, (0.5 - OFF_CENTRE) * SIDE), rng.uniform((0.5 + OFF_CENTRE) * SIDE, far))
    )
    y = rng.uniform(near, far)
    here, edge = (x, y, side), ""
    start = end = here
    low, high = rng.uniform(near, 0.33 * SIDE), rng.uniform(0.67 * SIDE, far)
    if motion in ("left", "right"):
        start, end = (low, y, side), (high, y, side)
    elif motion in ("up", "down"):
        start, end = (x, low, side), (x, high, side)
    elif motion in ("in", "out"):
        edge = rng.choice(list(EDGES))
        across, down = EDGES[edge]
        gone = SIDE / 2 + side / 2 + 4  # from the middle to where nothing of it is seen
        start = (SIDE / 2 + across * gone if across else x, SIDE / 2 + down * gone if down else y, side)
    elif motion in ("grow", "shrink"):
        here = [min(max(at, LARGE / 2), SIDE - LARGE / 2) for at in (x, y)]
        start, end = (*here, LARGE * rng.uniform(0.3, 0.4)), (*here, LARGE)
    if motion in ("left", "up", "out", "shrink"):
        start, end = end, start
    return dict(start=start, end=end, edge=edge)
