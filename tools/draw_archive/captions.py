"""Five sentences about each image, true by construction because they are made from its layout."""

import re
from random import Random

from .layout import SIDE, overlap
from .vocabulary import DRAWN_BODIES, FIRST, HANGING, LEXICON, LIGHT, NUMBERS, PLURALS, SETTINGS

WALLS = {"room": "wall", "kitchen": "wall", "stage": "curtain"}
WORKPLACES = ["in the kitchen", "in a kitchen", "at the kitchen counter"]
# The patterns of the five sentences: main thing, place, relation or count, colour, everything.
# a: the main thing; rich: the same with size and colour; b: another thing; v: what the main thing is doing;
# are: "is" or "are"; the other words are what they say.
MAIN = (
    "{a} {v}",
    "there {are} {a}",
    "a picture of {a}",
    "we can see {a} here",
    "here {are} {a} {v}",
    "{a} {v} {where}",
)
PLACE = (
    "{a} {v} {where}",
    "{a} {where}",
    "{where} there {are} {a}",
    "{scene} with {a}",
    "{a} can be seen {where} {sky}",
    "{a} {where} {sky}",
    "{a} {v} {where} {sky}",
    "{scene} {walls} with {a}",
)
RELATION = ("{a} {relation} {b}", "{a} {v} {relation} {b}", "{a} {are} {relation} {b}")
ONE_ALONE = ("{a} {v} {side}", "{side} there {are} {a}", "{a} {side}")
SEVERAL_ALONE = ("there {are} exactly {a} {where}", "{a} together {where}", "I count {a} {where}")
COLOR = ("{rich} {where} {sky}", "{rich} {sky}", "{scene} {walls}, with {rich}", "{rich} {v} {where} {sky}")
ALL = (
    "{all}",
    "just {all} {sky}",
    "{scene} with {all}",
    "look, {all}",
    "{all} in one picture",
    "{scene} {walls}: {all}",
)


def plural(phrase):
    """'slice of pizza' -> 'slices of pizza', 'man riding a bike' -> 'men riding bikes', 'mouse' -> 'mice'."""
    pattern = r"(.*?)( (?:of|on|in|with|under|from|wearing|\w\w+ing)\b.*)?"
    head, rest = re.fullmatch(pattern, phrase).groups(default="")
    if not rest.startswith(" of "):
        rest = re.sub(r"\ban? ((?:\w+ )*)(\w+)$", lambda m: m[1] + plural(m[2]), rest)
    first, space, last = head.rpartition(" ")
    return first + space + (PLURALS.get(last) or regular_plural(last)) + rest


def regular_plural(word):
    """'puppy' -> 'puppies', 'bus' -> 'buses', 'dog' -> 'dogs'."""
    if re.search(r"(?<![aeiou])y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")


def article(phrase):
    """'a dog', 'an apple', 'an SUV', 'a UFO'."""
    return ("an " if re.match(r"[aeiouAEIO]|SUV", phrase) else "a ") + phrase


def noun_phrase(rng, group, rich):
    """Words for things of one name: 'a dog', 'two puppies'; with `rich`, 'a tiny red car'."""
    thing, entry = group[0], LEXICON[group[0].name]
    word, adjectives = rng.choice(entry.words), []
    if rich and thing.size:
        word = entry.words[0]
        sizes = {"tiny": ("tiny", "small", "little"), "huge": ("huge", "big", "large")}
        adjectives.append(rng.choice(sizes[thing.size]))
    if thing.color and entry.kind == "worker":
        word = word.replace(" ", f" in {article(thing.color)} shirt ", 1) if rich else word
    elif thing.color and (rich or rng.random() < 0.5):
        adjectives.append(thing.color)
    if len(group) == 1:
        return article(" ".join([*adjectives, word]))
    return " ".join([NUMBERS.get(len(group), "several"), *adjectives, plural(word)])


def hull(group):
    """The smallest box around the boxes of a group."""
    x0, y0, x1, y1 = zip(*(thing.box for thing in group))
    return min(x0), min(y0), max(x1), max(y1)


def relation(rng, a, b):
    """Where group `a` is as seen from `b`: 'to the left of', 'above', 'behind'; otherwise 'near'."""
    ax0, ay0, ax1, ay1 = hull(a)
    bx0, by0, bx1, by1 = hull(b)
    level = min(ay1, by1) - max(ay0, by0) > 0.5 * min(ay1 - ay0, by1 - by0)
    flying = "sky" in (LEXICON[a[0].name].zone, LEXICON[b[0].name].zone)
    true = []
    if ax1 <= bx0 + 6 or bx1 <= ax0 + 6:
        true.append("to the left of" if ax1 <= bx0 + 6 else "to the right of")
        if level and max(bx0 - ax1, ax0 - bx1) < 40:
            true += ["next to", "beside"]
    if min(ax1, bx1) > max(ax0, bx0):
        if flying:
            true += ["above", "over"] * (ay1 <= by0 + 4) + ["below", "under"] * (by1 <= ay0 + 4)
        elif len(a) == len(b) == 1 and overlap(a[0].box, b[0].box) > 0.05 and abs(ay1 - by1) > 3:
            true.append("behind" if ay1 < by1 else "in front of")
    return rng.choice(true or ["near", "not far from"])


def grouped(scene):
    """The things of a scene, one list per name: the largest first, scenery last. People who hang or
    work stay in front."""
    groups = {}
    for thing in scene.things:
        groups.setdefault(thing.name, []).append(thing)
    groups = list(groups.values())
    if LEXICON[groups[0][0].name].kind not in DRAWN_BODIES:
        groups.sort(key=importance)
    return groups


def importance(group):
    """Sort key of a group: scenery last, then by the width of its largest thing."""
    widest = max(thing.box[2] - thing.box[0] for thing in group)
    return LEXICON[group[0].name].kind == "scenery", -widest


def places(scene, entry):
    """Phrases for where a thing is."""
    setting = SETTINGS[scene.setting]
    if entry.zone == "sky":
        return [f"{over} {name}" for over in ("over", "above") for name in setting.scenes]
    if entry.kind == "worker":
        return WORKPLACES
    return setting.land if entry.zone == "land" else setting.sea


def side(group):
    """Which part of the image a group is in."""
    centre = sum(thing.box[0] + thing.box[2] for thing in group) / len(group) / 2 / SIDE
    if centre > 0.62:
        return "on the right of the picture"
    return "on the left side of the picture" if centre < 0.38 else "near the middle of the picture"


def patterns(main, others):
    """The patterns of each of the five sentences."""
    alone = ONE_ALONE if len(main) == 1 else SEVERAL_ALONE
    return MAIN, PLACE, RELATION if others else alone, COLOR, ALL


def finish(rng, text):
    """Single spaces; often a capital letter, often a full stop."""
    text = re.sub(r"\s+", " ", text).replace(" ,", ",").replace(" :", ":").strip()
    return (text[0].upper() + text[1:] if rng.random() < 0.6 else text) + "." * (rng.random() < 0.4)


def captions(scene):
    """Five different sentences of 4 to 18 words about a scene."""
    if scene.index == 0:
        return list(FIRST)
    rng = Random(f"{scene.seed}/{scene.index}/captions")
    groups = grouped(scene)
    sky = rng.choice(LIGHT[scene.weather].words) if scene.weather in LIGHT else ""
    if groups[0][0].name == "person hanging":
        count = NUMBERS[len(groups[0])]
        return [finish(rng, text.format(n=count, sky=sky)) for text in rng.sample(HANGING, 5)]
    walls = sky
    if wall := WALLS.get(scene.setting):
        walls, sky = f"with {scene.paint} {wall}s", f"in front of {article(scene.paint)} {wall}"
    said = []
    while len(said) < 5:
        text = finish(rng, sentence(rng, scene, groups, len(said), sky, walls))
        if 4 <= len(text.split()) <= 18 and bare(text) not in map(bare, said):
            said.append(text)
    return said


def sentence(rng, scene, groups, number, sky, walls):
    """Sentence `number`, 0 to 4. The order of the random choices decides which captions a seed gives."""
    main, others = groups[0], groups[1:]
    entry = LEXICON[main[0].name]
    other = rng.choice(others or [main])
    rich = number == 3 or rng.random() < 0.25
    phrases = [noun_phrase(rng, group, rng.random() < 0.4) for group in groups]
    rng.shuffle(phrases)
    pattern = rng.choice(patterns(main, others)[number])
    return pattern.format(
        sky=sky,
        walls=walls,
        side=side(main),
        are="is" if len(main) == 1 else "are",
        a=noun_phrase(rng, main, rich),
        b=noun_phrase(rng, other, rng.random() < 0.4),
        rich=noun_phrase(rng, main, True),
        v=rng.choice(entry.participles),
        where=rng.choice(places(scene, entry)),
        scene=rng.choice(SETTINGS[scene.setting].scenes),
        relation=relation(rng, main, other),
        all=" and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]])),
    )


def bare(text):
    """A sentence without what `finish` adds, to compare it by."""
    return text.lower().strip(".")


def unique(scene):
    """The caption of unique_caption.csv: the longest of the three about place, relation and colour."""
    return max(captions(scene)[1:4], key=lambda text: len(text.split()))
