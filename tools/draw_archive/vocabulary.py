"""The words of the archive, read from vocabulary.json. Alternatives are separated by "|" there.

    LEXICON["dog"].words      # ["dog", "puppy", "brown dog"]; the first word is the name
    SETTINGS["beach"].land    # where things stand: ["on the beach", "at the beach", "on the sand"]

The order of every table decides what a seed draws: an entry added in the middle changes the archive.
"""

import json
from pathlib import Path
from typing import NamedTuple

PEOPLE = ("street person", "athlete", "swimmer", "sportsman", "dancer", "skier", "worker")
GENDERED = PEOPLE[:3]  # kinds that are drawn as a man or as a woman
DRAWN_BODIES = ("worker", "hanger")  # kinds whose body is drawn with shapes, since no emoji has it
INDOORS = ("stage", "room", "table", "kitchen")
NUMBERS = {2: "two", 3: "three", 4: "four"}


class Entry(NamedTuple):
    """One thing that can be drawn."""

    kind: str
    zone: str  # "land" and "sea" have a depth, "sky" has a height, "deep" is open water
    side: int  # pixels, before distance and size change it
    participles: list  # what it is doing: ["standing", "walking"]
    words: list  # its name first, then synonyms
    glyph: str  # {tone} is replaced by a skin tone
    tinted: bool  # whether it comes in the colours of TINTS


class Setting(NamedTuple):
    """One background. Bands are shares of the ground, 0 at the horizon and 1 at the bottom edge."""

    scenes: list  # what to call it
    land: list  # where things on land are
    sea: list  # where things in the water are
    kinds: list  # kinds of things that appear; twice means twice as often
    landmarks: list  # names of scenery that may be added
    horizon: list  # lowest and highest row of the horizon, in pixels
    land_band: list
    sea_band: list


class Light(NamedTuple):
    """One kind of weather."""

    words: list
    top: tuple  # RGB at the top of the sky
    bottom: tuple  # RGB at the horizon
    shade: tuple  # factors the ground's RGB is multiplied by


def split(text):
    """The alternatives of a text: "a|b" -> ["a", "b"]."""
    return text.split("|")


def spoken(verb, nouns):
    """Every noun with a verb: ("running", "man|guy") -> ["man running", "guy running"]."""
    return [f"{noun} {verb}" for noun in split(nouns)]


def people(kind, row, glyph, verbs):
    """Entries of an activity, one for a man and one for a woman."""
    for who in TABLES["who"].values():
        words = [phrase for verb in split(verbs) for phrase in spoken(verb, who["nouns"])]
        sign = f"{glyph}{{tone}}\u200d{who['sign']}"
        yield Entry(kind, row["zone"], row["side"], split(row["participles"]), words, sign, False)


def entries():
    """Every Entry, in the order that decides what a seed draws."""
    for kind, row in TABLES["things"].items():
        for glyph, text in row["glyphs"].items():
            if kind in GENDERED:
                yield from people(kind, row, glyph, text)
            else:  # a leading * means that it comes in several colours
                words, tinted = split(text.lstrip("*")), text.startswith("*")
                yield Entry(kind, row["zone"], row["side"], split(row["participles"]), words, glyph, tinted)
    for verbs in TABLES["work"].values():
        for who in TABLES["who"].values():
            words = [phrase for verb in split(verbs) for phrase in spoken(verb, who["nouns"])]
            yield Entry("worker", "land", 118, [""], words, who["face"] + "{tone}", True)


def setting(row):
    """A Setting from its row of vocabulary.json."""
    texts = [split(row[key]) for key in ("scenes", "land", "sea", "kinds")]
    landmarks = [name for name in split(row["landmarks"]) if name]
    return Setting(*texts, landmarks, row["horizon"], row["land band"], row["sea band"])


def colors(table):
    """{name: [r, g, b]} with tuples for lists, as Pillow wants them."""
    return {name: tuple(color) for name, color in table.items()}


TABLES = json.loads(Path(__file__).with_name("vocabulary.json").read_text(encoding="utf-8"))
LEXICON = {entry.words[0]: entry for entry in entries()}
LEXICON["person hanging"] = Entry(
    "hanger", "cable", 50, [""], ["person hanging from a bridge cable"], "", True
)
NAMES = {kind: [name for name in LEXICON if LEXICON[name].kind == kind] for kind in TABLES["things"]}
WORK = {job: split(verbs)[0] for job, verbs in TABLES["work"].items()}
SETTINGS = {name: setting(row) for name, row in TABLES["settings"].items()}
LIGHT = {
    name: Light(split(row["words"]), tuple(row["top"]), tuple(row["bottom"]), tuple(row["shade"]))
    for name, row in TABLES["light"].items()
}
TINTS = colors(TABLES["tints"])  # hue of 0 to 255, factor of the saturation, factor of the brightness
PAINT = colors(TABLES["paint"])
PLURALS = TABLES["plurals"]
HANGING = TABLES["hanging"]  # captions of the scenes in which people hang from a bridge cable
FIRST = TABLES["first"]  # the captions of the first image
