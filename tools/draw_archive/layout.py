"""What is where in each image: a pure function of its number and the seed. Needs no font."""

from dataclasses import dataclass, replace
from random import Random

from .vocabulary import INDOORS, LEXICON, NAMES, PAINT, PEOPLE, SETTINGS, TINTS, WORK

SIDE = 256  # pixels, width and height of every image
HANGING_EVERY = 77  # every 77th image shows people hanging from a bridge cable
WORKERS = {3: "stirring", 13: "washing"}  # two of every twenty images show somebody at work in a kitchen
GROUPS = (1, 1, 1, 1, 2, 2, 2, 2, 3, 4)  # how many different things an image shows
COUNTS = (1, 1, 1, 1, 1, 2, 2, 3, 4)  # how many of one thing
SIZES = ("", "", "", "", "tiny", "huge")
OUTDOORS = ("clear", "clear", "cloudy", "sunset", "night", "rain")


@dataclass(frozen=True)
class Thing:
    """One drawn thing: its name in LEXICON, colour (or ""), size ("tiny", "huge" or "") and glyph."""

    name: str
    color: str
    size: str
    glyph: str
    box: tuple  # (x0, y0, x1, y1) in pixels
    flip: bool = False
    angle: float = 0.0  # degrees


@dataclass(frozen=True)
class Scene:
    """One image. Captions mention its things in their order."""

    seed: int
    index: int
    name: str  # of the file
    setting: str
    weather: str
    paint: str  # colour of walls and curtains
    horizon: int  # pixels from the top
    things: tuple


def overlap(a, b):
    """The area shared by two boxes as a share of the smaller box, 0 to 1."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    tall = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return wide * tall / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


@dataclass(frozen=True)
class Cable:
    """The main cable of a bridge, a parabola between two towers. All in pixels."""

    left: int  # x of the left tower
    right: int
    top: int  # y of the top of the towers
    low: int  # y of the lowest point of the cable

    def height(self, x):
        """The y of the cable at `x`."""
        middle, half = (self.left + self.right) / 2, (self.right - self.left) / 2
        return self.low - (self.low - self.top) * ((x - middle) / half) ** 2


def cable(scene):
    """The cable of a scene's bridge."""
    if scene.index == 0:
        return Cable(30, 226, 26, 112)
    rng = Random(f"{scene.seed}/{scene.index}/bridge")
    return Cable(rng.randint(20, 60), rng.randint(190, 236), rng.randint(18, 60), rng.randint(98, 118))


def place(rng, zone, side, scene, taken):
    """A box for a thing of this side, in its zone: smaller when farther away, and hiding little of the boxes
    `taken`. None when there is no room."""
    allowed = rng.choice((0, 0, 0.05, 0.3))
    best = (2, None)
    for _ in range(60):
        size, bottom = in_sky(rng, side, scene) if zone == "sky" else on_ground(rng, zone, side, scene)
        x, y = rng.uniform(3, SIDE - 3 - size), max(3, bottom - size)
        box = tuple(round(v) for v in (x, y, x + size, y + size))
        hidden = max((overlap(box, other) for other in taken), default=0)
        best = min(best, (hidden, box))
        if hidden <= allowed:
            break
    return best[1] if best[0] < 0.35 else None


def in_sky(rng, side, scene):
    """(size, y of the lower edge) of a thing above the horizon, in pixels."""
    return side, rng.uniform(side + 4, max(side + 6, scene.horizon - 4))


def on_ground(rng, zone, side, scene):
    """(size, y of the lower edge) of a thing on land or in the water, in pixels."""
    setting = SETTINGS[scene.setting]
    near = rng.uniform(*(setting.land_band if zone == "land" else setting.sea_band))
    size = side if scene.setting in INDOORS else side * (0.72 + 0.5 * near)
    below = scene.horizon + 0.85 * size if zone == "deep" else 0
    return size, min(max(scene.horizon + near * (SIDE - scene.horizon), below), SIDE - 4)


def add(rng, scene, things, name, count=1, size=""):
    """Append up to `count` of a thing to `things`, as many as there is room for."""
    entry = LEXICON[name]
    size = "" if entry.kind in PEOPLE else size
    side = entry.side * {"tiny": 0.6, "huge": 2, "": rng.uniform(1.1, 1.5)}[size]
    side = min(side, 150 if count == 1 else 96)
    color = rng.choice(list(TINTS)) if entry.tinted else ""
    glyph = entry.glyph.replace("{tone}", skin_tone(rng))
    for _ in range(count):
        if box := place(rng, entry.zone, side, scene, [thing.box for thing in things]):
            flip = rng.random() < 0.5
            angle = rng.choice((0, 0, rng.uniform(-12, 12)))
            things.append(Thing(name, color, size, glyph, box, flip, angle))


def skin_tone(rng):
    """One of the five skin tone modifiers of Unicode."""
    return chr(0x1F3FB + rng.randrange(5))


def background(index, seed, rng):
    """The Scene of an image without the things that are placed in it."""
    # The remainder moves by less than 1013 from one index to the next, so names grow with the index.
    name = f"{10002456 + 1013 * index + 379 * index * index % 1009}.jpg"
    if index % HANGING_EVERY == 0:
        setting = "bridge"
    elif index % 20 in WORKERS:
        setting = "kitchen"
    else:
        setting = rng.choice(list(SETTINGS))
    if setting in INDOORS:
        weather = "indoors"
    else:
        weather = rng.choice(OUTDOORS) if index else "clear"
    paint = rng.choice(list(PAINT))
    return Scene(seed, index, name, setting, weather, paint, rng.randint(*SETTINGS[setting].horizon), ())


def hang(rng, scene, things):
    """Append two to four people who hang from the cable of the bridge; five in the first image."""
    bridge = cable(scene)
    count = 5 if scene.index == 0 else rng.randint(2, 4)
    for i in range(count):
        x = bridge.left + (bridge.right - bridge.left) * (i + 1 + rng.uniform(-0.2, 0.2)) / (count + 1)
        tall, y = rng.uniform(46, 60), bridge.height(x)
        box = tuple(round(v) for v in (x - 0.3 * tall, y, x + 0.3 * tall, y + tall))
        face = rng.choice("👨👩") + skin_tone(rng)
        things.append(Thing("person hanging", rng.choice(list(PAINT)), "", face, box))


def fill(rng, scene, things, groups, swimming):
    """Append `groups` different things of the setting; with `swimming`, only things that are in the water."""
    while groups > 0:
        name = rng.choice(NAMES[rng.choice(SETTINGS[scene.setting].kinds)])
        new = all(thing.name != name for thing in things)
        if new and (not swimming or LEXICON[name].zone in ("sea", "deep")):
            count = 1 if len(things) > 3 else rng.choice(COUNTS)
            add(rng, scene, things, name, count, rng.choice(SIZES))
            groups -= 1
        elif swimming:
            groups -= rng.random() < 0.3  # so that it ends where little fits


def layout(index, seed=0):
    """The Scene of image number `index`. All boxes are inside the 256 x 256 image."""
    rng = Random(f"{seed}/{index}/layout")
    scene = background(index, seed, rng)
    things = []
    hanging, job = index % HANGING_EVERY == 0, WORKERS.get(index % 20)
    if hanging:
        hang(rng, scene, things)
    if job:
        names = [name for name in LEXICON if LEXICON[name].kind == "worker" and name.endswith(WORK[job])]
        add(rng, scene, things, rng.choice(names))
    if hanging:
        groups = rng.randint(0, 1) * (index > 0)
    else:
        groups = rng.randint(0, 2) if job else rng.choice(GROUPS)
    fill(rng, scene, things, groups, hanging)
    landmarks = SETTINGS[scene.setting].landmarks
    if landmarks and rng.random() < 0.4:
        add(rng, scene, things, rng.choice(landmarks))
    return replace(scene, things=tuple(things))
