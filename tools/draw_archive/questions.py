"""Questions about each image with their answers, true by construction because they are made from its layout.

    rows = questions([layout(index) for index in range(1000)])
    print("\n".join(report(rows)))

Every question is about what can be seen: things that are hidden, alike, or nearly level are not asked about.
The answers are balanced, so that the question alone says little. Drawing takes no random number from here.
"""

from collections import Counter, defaultdict
from random import Random
from typing import NamedTuple

from .captions import WALLS, article, plural
from .drawing import distance
from .layout import SIDE
from .vocabulary import LEXICON, NUMBERS, TINTS
from .wordings import (
    ALIKE,
    ANSWERS,
    BACKGROUND,
    CATEGORIES,
    COUNTED,
    PLACES,
    POSSIBLE,
    THIN,
    TIME,
    WEATHER,
    WORDINGS,
    ZONE,
    doing,
    noun,
)

AT_LEAST = 8  # questions per image
MOST = 2  # questions of one type per image; "exists" has a limit of its own
PRESENT = 2  # questions per image that ask for something it shows; more where images lack questions
TRIES = 40  # images that are looked at to find one for a "no"
HIDDEN = 0.3  # the largest share of a thing's box that nearer things may cover
APART = 0.09  # the least distance of two centres, or of a centre and the middle, as a share of the side
BIGGER = 1.6  # the least ratio of two sides that is asked about; people see 1.25
WIDE = 100  # pixels; a thing of this width can hide the swing that makes a playground
SLACK = 2  # by how much an answer may be more frequent than the rarest, for one noun; for one wording by 1
COUNT_WORDS = {1: "one", **NUMBERS}
TINTED = {"night": TINTS, "sunset": ("white",), "rain": ("orange",)}  # colors that the light changes
CURTAINS = ("red", "green", "blue", "purple")  # the others are drawn too dark to be called so


class Row(NamedTuple):
    image_name: str
    question: str
    answer: str
    type: str


class Candidate(NamedTuple):
    """A row that may be kept, and what its question tells: its words, its pattern, its nouns."""

    row: Row
    keys: tuple


class View:
    """What a scene shows, by noun."""

    def __init__(self, scene):
        self.scene = scene
        self.rng = Random(f"{scene.seed}/{scene.index}/questions")
        self.shown = {}  # noun: things
        for thing in scene.things:
            self.shown.setdefault(noun(thing.name), []).append(thing)
        drawn = sorted(scene.things, key=distance)
        self.clear = {thing for i, thing in enumerate(drawn) if hidden(thing, drawn[i + 1 :]) <= HIDDEN}

    def sure(self, name):
        """Whether nothing else in the image could be called by this noun."""
        others = self.shown.keys() - {name}
        return name not in BACKGROUND.get(self.scene.setting, ()) and not any(
            name in alike and alike & others for alike in ALIKE
        )

    def lacks(self, name):
        """Whether nothing in the image could be called by this noun or category."""
        if name in CATEGORIES:
            return not self.shown.keys() & set.union(*CATEGORIES[name])
        return name not in self.shown and self.sure(name)

    def single(self):
        """{noun: thing} of everything that "the" can refer to."""
        found = {name: things[0] for name, things in self.shown.items() if len(things) == 1}
        return {name: thing for name, thing in found.items() if thing in self.clear and self.sure(name)}

    def members(self, category):
        """{noun: things} of a category. None when it is not clear what belongs to it."""
        inside, maybe = CATEGORIES[category]
        found = {name: things for name, things in self.shown.items() if name in inside}
        unclear = self.shown.keys() & (maybe - inside)
        return None if unclear or not self.clear.issuperset(sum(found.values(), [])) else found

    def candidate(self, type, answer, form="", **words):
        """A question of this type in one of its wordings."""
        pattern = self.rng.choice(WORDINGS[form or type])
        question = pattern.format(**words)
        keys = (pattern, question, *((type, place, word) for place, word in words.items()))
        return Candidate(Row(self.scene.name, question, answer, type), keys)


def hidden(thing, nearer):
    """The share of a thing's box that the boxes of nearer things cover, at most."""
    x0, y0, x1, y1 = thing.box
    covered = 0
    for other in nearer:
        wide = min(x1, other.box[2]) - max(x0, other.box[0])
        tall = min(y1, other.box[3]) - max(y0, other.box[1])
        covered += max(0, wide) * max(0, tall)
    return covered / ((x1 - x0) * (y1 - y0))


def of_scene(view):
    """Candidates about the place, the weather, the time and the walls."""
    scene = view.scene
    if scene.setting != "playground" or max(thing.box[2] - thing.box[0] for thing in scene.things) < WIDE:
        yield view.candidate("where", PLACES[scene.setting])
    if scene.weather in WEATHER:
        yield view.candidate("weather", WEATHER[scene.weather])
    if scene.weather in TIME:
        yield view.candidate("time", TIME[scene.weather])
    wall = WALLS.get(scene.setting)
    if wall and (wall == "wall" or scene.paint in CURTAINS):
        yield view.candidate("color", scene.paint, a=wall)


def of_kinds(view):
    """Candidates about what there is, how many there are, and what people do."""
    for category in CATEGORIES:
        found = view.members(category)
        if not found:
            continue
        if len(found) == 1 and category != "person" and view.sure(*found):
            yield view.candidate("what", *found, kind=category)
        count = sum(map(len, found.values()))
        if category in COUNTED and count in COUNT_WORDS:
            yield view.candidate("count", COUNT_WORDS[count], things=COUNTED[category])
        actions = {doing(thing.name) for things in found.values() for thing in things}
        if category == "person" and len(found) == 1 and None not in actions:
            yield view.candidate("action", *actions, form="action" if count == 1 else "actions")
    if len(view.scene.things) == 1 and not view.members("person"):
        yield from (view.candidate("what", name, form="main") for name in view.single())
    for name, things in view.shown.items():
        named = " who is " not in name and view.sure(name) and view.clear.issuperset(things)
        if named and len(things) in COUNT_WORDS:
            yield view.candidate("count", COUNT_WORDS[len(things)], things=plural(name))


def of_one(view):
    """Candidates about a single thing: its color, its side."""
    for name, thing in view.single().items():
        if thing.color and thing.color not in TINTED.get(view.scene.weather, ()):
            shirt = f"shirt of the {name}"
            worker = LEXICON[thing.name].kind == "worker"
            yield view.candidate("color", thing.color, a=shirt if worker else name)
        x = (thing.box[0] + thing.box[2]) / 2 / SIDE
        if abs(x - 0.5) >= APART:
            yield view.candidate("side", "left" if x < 0.5 else "right", a=name)


def of_two(view):
    """Candidates about each two single things, the one asked about being either."""
    single = view.single()
    for a in single:
        for b in single:
            if a != b:
                yield from compared(view, a, b, single[a].box, single[b].box)


def compared(view, a, b, box, other):
    """Candidates that compare noun `a` in its box with noun `b` in the other box."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = box, other
    wide, broad = x1 - x0, u1 - u0
    across, down = (x0 + x1 - u0 - u1) / 2 / SIDE, (y0 + y1 - v0 - v1) / 2 / SIDE
    if abs(across) >= APART and min(x1, u1) - max(x0, u0) <= 0.4 * min(wide, broad):
        yield view.candidate("relation", "left" if across < 0 else "right", a=a, b=b)
    level = min(y1, v1) - max(y0, v0) > 0.25 * min(y1 - y0, v1 - v0)
    if abs(down) >= APART and not level and ZONE[a] == ZONE[b]:  # what flies is above what does not
        yield view.candidate("height", "above" if down < 0 else "below", a=a, b=b)
    ratio = max(wide, y1 - y0) / max(broad, v1 - v0)
    if max(ratio, 1 / ratio) >= BIGGER and not {a, b} & THIN:
        yield view.candidate("size", "bigger" if ratio > 1 else "smaller", a=a, b=b)


def pooled(views, rng):
    """All candidates in random order; those of images with few come first."""
    pool = []
    for view in views:
        own = [c for source in (of_scene, of_kinds, of_one, of_two) for c in source(view)]
        pool += [(len({c.row.type for c in own}), c) for c in own]
    rng.shuffle(pool)
    return [candidate for _, candidate in sorted(pool, key=lambda pair: pair[0])]


def balanced(pool):
    """The rows of a pool, chosen so that for every key no answer is much more frequent than the rarest one.

    Passes over the pool until one adds nothing: a row may fit once its rarer answers are in."""
    kept, tally, used, asked = [], defaultdict(Counter), Counter(), set()
    while True:
        later = []
        for row, keys in pool:
            fact = row.image_name, row.type, frozenset(word for *_, word in keys[2:])
            if used[fact[:2]] == MOST or fact in asked:
                continue
            if any(excess(tally[key], row) >= (SLACK if key != keys[0] else 1) for key in keys):
                later.append((row, keys))
                continue
            kept.append(row)
            used[fact[:2]] += 1
            asked.add(fact)
            for key in keys:
                tally[key][row.answer] += 1
        if len(later) == len(pool):
            return kept
        pool = later


def excess(counts, row):
    """By how much the row's answer is already more frequent than the rarest of its type; 0 if many exist."""
    answers = ANSWERS.get(row.type)
    return counts[row.answer] - min(counts[answer] for answer in answers) if answers else 0


def present(views, rng):
    """(view, noun or category, rank) of what can be asked for with the answer yes; the rank counts from 0 in
    each image."""
    found = []
    for view in views:
        clear = [name for name in view.shown if view.sure(name) and view.clear.intersection(view.shown[name])]
        clear += [category for category in CATEGORIES if view.members(category)]
        found += [(view, name, rank) for rank, name in enumerate(rng.sample(clear, len(clear)))]
    rng.shuffle(found)
    return sorted(found, key=lambda fact: fact[2])


def exists(views, rows, rng):
    """Rows about what is there. Each has a twin that asks another image the same, with the answer no.

    The twin goes to an image that has few questions, and that could have shown the thing."""
    facts = present(views, rng)
    number = Counter(row.image_name for row in rows)
    number.update(view.scene.name for view, _, rank in facts if rank < PRESENT)
    asked = {(view.scene.name, name) for view, name, _ in facts}
    found, short = [], views
    for view, name, rank in facts:
        some = rng.sample(views, min(TRIES, len(views)))
        if spare := rank >= PRESENT:
            some = short = [other for other in short if number[other.scene.name] < AT_LEAST]
        free = [other for other in some if other.lacks(name) and (other.scene.name, name) not in asked]
        number[view.scene.name] += bool(free) if spare else -(not free)
        if free:
            other = min(free, key=lambda other: need(number[other.scene.name], other, name))
            number[other.scene.name] += 1
            asked.add((other.scene.name, name))
            question = rng.choice(WORDINGS["exists"]).format(a=article(name))
            found.append(Row(view.scene.name, question, "yes", "exists"))
            found.append(Row(other.scene.name, question, "no", "exists"))
    return found


def need(number, view, name):
    """Sort key of the images that can be asked for something they lack: those with too few questions first,
    then those whose setting can show this noun or something of this category."""
    able = POSSIBLE[view.scene.setting]
    likely = bool(able & CATEGORIES[name][0]) if name in CATEGORIES else name in able
    return min(number, AT_LEAST), not likely


def questions(scenes):
    """A list of Row for these scenes, image by image, in random order within an image."""
    views = [View(scene) for scene in scenes]
    rng = Random(f"{scenes[0].seed if scenes else 0}/questions")
    rows = balanced(pooled(views, rng))
    rows += exists(views, rows, rng)
    order = {scene.name: i for i, scene in enumerate(scenes)}
    rng.shuffle(rows)
    return sorted(rows, key=lambda row: order[row.image_name])


def question_only(rows, seed=0):
    """What who sees no image gets right, per type: {type: (right, rows)}.

    For one half of the images after the other, each question gets its most frequent answer in the other half;
    a question that is new there gets the most frequent answer of its type."""
    names = sorted({row.image_name for row in rows})
    Random(seed).shuffle(names)
    first = set(names[: len(names) // 2])
    right, total = Counter(), Counter(row.type for row in rows)
    for side in (True, False):
        counts = defaultdict(Counter)
        for row in rows:
            if (row.image_name in first) != side:
                counts[row.question][row.answer] += 1
                counts[row.type][row.answer] += 1
        for row in rows:
            if (row.image_name in first) == side:
                known = counts[row.question] or counts[row.type]
                right[row.type] += bool(known) and known.most_common(1)[0][0] == row.answer
    return {type: (right[type], total[type]) for type in sorted(total)}


def report(rows):
    """Lines of a table: rows, most frequent answer and question-only accuracy of each type."""
    guessed = question_only(rows)
    if not rows:
        return
    yield f"{'type':9} {'rows':>6} {'most frequent answer':>28} {'question only':>14}"
    for type, (right, total) in guessed.items():
        answer, number = Counter(row.answer for row in rows if row.type == type).most_common(1)[0]
        share = f"{answer} {number / total:.1%}"
        yield f"{type:9} {total:6,} {share:>28} {right / total:14.1%}"
    right, total = map(sum, zip(*guessed.values()))
    answer, number = Counter(row.answer for row in rows).most_common(1)[0]
    share = f"{answer} {number / total:.1%}"
    yield f"{'all':9} {total:6,} {share:>28} {right / total:14.1%}"
    numbers = Counter(row.image_name for row in rows).values()
    yield f"questions per image: {min(numbers)} to {max(numbers)}, {total / len(numbers):.1f} on average"
