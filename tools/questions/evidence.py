"""What the captions of one image agree on: whether "the man" is one certain man, and what contradicts."""

from collections import defaultdict
from itertools import combinations
from typing import NamedTuple

from . import rules
from .reading import read, verbs, vocabulary

ANIMATE = ("person", "animal")
BASIC = set("man woman boy girl child baby person".split())
AGREE = 2  # captions that have to agree where an image has three or more; otherwise one is enough
DEPICTED, SEVERAL, SINGLE = "a statue, poster or shadow", "more than one of them", "too few captions agree"
CONTRADICT, GIVEN, BALANCE = "captions contradict", "the question gives it away", "balance of answers"


class Scene(NamedTuple):
    image: str
    texts: tuple
    captions: tuple
    first: int  # the number of its first caption among all captions, counted from 0


def scenes(rows):
    """One Scene for each image of (image name, caption) rows, in the order of the rows."""
    texts = defaultdict(list)
    for name, text in rows:
        texts[name].append(text)
    found, first = [], 0
    for name, listed in texts.items():
        found.append(Scene(name, tuple(listed), tuple(map(read, listed)), first))
        first += len(listed)
    return found


def needed(scene):
    """How many captions have to say the same."""
    return AGREE if len(scene.captions) > 2 else 1


def numbered(scene, found):
    """The numbers among all captions of places in a scene."""
    return frozenset(scene.first + i for i in found)


def given_away(question, answer):
    """Whether a word of the answer begins like a word of the question: "Who is skiing?", "skier"."""

    def stems(text):
        return {word[:3] for word in text.lower().strip("?").split() if len(word) > 3}

    return bool(stems(question) & stems(answer))


def mentions(caption, noun):
    """(how often a caption names a noun, whether it ever does in the plural), in any part of a phrase."""
    forms = vocabulary()[0]
    named = [forms[word] for token in caption.tokens if (word := token.replace("_", " ")) in forms]
    same = [is_plural for name, is_plural in named if name == noun]
    return len(same), any(same)


def places_of(caption, noun):
    """The tokens that name a noun."""
    forms = vocabulary()[0]
    return [i for i, token in enumerate(caption.tokens) if forms.get(token.replace("_", " "), "?")[0] == noun]


def persons_in(caption):
    """Every noun for a person in a caption, in any part of a phrase."""
    forms, nouns = vocabulary()
    named = [forms[word][0] for token in caption.tokens if (word := token.replace("_", " ")) in forms]
    return [noun for noun in named if nouns[noun].kind == "person"]


def conflict(one, other):
    """Whether two nouns for persons cannot be of the same person: "boy" and "girl", "man" and "child"."""
    for groups in (rules.SEX, rules.AGE):
        first = {name for name, nouns in groups.items() if one in nouns}
        second = {name for name, nouns in groups.items() if other in nouns}
        if first and second and first != second:
            return True
    return False


def related(one, other):
    """Whether two nouns may be of the same thing: "dog" and "animal"."""
    nouns = vocabulary()[1]
    return one == other or one in nouns[other].near or other in nouns[one].near


def several_persons(scene):
    """Whether a caption has a plural, a group, or "another", so that "the man" may be any of them."""
    forms, nouns = vocabulary()
    for caption in scene.captions:
        named = [forms[word] for token in caption.tokens if (word := token.replace("_", " ")) in forms]
        if any(is_plural and nouns[noun].kind == "person" for noun, is_plural in named):
            return True
        if any(p.kind == "person" and p.several for p in caption.phrases):
            return True
        if set(caption.tokens) & (rules.GROUPS | rules.SEVERAL):
            return True
    return False


def not_one(scene, noun):
    """Why "the NOUN" would not be one certain thing of the image; "" where it is."""
    kind = vocabulary()[1][noun].kind
    for caption in scene.captions:
        count, is_plural = mentions(caption, noun)
        if count > 1 or (is_plural and kind != "pair"):
            return SEVERAL
        if any(p.noun == noun and p.several for p in caption.phrases):
            return SEVERAL
        if kind in ANIMATE and set(caption.tokens) & rules.SEVERAL:
            return SEVERAL
    if kind == "person":
        return one_person(scene, noun)
    if kind == "animal":
        return one_animal(scene, noun)
    if kind in ("clothes", "pair"):
        worn = [sum(p.kind in ANIMATE for p in caption.phrases) for caption in scene.captions]
        animals = any(p.kind == "animal" and p.plural for c in scene.captions for p in c.phrases)
        if several_persons(scene) or animals or max(worn) > 1:
            return SEVERAL
    return ""


def one_person(scene, noun):
    """not_one for persons: no caption may have several, or someone of another sex or age alone."""
    if several_persons(scene):
        return SEVERAL
    for caption in scene.captions:
        persons = [p.noun for p in caption.phrases if p.kind == "person"]
        if noun in persons and any(not conflict(noun, p) for p in persons if p != noun):
            return SEVERAL
        if persons and all(conflict(noun, p) for p in persons):
            return CONTRADICT
        if noun not in BASIC and any(p not in BASIC and p != noun for p in persons):
            return CONTRADICT  # a hiker in one caption, a skier in the other
    return ""


def one_animal(scene, noun):
    """not_one for animals: no caption may have several of the kind, or another kind alone."""
    for caption in scene.captions:
        animals = [p for p in caption.phrases if p.kind == "animal"]
        if any(p.plural and related(noun, p.noun) for p in animals) or "animals" in caption.tokens:
            return SEVERAL
        if animals and not any(related(noun, p.noun) for p in animals):
            return CONTRADICT
    return ""


def rival_named(scene, noun):
    """Whether captions disagree on what it is: one has a bicycle, another a motorcycle, and none has both."""
    rivals = set().union(*(group for group in rules.RIVALS if noun in group)) - {noun}
    found = False
    for caption in scene.captions:
        others = any(mentions(caption, rival)[0] for rival in rivals)
        if others and mentions(caption, noun)[0]:
            return False
        found = found or others
    return found


def things_contradict(scene, verb):
    """Whether captions disagree on what is ridden or thrown."""
    things = {deed.thing.noun for _, deed in actors_of(scene) if deed.verb == verb and deed.thing}
    if verb in rules.SEVERAL_OBJECTS:
        return False
    if len(things) > 1 or any(rival_named(scene, thing) for thing in things):
        return True
    named = [sum(mentions(caption, thing)[0] > 0 for caption in scene.captions) for thing in things]
    return verb in rules.HANDS and bool(named) and min(named) < needed(scene)


def deeds_of(scene, noun):
    """[(caption, Deed)] of the one thing that a noun names."""
    return [(i, deed) for i, c in enumerate(scene.captions) for deed in c.deeds if deed.who.noun == noun]


def postures_contradict(scene, noun):
    """Whether the captions have the one animal or person do what nobody does at once: sit and run."""
    said = {deed.verb for _, deed in deeds_of(scene, noun)}
    for caption in scene.captions:
        alive = [p for p in caption.phrases if p.kind in ANIMATE]
        if len(alive) <= 1:
            said |= {verbs()[0][token] for token in caption.tokens if token in verbs()[0]}
    if any(pair <= said for pair in rules.OPPOSITES):
        return True
    pairs = map(set, combinations(said & rules.POSTURES, 2))
    return any(not any(pair <= known for known in rules.TOGETHER) for pair in pairs)


def actors_of(scene):
    """The (caption, Deed) of each single person or animal."""
    for i, caption in enumerate(scene.captions):
        for deed in caption.deeds:
            if deed.who.kind in ANIMATE and not deed.who.plural:
                yield i, deed


def depicted(scene):
    """Whether a caption may be about a statue, a poster or a shadow."""
    return any(caption.depicted for caption in scene.captions)
