"""Read a caption: its noun phrases, what the first person, animal or thing does, and the places.

read("Two black dogs run in the snow .").phrases[0] is a Phrase of the noun "dog", plural, number 2, colors
("black",). Nothing is guessed: a noun counts only where the next word shows that the phrase ends there, so
"dog sled" is no dog."""

import re
from functools import cache
from typing import NamedTuple

from . import rules


class Noun(NamedTuple):
    name: str
    kind: str  # person, animal, vehicle, food, thing, other, clothes, pair or place
    near: frozenset  # words that forbid the answer "no" to "Is there a NAME?", with their plurals


class Phrase(NamedTuple):
    noun: str
    kind: str
    start: int  # the first token, the article included
    end: int  # one past the last token
    plural: bool
    number: int | None  # None where the caption gives no number
    colors: tuple
    several: bool  # "another dog", "the other dog"


class Deed(NamedTuple):
    who: Phrase
    verb: str  # the bare verb: "ride"
    thing: Phrase | None  # what is ridden
    game: str  # "soccer" for "playing soccer", otherwise ""
    complete: bool  # False where the verb has an object that rules.py does not know: "walks a llama"


class Caption(NamedTuple):
    tokens: tuple
    phrases: tuple
    deeds: tuple
    places: tuple  # answers such as "on the beach", wherever they stand
    whereabouts: tuple  # (Phrase, answer): where the first thing of the caption is
    on_top: tuple  # (Phrase, the noun it lies on)
    depicted: bool  # a statue, a poster: nothing is taken from this caption


IRREGULAR = {
    "person": "people",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "calf": "calves",
    "wolf": "wolves",
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "aircraft": "aircraft",
    "bird of prey": "birds of prey",
    "ox": "oxen",
}


def plural(noun):
    """'dogs' for 'dog', 'firemen' for 'fireman'."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    first, _, last = noun.rpartition(" ")
    if first:
        return f"{first} {plural(last)}"
    if noun.endswith("man") and noun != "human":
        return noun[:-3] + "men"
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    if re.search("(s|x|sh|ch)$", noun) or noun in ("tomato", "potato", "mosquito"):
        return noun + "es"
    return noun + "s"


def ing(verb):
    """'running' for 'run'."""
    if verb == "lie":
        return "lying"
    if verb in rules.DOUBLED:
        return verb + verb[-1] + "ing"
    return (verb[:-1] if re.search("[^eo]e$", verb) and verb != "be" else verb) + "ing"


def present(verb):
    """'runs' for 'run'."""
    return "has" if verb == "have" else plural(verb) if verb not in ("go", "do", "fish") else verb + "es"


def words_of(text):
    """The names between commas."""
    return [word for word in re.split(r"\s*,\s*", text.strip()) if word]


@cache
def vocabulary():
    """({surface form: (noun, is plural)}, {noun: Noun}), from the lists of rules.py."""
    lists = {
        "person": rules.PERSONS,
        "animal": rules.ANIMALS,
        "vehicle": rules.VEHICLES,
        "food": rules.FOOD,
        "thing": rules.THINGS,
        "other": rules.OTHERS,
        "clothes": rules.CLOTHES,
        "pair": rules.PAIRS,
    }
    forms, entries = {}, {}
    for kind, text in lists.items():
        for entry in filter(str.strip, text.split(";")):
            entry, _, hints = entry.partition("+")
            names, _, broader = entry.partition("<")
            names, broader, hints = words_of(names), words_of(broader), words_of(hints)
            entries[names[0]] = (kind, names, broader, hints)
            for name in names:
                forms.setdefault(name, (names[0], kind == "pair"))
                if kind != "pair":
                    forms.setdefault(plural(name), (names[0], True))
    forms["persons"] = ("person", True)
    nouns = {}
    for name, (kind, names, broader, hints) in entries.items():
        narrower = [word for other in entries.values() if name in other[2] for word in other[1]]
        near = {*names, *broader, *hints, *narrower}
        nouns[name] = Noun(name, kind, frozenset(near | {plural(word) for word in near}))
    return forms, nouns


@cache
def places():
    """{surface form: [(answer, prepositions, is a scene)]}"""
    found = {}
    for text, scene in ((rules.SCENES, True), (rules.SPOTS, False)):
        for line in text.strip().splitlines():
            answer, prepositions, names = (part.strip() for part in line.split(":"))
            for name in words_of(names):
                for form in (name, plural(name)):
                    found.setdefault(form, []).append((answer, set(prepositions.split()), scene))
    # "in the mountains" is plural, "on a mountain" singular; the other plurals change nothing.
    found["mountain"] = [place for place in found["mountain"] if place[0] != "in the mountains"]
    return found


@cache
def verbs():
    """({-ing or -s form: bare verb}, {every form of every verb})"""
    base = [*rules.ALONE, *rules.WITH_OBJECT, *rules.SAME_VERB, *rules.OTHER_VERBS]
    acting = {*rules.ALONE, *rules.WITH_OBJECT, *rules.SAME_VERB, *rules.POSTURES}
    acting |= set().union(*rules.OPPOSITES)
    forms = {}
    for verb in acting:
        for form in (ing(verb), present(verb)):
            forms[form] = rules.SAME_VERB.get(verb, verb)
    return forms, {form for verb in base for form in (verb, ing(verb), present(verb))}


@cache
def joiner():
    """Finds the nouns and places of several words, the longest first."""
    several = {name for name in [*vocabulary()[0], *places()] if " " in name}
    return re.compile(rf"\b({'|'.join(sorted(several, key=len, reverse=True))})\b")


def tokens_of(text):
    """Lower case; a noun of several words is one token; "man's" is left whole."""
    text = joiner().sub(lambda found: found[1].replace(" ", "_"), re.sub(r"\s+", " ", text.lower()))
    return tuple(re.findall(r"[a-z]+(?:[_'-][a-z]+)*|\d+|[.,;:!?&()]", text))


def ends(tokens, i):
    """Whether a noun phrase may end before token i."""
    if i >= len(tokens) or tokens[i] in rules.AFTER or tokens[i] in verbs()[1]:
        return i >= len(tokens) or tokens[i] not in rules.ING_NOUNS
    return tokens[i].endswith("ing") and tokens[i] not in rules.ING_NOUNS


def start_of(tokens, head):
    """The first token of the adjectives, colors and numbers before a head."""
    i = head
    while i > 0:
        word = tokens[i - 1]
        joins = (
            word in ("and", ",", "&")
            and i > 1
            and tokens[i - 2] in rules.COLORS
            and tokens[i] in rules.COLORS
        )
        known = word in rules.COLORS or word in rules.ADJECTIVES or word in rules.NUMBERS or word == "other"
        if not (joins or known):
            break
        i -= 1
    return i


def phrase_at(tokens, head, noun, kind, is_plural):
    """The Phrase that ends with token `head`, or None."""
    start = start_of(tokens, head)
    inside, before = tokens[start:head], tokens[start - 1] if start else ""
    if before in rules.FAKES or not ends(tokens, head + 1):
        return None
    if noun == "camera" and before == "the":
        return None  # "smiles at the camera": it took the picture
    article = before in rules.ARTICLES or before == "another"
    word = tokens[head]
    if (word in verbs()[1] or word in rules.GAMES) and not (article or inside):
        return None  # "he slides", "playing football"
    numbers = [rules.NUMBERS[word] for word in inside if word in rules.NUMBERS]
    if tokens[max(start - 2, 0) : start] in (("more", "than"), ("at", "least")):
        numbers = []
    if before == "one":
        numbers = [1]
    patterns = {"spotted", "striped", "plaid", "checkered", "patterned", "floral", "flowered"} & set(inside)
    colors = () if patterns else tuple(dict.fromkeys(rules.COLORS[w] for w in inside if w in rules.COLORS))
    # "a red and a blue ball" has two balls in one phrase.
    if article and start > 2 and tokens[start - 2] in ("and", "or") and tokens[start - 3] in rules.COLORS:
        colors = ()
        is_plural = True
    several = before == "another" or "other" in inside
    return Phrase(
        noun,
        kind,
        start - article,
        head + 1,
        is_plural,
        numbers[0] if len(numbers) == 1 else None,
        colors,
        several,
    )


def phrases_of(tokens):
    """Every noun phrase of rules.py, in order. Places are phrases too, of the kind "place"."""
    forms, nouns = vocabulary()
    found = []
    for head, token in enumerate(tokens):
        word = token.replace("_", " ")
        if word in forms:
            noun, is_plural = forms[word]
            phrase = phrase_at(tokens, head, noun, nouns[noun].kind, is_plural)
        elif word in places():
            phrase = phrase_at(tokens, head, word, "place", False)
        else:
            phrase = None
        if phrase:
            found.append(phrase)
    return tuple(found)


def place_at(tokens, phrases, i):
    """(answers, token after it) of a place that begins with the preposition at token i."""
    for phrase in phrases:
        if phrase.start == i + 1 and phrase.end > i + 1:
            word = tokens[phrase.end - 1].replace("_", " ")
            answers = [answer for answer, before, _ in places().get(word, ()) if tokens[i] in before]
            return answers, phrase.end
    return [], i


def after_clothes(tokens, phrases, i):
    """The token after "in a red shirt and blue jeans" or "wearing a hat", or i where no such words begin."""
    starts = {phrase.start: phrase for phrase in phrases if phrase.kind in ("clothes", "pair")}
    words = {"in", "with", "wearing", "and", ","}
    if i < len(tokens) and tokens[i] in ("in", "with", "wearing"):
        while i < len(tokens) and tokens[i] in words and i + 1 in starts:
            i = starts[i + 1].end
    return i


def skip(tokens, i):
    """The first token from i on that is no filler, such as "is" or "quickly"."""
    while i < len(tokens) and tokens[i] in rules.FILLERS:
        i += 1
    return i


def opens_a_clause(tokens, phrases, phrase):
    """Whether nothing stands before the phrase that its verb or place may belong to."""
    if tokens[max(phrase.start - 1, 0) : phrase.start] in (("while",), ("as",)):
        return True
    before = [p for p in phrases if p.end <= phrase.start and p.kind != "place"]
    return not before and not any(token in verbs()[0] for token in tokens[: phrase.start])


def deed_of(tokens, phrases, who):
    """(Deed or None, token after it) of the verb behind a phrase."""
    i = skip(tokens, after_clothes(tokens, phrases, skip(tokens, who.end)))
    verb = verbs()[0].get(tokens[i]) if i < len(tokens) else None
    finite = verb and not tokens[i].endswith("ing")
    # "A man with a dog runs": opens_a_clause has made sure that the man comes first.
    if not verb or (i + 1 < len(tokens) and tokens[i + 1] in rules.ING_BEFORE):
        return None, i
    if finite and who.plural:
        return None, i
    if verb == "play" and i + 1 < len(tokens) and tokens[i + 1] in rules.GAMES:
        return Deed(who, verb, None, tokens[i + 1], True), i + 2
    thing = next((p for p in phrases if p.start == i + 1 and p.kind != "place"), None)
    part = thing and tokens[thing.end : thing.end + 1] == ("of",)  # "eating a bowl of soup"
    if thing and not part and verb in rules.WITH_OBJECT and thing.kind != "person":
        return Deed(who, verb, thing, "", True), thing.end
    after = skip(tokens, i + 1)  # "waves around a flag"
    takes_object = thing or (after < len(tokens) and tokens[after] in rules.ARTICLES)
    complete = verb in rules.ALONE and not (takes_object and verb not in rules.OBJECT_OR_NOT)
    return Deed(who, verb, None, "", complete), i + 1


def where_is(tokens, phrases, who, i):
    """Answers of the place that follows token i, or that stands before "there is a dog"."""
    last = skip(tokens, i)  # "down" may open a place, or just follow a verb
    answers = next(filter(None, (place_at(tokens, phrases, at)[0] for at in range(i, last + 1))), [])
    if not answers and tokens[max(who.start - 2, 0) : who.start] in (("there", "is"), ("there", "are")):
        ends_there = [p for p in phrases if p.end == who.start - 2 and p.start]
        for p in ends_there:
            answers, _ = place_at(tokens, phrases, p.start - 1)
    return answers


def lies_on(tokens, phrases, what):
    """The noun of "on a table" behind a phrase, or None."""
    i = skip(tokens, what.end)
    if i < len(tokens) and tokens[i] in ("sitting", "lying", "resting", "placed", "standing", "sits", "lies"):
        i += 1
    if i < len(tokens) and tokens[i] == "on":
        for phrase in phrases:
            if phrase.start == i + 1 and not phrase.plural:
                return phrase.noun
    return None


def read(text):
    """A Caption."""
    tokens = tokens_of(text)
    phrases = phrases_of(tokens)
    deeds, whereabouts, on_top = [], [], []
    for phrase in phrases:
        if phrase.kind in ("place", "clothes", "pair"):
            continue
        if not opens_a_clause(tokens, phrases, phrase):
            continue
        if surface := lies_on(tokens, phrases, phrase):
            on_top.append((phrase, surface))
        deed, end = deed_of(tokens, phrases, phrase)
        if deed:
            deeds.append(deed)
        if not deed or (deed.complete and not deed.thing) or deed.verb in ("ride", "carry"):
            i = end if deed else skip(tokens, after_clothes(tokens, phrases, phrase.end))
            whereabouts += [(phrase, answer) for answer in where_is(tokens, phrases, phrase, i)]
    found = [answer for i in range(len(tokens)) for answer in place_at(tokens, phrases, i)[0]]
    return Caption(
        tokens,
        phrases,
        tuple(deeds),
        tuple(dict.fromkeys(found)),
        tuple(whereabouts),
        tuple(on_top),
        bool(rules.DEPICTED.search(text.lower())),
    )
