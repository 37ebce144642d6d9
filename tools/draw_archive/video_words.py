"""Five captions and five questions about each drawn video, true by construction: they are made from its plan.

    first, second = pair(index)
    describe(first)            # ["A dog moves left.", ...]
    ask(first)                 # [Row("0-00000.mp4", "Which way does the dog go?", "left", "way"), ...]

The two videos of a pair show the same things and are asked nearly the same, so neither what they show nor the
wording tells which way it goes.
"""

from random import Random

from .captions import article, bare, finish
from .layout import SIDE
from .motion import REVERSED
from .questions import Row
from .vocabulary import LEXICON, LIGHT, SETTINGS, split

# Of each motion: what captions say, what a question asks ("Does the dog ...?"), and the answer.
SAYS = {
    "left": ("moves left|goes to the left|moves to the left", "move left", "left"),
    "right": ("moves right|goes to the right|moves to the right", "move right", "right"),
    "up": ("moves up|goes up|rises", "move up", "up"),
    "down": ("moves down|goes down|sinks", "move down", "down"),
    "in": ("comes in|appears|comes into view", "come in", "in"),
    "out": ("goes out|leaves|goes out of view", "go out", "out"),
    "grow": ("gets bigger|grows|becomes larger", "get bigger", "bigger"),
    "shrink": ("gets smaller|shrinks|becomes smaller", "get smaller", "smaller"),
    "turn": ("turns around|turns to the other side", "turn around", "turns around"),
    "stay": ("stays where it is|does not move|stands still", "stay where it is", "stays"),
}
WORDINGS = {
    "way": ("Which way does the {a} go?", "In which direction does the {a} move?", "Where does the {a} go?"),
    "door": (
        "Does the {a} come in or go out?",
        "Does the {a} arrive or leave, in or out?",
        "Is the {a} coming in or going out?",
    ),
    "size": (
        "Does the {a} get bigger or smaller?",
        "Does the size of the {a} get bigger or smaller?",
        "Is the {a} getting bigger or smaller?",
    ),
    "rest": (
        "Does the {a} turn around or stay as it is?",
        "Has the {a} turned around or does it stay as it is?",
        "Which does the {a} do, turn around or stay as it is?",
    ),
    "does": ("What does the {a} do?", "What happens to the {a}?", "What is the {a} doing?"),
    "what": ("What {says}?", "Which thing {says}?", "What is it that {says}?"),
    "whether": (
        "Does the {a} {asks}?",
        "Is it true that the {a} {says}?",
        "Can you see that the {a} {says}?",
    ),
    "end": (
        "{when}, is the {a} on the left or on the right?",
        "{when}, which side is the {a} on, left or right?",
        "Is the {a} on the left or on the right {when}?",
    ),
}
TYPES = dict(
    left="way", right="way", up="way", down="way", grow="size", shrink="size", turn="rest", stay="rest"
)
TYPES |= {"in": "door", "out": "door"}
# Of one thing, and of one thing with its colour and the weather.
ONE = (
    "{a} {says}",
    "{where} {a} {says}",
    "{a} {says} {where}",
    "{scene}: {a} {says}",
    "we see how {a} {says}",
)
RICH = (
    "{sky} {rich} {says}",
    "{rich} {says} {sky}",
    "{scene} {sky}, {rich} {says}",
    "a video in which {rich} {says}",
)


def describe(clip):
    """Five different sentences about a Clip: one of its main thing, one of a thing with its colour, one of
    everything, and two more of the first kind about any thing."""
    rng = Random(f"{clip.scene.seed}/{clip.name}/captions")
    said = []
    while len(said) < 5:
        text = finish(rng, _sentence(rng, clip, len(said)))
        if len(text.split()) >= 3 and bare(text) not in map(bare, said):
            said.append(text)
    return said


def _sentence(rng, clip, number):
    scene, setting = clip.scene, SETTINGS[clip.scene.setting]
    main = clip.movers[0] if number == 0 else rng.choice(clip.movers)
    if number == 2 and len(clip.movers) > 1:
        parts = [f"{_noun(rng, mover)} {_says(rng, mover)}" for mover in clip.movers]
        return ", ".join([*parts[:-2], rng.choice((" and ", " while ")).join(parts[-2:])])
    return rng.choice(RICH if number == 1 else ONE).format(
        a=_noun(rng, main),
        rich=_noun(rng, main, rich=True),
        says=_says(rng, main),
        where=rng.choice(list(filter(None, setting.land)) or setting.sea),
        scene=rng.choice(setting.scenes),
        sky=rng.choice(_skies(scene)),
    )


def _skies(scene):
    """Words for the weather, without those that say that the sun moves: it does not."""
    return (
        [words for words in LIGHT[scene.weather].words if "goes" not in words]
        if scene.weather in LIGHT
        else [""]
    )


def _noun(rng, mover, rich=False):
    """'a dog', 'a puppy'; of what has a colour, with `rich` 'a red car'."""
    return article(" ".join(filter(None, [mover.color * rich, rng.choice(LEXICON[mover.name].words)])))


def _says(rng, mover):
    """'moves left', 'comes in from the left'."""
    says = rng.choice(split(SAYS[mover.motion][0]))
    if mover.edge and says in ("comes in", "goes out") and rng.random() < 0.5:
        says += f" {'from' if mover.motion == 'in' else 'at'} the {mover.edge}"
    return says


def ask(clip):
    """Five Rows about a Clip, each of another type."""
    rng = Random(f"{clip.scene.seed}/{clip.scene.index}/asked")  # the same for both of a pair
    main, other, last = clip.movers[0], rng.choice(clip.movers), rng.choice(clip.movers)
    only = rng.choice([mover for mover in clip.movers if _is_only(mover, clip.movers)])
    asked = rng.choice(sorted({main.motion, REVERSED[main.motion]}))
    if main.motion in ("turn", "stay"):
        asked = rng.choice(("turn", "stay"))
    found = [
        (TYPES[main.motion], main.name, SAYS[main.motion][2], main.motion),
        ("does", other.name, split(SAYS[other.motion][0])[0], other.motion),
        ("what", only.name, only.name, only.motion),
        ("whether", main.name, "yes" if asked == main.motion else "no", asked),
        ("end", last.name, *_side(rng, last)),
    ]
    rows = []
    for type, name, answer, words in found:
        question = rng.choice(WORDINGS[type])
        says, asks, _ = SAYS.get(words, (words, "", ""))
        question = question.format(a=name, says=split(says)[0], asks=asks, when=words)
        rows.append(Row(clip.name, question[0].upper() + question[1:], answer, type))
    return rows


def _is_only(mover, movers):
    """Whether no other of the movers does what this one does."""
    return not any(mover.motion in (other.motion, other.heading) for other in movers if other != mover)


def _side(rng, mover):
    """(the side of a Mover, "at the start" or "at the end", whichever shows it)."""
    at_end = rng.random() < 0.5
    if mover.edge:
        at_end = mover.motion == "in"
    x, _, _ = mover.end if at_end else mover.start
    return "left" if x < SIDE / 2 else "right", f"at the {'end' if at_end else 'start'}"
