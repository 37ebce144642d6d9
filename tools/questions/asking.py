"""Questions of the captions of each image: one function for each rule.

A rule returns a Found for each question that some caption suggests, with its answers, or with the reason why
it is not asked. So found = asked + left out, for each rule."""

import random
from collections import Counter, defaultdict
from typing import NamedTuple

from . import rules
from .evidence import (
    AGREE,
    ANIMATE,
    BALANCE,
    CONTRADICT,
    DEPICTED,
    GIVEN,
    SEVERAL,
    SINGLE,
    actors_of,
    conflict,
    deeds_of,
    depicted,
    given_away,
    mentions,
    needed,
    not_one,
    numbered,
    persons_in,
    places_of,
    postures_contradict,
    rival_named,
    things_contradict,
)
from .reading import ing, plural, vocabulary

SURFACES = ("table", "bench", "bed", "couch", "chair", "plate", "kitchen counter", "roof", "carpet")
RIDDEN = set("horse elephant camel donkey bull skateboard surfboard snowboard wave swing slide sled".split())


class Found(NamedTuple):
    image: str
    type: str
    question: str
    answers: tuple
    captions: frozenset  # numbers of the captions that the answers rest on, counted from 0
    reason: str = ""  # why it is not asked


def a(noun):
    """'an owl' for 'owl'."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith(('uni', 'ufo')) else 'a'} {noun}"


def color(scene):
    """What color is the hat? All captions that give the color have to agree; two colors give two rows."""
    seen = defaultdict(list)
    for i, caption in enumerate(scene.captions):
        for p in caption.phrases:
            if p.colors and p.kind not in ("person", "place") and (p.kind == "pair" or not p.plural):
                seen[p.noun].append((i, p.colors))
    for noun, given in seen.items():
        most = max((colors for _, colors in given), key=len)
        reason = not_one(scene, noun) or (CONTRADICT if rival_named(scene, noun) else "")
        loose = set().union(*(colors_before(caption, noun) for caption in scene.captions))
        if any(not set(colors) <= set(most) for _, colors in given) or not loose <= set(most):
            reason = reason or CONTRADICT
        verb = "are" if vocabulary()[1][noun].kind == "pair" else "is"
        used = numbered(scene, {i for i, colors in given})
        yield Found(scene.image, "color", f"What color {verb} the {noun}?", most, used, reason)


def colors_before(caption, noun):
    """The colors up to four words before a noun, whatever stands between: "a red folded towel"."""
    found = set()
    for i in places_of(caption, noun):
        for word in reversed(caption.tokens[max(i - 4, 0) : i]):
            if word in rules.ARTICLES or word in rules.AFTER - {"and", ","}:
                break
            if word in rules.COLORS:
                found.add(rules.COLORS[word])
    return found


def total_of(caption, noun):
    """How many things of a noun a caption has at least; for a noun of persons, how many persons."""
    return sum(p.number or (2 if p.plural else 1) for p in caption.phrases if same_count(p, noun))


def number_contradicts(scene, noun, number):
    """Whether a caption has another number, more things, or only persons of another sex or age."""
    for caption in scene.captions:
        numbers = {p.number for p in caption.phrases if same_count(p, noun)} - {None, 1, number}
        if numbers or total_of(caption, noun) > number:
            return True
        persons = persons_in(caption) if vocabulary()[1][noun].kind == "person" else []
        if persons and all(conflict(noun, person) for person in persons):
            return True
    return rival_named(scene, noun)


def count(scene):
    """How many dogs are there? No caption may give another number, or one more dog."""
    seen = defaultdict(lambda: defaultdict(set))
    for i, caption in enumerate(scene.captions):
        for p in caption.phrases:
            countable = p.kind in ("person", "animal", "vehicle", "food", "thing")
            if countable and p.plural and p.number and p.number > 1:
                seen[p.noun][p.number].add(i)
    hint = any(set(caption.tokens) & (rules.SEVERAL | rules.GROUPS) for caption in scene.captions)
    for noun, given in seen.items():
        number = max(given, key=lambda n: len(given[n]))
        reason = "" if len(given[number]) >= needed(scene) else SINGLE
        if number_contradicts(scene, noun, number):
            reason = CONTRADICT
        if hint and vocabulary()[1][noun].kind in ANIMATE:
            reason = SEVERAL
        answer = (rules.NUMBER_WORDS[number],)
        used = numbered(scene, given[number])
        yield Found(scene.image, "count", f"How many {plural(noun)} are there?", answer, used, reason)
    for noun in single(scene):
        used = numbered(scene, range(len(scene.captions)))
        yield Found(scene.image, "count", f"How many {plural(noun)} are there?", ("one",), used)


def same_count(phrase, noun):
    """Whether the number of a phrase has to be that of the noun."""
    return phrase.noun == noun or phrase.kind == vocabulary()[1][noun].kind == "person"


def single(scene):
    """Animals and vehicles of which every one of two or more captions names exactly one."""
    if len(scene.captions) < 2 or any(set(c.tokens) & rules.SEVERAL for c in scene.captions):
        return []
    each = []
    for caption in scene.captions:
        ones = {p.noun for p in caption.phrases if p.kind in ("animal", "vehicle") and not p.plural}
        each.append({noun for noun in ones if mentions(caption, noun) == (1, False)})
    return sorted(noun for noun in set.intersection(*each) if not not_one(scene, noun))


def kind_of_place(answer):
    """ "in" or "out" for places indoors and outdoors, "" for those that may be either."""
    words = set(answer.split())
    return "in" if words & rules.INDOORS else "out" if words & rules.OUTDOORS else ""


def in_and_out(answers):
    """Whether some of the places are indoors and others outdoors."""
    return len({kind_of_place(answer) for answer in answers} - {""}) > 1


def where(scene):
    """Where is this? Where is the dog? The place stands right behind the dog and what it does."""
    said = defaultdict(set)
    whereabouts = defaultdict(lambda: defaultdict(set))
    for i, caption in enumerate(scene.captions):
        for answer in caption.places:
            said[answer].add(i)
        for phrase, answer in caption.whereabouts:
            if not phrase.plural:
                whereabouts[phrase.noun][answer].add(i)
    wide = {answer: at for answer, at in said.items() if f"\n{answer}:" in rules.SCENES}
    if wide:
        agreed = {answer: at for answer, at in wide.items() if len(at) >= needed(scene)}
        reason = CONTRADICT if in_and_out(wide) else "" if agreed else SINGLE
        used = numbered(scene, set().union(*agreed.values()))
        yield Found(scene.image, "where", "Where is this?", tuple(agreed), used, reason)
    for noun, given in whereabouts.items():
        sure = {answer for answer in given if len(said[answer]) >= AGREE}
        only = sure or (set(given) if len(given) == 1 else set())
        rivals = [answer for answer in wide if answer not in only]
        reason = not_one(scene, noun)
        if not only or in_and_out([*said]) or (rivals and not sure):
            reason = reason or CONTRADICT
        question = f"Where is the {noun}?"
        answers = tuple(answer for answer in given if answer in only)
        if any(given_away(question, answer) for answer in answers):
            reason = reason or GIVEN
        used = numbered(scene, set().union(*(given[answer] for answer in only)))
        yield Found(scene.image, "where", question, answers, used, reason)


def doing(deed):
    """'riding a bicycle', 'playing soccer', 'running', or "" where the verb needs another object."""
    if not deed.complete:
        return ""
    if deed.game:
        return f"{ing(deed.verb)} {deed.game}"
    if not deed.thing:
        return ing(deed.verb)
    noun, kind = deed.thing.noun, deed.thing.kind
    if deed.verb == "play":
        return f"playing the {noun}" if noun in rules.INSTRUMENTS else ""
    if deed.verb == "wear" or (deed.verb == "ride" and kind != "vehicle" and noun not in RIDDEN):
        return ""
    return f"{ing(deed.verb)} {named(deed.thing) if deed.thing.plural else a(noun)}"


def named(phrase):
    """The noun of a phrase, in the plural where it is plural."""
    return plural(phrase.noun) if phrase.plural and phrase.kind != "pair" else phrase.noun


def action(scene):
    """What is the dog doing?"""
    actors = dict.fromkeys(deed.who.noun for _, deed in actors_of(scene))
    for noun in actors:
        question = f"What is the {noun} doing?"
        answers = defaultdict(set)
        for i, deed in deeds_of(scene, noun):
            if doing(deed):
                answers[doing(deed)].add(i)
        if not answers:
            continue
        reason = not_one(scene, noun)
        verbs_said = {deed.verb for _, deed in deeds_of(scene, noun)}
        if postures_contradict(scene, noun) or any(things_contradict(scene, verb) for verb in verbs_said):
            reason = reason or CONTRADICT
        kept = [answer for answer in answers if not given_away(question, answer)]
        used = numbered(scene, set().union(*(answers[answer] for answer in kept)))
        yield Found(scene.image, "action", question, tuple(kept), used, reason or ("" if kept else GIVEN))


def who(scene):
    """Who is running? What animal is running?"""
    actors = defaultdict(lambda: defaultdict(set))
    for i, deed in actors_of(scene):
        if doing(deed):
            actors[deed.who.kind, deed.verb, doing(deed)][deed.who.noun].add(i)
    for (kind, verb, deed), given in actors.items():
        question = f"{'Who' if kind == 'person' else 'What animal'} is {deed}?"
        names = [name for name in given if name != "person"]
        if any(name in sex for name in names for sex in rules.SEX.values()):
            names = [name for name in names if name != "child"]
        reasons = [not_one(scene, name) for name in given]
        if any(postures_contradict(scene, name) for name in given) or things_contradict(scene, verb):
            reasons.append(CONTRADICT)
        if not names:
            reasons.append("only a person")
        kept = [name for name in names if not given_away(question, name)]
        if not kept:
            reasons.append(GIVEN)
        used = numbered(scene, set().union(*(given[name] for name in kept)))
        what = "who" if kind == "person" else "object"
        yield Found(scene.image, what, question, tuple(kept), used, next(filter(None, reasons), ""))


def what(scene):
    """What is the man riding? What is on the table?"""
    objects = defaultdict(lambda: defaultdict(set))
    on_top = defaultdict(lambda: defaultdict(set))
    for i, deed in actors_of(scene):
        if deed.thing and (deed.verb == "wear" or doing(deed)):
            objects[deed.who.noun, deed.verb][named(deed.thing)].add(i)
        elif deed.game:
            objects[deed.who.noun, deed.verb][deed.game].add(i)
    for i, caption in enumerate(scene.captions):
        for phrase, surface in caption.on_top:
            if surface in SURFACES and phrase.kind in ("animal", "food", "thing", "other"):
                on_top[surface][named(phrase)].add(i)
    for (noun, verb), given in objects.items():
        question = f"What is the {noun} {ing(verb)}?"
        reason = not_one(scene, noun)
        if things_contradict(scene, verb) or postures_contradict(scene, noun):
            reason = reason or CONTRADICT
        yield answered(scene, question, given, reason)
    for surface, given in on_top.items():
        yield answered(scene, f"What is on the {surface}?", given, not_one(scene, surface))


def answered(scene, question, given, reason):
    """A Found of the type object of {answer: captions}."""
    kept = [name for name in given if not given_away(question, name)]
    used = numbered(scene, set().union(*(given[name] for name in kept)))
    return Found(scene.image, "object", question, tuple(kept), used, reason or ("" if kept else GIVEN))


PER_IMAGE = (what, who, color, count, where, action)
TYPES = ("object", "who", "color", "count", "where", "action", "exists")


def words_in(scene):
    """Every word of the captions of an image, and every noun of several words."""
    found = set()
    for caption in scene.captions:
        for token in caption.tokens:
            found |= {token.replace("_", " "), token.removesuffix("'s"), *token.split("_"), *token.split("-")}
    return found


def exists(scenes, seed, most):
    """Is there a dog? For each noun as many "yes" as "no", at most `most` of each, drawn with the seed."""
    seen = defaultdict(dict)
    for scene in scenes:
        by_noun = defaultdict(set)
        for i, caption in enumerate(scene.captions):
            for p in caption.phrases:
                if p.kind in ("animal", "vehicle", "food", "thing"):
                    by_noun[p.noun].add(i)
        for noun, at in by_noun.items():
            seen[noun][scene.image] = (scene, at)
    words = [(scene, words_in(scene)) for scene in scenes]
    for noun, images in sorted(seen.items()):
        question = f"Is there {a(noun)}?"
        near = vocabulary()[1][noun].near
        sure, yes = [], []
        for scene, at in images.values():
            enough = len(at) >= needed(scene)
            reason = DEPICTED if depicted(scene) else "" if enough else SINGLE
            if rival_named(scene, noun):
                reason = reason or CONTRADICT
            found = Found(scene.image, "exists", question, ("yes",), numbered(scene, at), reason)
            (yes if not reason else sure).append(found)
        no = [scene for scene, named in words if not near & named and not depicted(scene)]
        each = min(len(yes), len(no), most)
        draw = random.Random(f"{seed} {noun}")
        kept = set(draw.sample(range(len(yes)), each))
        yield from sure
        yield from (f if i in kept else f._replace(reason=BALANCE) for i, f in enumerate(yes))
        for scene in draw.sample(no, each):
            yield Found(scene.image, "exists", question, ("no",), frozenset())


def balance_ones(found, seed):
    """Keep as many answers "one" for each noun as there are other numbers of it, drawn with the seed."""
    groups = defaultdict(lambda: ([], []))
    for i, f in enumerate(found):
        if f.type == "count" and not f.reason:
            groups[f.question][f.answers != ("one",)].append(i)
    for question, (ones, others) in sorted(groups.items()):
        kept = random.Random(f"{seed} {question}").sample(ones, min(len(ones), len(others)))
        for i in set(ones) - set(kept):
            found[i] = found[i]._replace(reason=BALANCE)
    return found


def ask(scenes, seed=0, most=100):
    """[Found] of every rule, in the order of the images and of the rules."""
    found = []
    for scene in scenes:
        for rule in PER_IMAGE:
            for f in rule(scene):
                found.append(f._replace(reason=DEPICTED) if depicted(scene) else f)
    found = balance_ones(found, seed) + list(exists(scenes, seed, most))
    order = {scene.image: i for i, scene in enumerate(scenes)}
    return sorted(found, key=lambda f: (order[f.image], TYPES.index(f.type), f.question))


def rows_of(found):
    """(image name, question, answer, type) of what is asked."""
    return [(f.image, f.question, answer, f.type) for f in found if not f.reason for answer in f.answers]


def tally(found):
    """{type: Counter of "found", "asked", "rows", "images" and of each reason}."""
    totals = {name: Counter() for name in TYPES}
    images = defaultdict(set)
    for f in found:
        totals[f.type]["found"] += 1
        totals[f.type][f.reason or "asked"] += 1
        if not f.reason:
            totals[f.type]["rows"] += len(f.answers)
            images[f.type].add(f.image)
    for name in TYPES:
        totals[name]["images"] = len(images[name])
    return totals
