"""questions.csv: every answer is computed again from the layout, naively, by rules written here once more."""

import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from tools.draw_archive.__main__ import main
from tools.draw_archive.captions import plural
from tools.draw_archive.drawing import distance
from tools.draw_archive.layout import layout
from tools.draw_archive.questions import Row, question_only, questions, report
from tools.draw_archive.vocabulary import LEXICON, PEOPLE, SETTINGS
from tools.draw_archive.wordings import WORDINGS

ROOT = Path(__file__).parents[2]
KINDS = {
    "animal": ("pet", "farm", "wild", "wood", "crawler", "waterbird", "fish", "bird"),
    "person": (*PEOPLE, "hanger"),
    "vehicle": ("car", "bike"),
    "boat": ("boat",),
    "fruit": ("fruit",),
    "musical instrument": ("music",),
    "tool": ("tool",),
    "ball": (),
}
NAMED = {
    "vehicle": ("airplane", "helicopter"),
    "ball": ("soccer ball", "basketball", "baseball", "American football"),
}
NOT = {"fruit": ("carrot",)}  # of the kind, but nobody calls it so
NUMBERS = ["no", "one", "two", "three", "four"]
DOING = {"jockey on a horse": "riding a horse", "fencer": "fencing", "skier": "skiing"}
DOING |= {"snowboarder": "snowboarding", "person hanging": "hanging from a cable"}
WEATHER = {"clear": "sunny", "cloudy": "cloudy", "rain": "rainy"}


@pytest.fixture(scope="module")
def scenes():
    return {scene.name: scene for scene in map(layout, range(1000))}


@pytest.fixture(scope="module")
def rows():
    with (ROOT / "questions.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_name", "question", "answer", "type"]
    return [Row(*row) for row in rows]


def called(thing):
    """The noun that questions use: a man and a woman are both a person who is doing something."""
    if thing.name == "person hanging":
        return "person who is hanging from a cable"
    return re.sub("^(man|woman) ", "person who is ", thing.name).removesuffix(" a cliff")


def belongs(thing, word):
    """Whether a thing can be called by a noun or a category."""
    if word in KINDS:
        of_kind = LEXICON[thing.name].kind in KINDS[word] and thing.name not in NOT.get(word, ())
        return of_kind or thing.name in NAMED.get(word, ())
    return called(thing) == word


def the(scene, word):
    """The one thing that `the word` is. Most of it has to be in sight, painted over by what is nearer."""
    owner = np.full((256, 256), -1)
    things = sorted(scene.things, key=distance)
    for number, thing in enumerate(things):
        x0, y0, x1, y1 = thing.box
        owner[y0:y1, x0:x1] = number
    ((number, thing),) = [(i, thing) for i, thing in enumerate(things) if called(thing) == word]
    x0, y0, x1, y1 = thing.box
    assert (owner[y0:y1, x0:x1] == number).mean() >= 0.7
    return thing


def words(row, *patterns):
    """The words in a question, found by the pattern that fits it."""
    fits = [found.groups() for pattern in patterns if (found := re.fullmatch(pattern, row.question))]
    return fits[0]


def where(row, scene):
    (place,) = {row.answer.split()[-1]} & set(" ".join(SETTINGS[scene.setting].scenes).split())
    return row.answer if place else None


def color(row, scene):
    (word,) = words(row, r"Wh\w+ color (?:is|does) the (.*?)(?: have)?\?", r"What is the color of the (.*)\?")
    if word in ("wall", "curtain"):
        return scene.paint
    return the(scene, word.removeprefix("shirt of the ")).color


def count(row, scene):
    (word,) = words(row, r"How many (.*?) (?:are there|can you see|does the picture show)\?")
    names = [*KINDS, *map(called, scene.things)]
    (name,) = {name for name in names if word == ("people" if name == "person" else plural(name))}
    return NUMBERS[sum(belongs(thing, name) for thing in scene.things)]


def exists(row, scene):
    (word,) = words(row, r"(?:Is there|Can you see|Does the picture show) an? (.*)\?")
    return "yes" if any(belongs(thing, word) for thing in scene.things) else "no"


def what(row, scene):
    form = r"(?:What|Which)(?: kind of)? (.*) (?:is there|can you see|does the picture show)\?"
    found = re.fullmatch(form, row.question)
    fitting = [thing for thing in scene.things if belongs(thing, found[1])] if found else scene.things
    (answer,) = {thing.name for thing in fitting}
    return answer


def action(row, scene):
    people = [thing for thing in scene.things if belongs(thing, "person")]
    assert (len(people) > 1) == ("people" in row.question)
    (answer,) = {DOING.get(p.name) or called(p).removeprefix("person who is ") for p in people}
    return answer


def side(row, scene):
    form = r"(?:Is|On which side of the picture is|Which half of the picture is) the (.*?)"
    (word,) = words(row, form + r"(?: on the left or on the right| in, left or right)?\?")
    x0, _, x1, _ = the(scene, word).box
    assert abs(x0 + x1 - 256) / 2 > 0.08 * 256
    return "left" if x0 + x1 < 256 else "right"


def relation(row, scene):
    a, b = words(
        row,
        r"Is the (.*?) (?:to the )?left or (?:to the )?right of the (.*)\?",
        r"On which side of the (?P<b>.*) is the (?P<a>.*)\?",
    )
    if row.question.startswith("On"):
        a, b = b, a
    (x0, _, x1, _), (u0, _, u1, _) = the(scene, a).box, the(scene, b).box
    assert abs(x0 + x1 - u0 - u1) / 2 > 0.08 * 256
    return "left" if x0 + x1 < u0 + u1 else "right"


def height(row, scene):
    form = (
        r"(?:In the picture, is|Is|Does) the (.*?) (?:appear )?above or below the (.*?)(?: in the picture)?\?"
    )
    a, b = (the(scene, word).box for word in words(row, form))
    assert abs(a[1] + a[3] - b[1] - b[3]) / 2 > 0.08 * 256
    return "above" if a[3] < b[3] else "below"


def size(row, scene):
    b, a = words(
        row,
        r"Compared with the (.*), is the (.*) drawn bigger or smaller\?",
        r"(?:In the picture, is|Is) the (.*) bigger or smaller than the (.*?)(?: in the picture)?\?",
    )
    if not row.question.startswith("Compared"):
        a, b = b, a
    a, b = (the(scene, word).box for word in (a, b))
    ratio = (a[2] - a[0]) / (b[2] - b[0])
    assert max(ratio, 1 / ratio) > 1.25
    return "bigger" if ratio > 1 else "smaller"


def weather(row, scene):
    return WEATHER[scene.weather]


def time(row, scene):
    return scene.weather if scene.weather in ("sunset", "night") else "day"


NAIVE = {f.__name__: f for f in (where, color, count, exists, what, action, side, relation, height, size)}
NAIVE |= {"weather": weather, "time": time}


def test_questions_csv_is_what_the_code_makes(scenes, rows):
    assert questions(list(scenes.values())) == rows


def test_answers_follow_from_the_layout(scenes, rows):
    for row in rows:
        assert NAIVE[row.type](row, scenes[row.image_name]) == row.answer, row


def test_each_image_has_eight_different_questions(scenes, rows):
    asked = defaultdict(list)
    for row in rows:
        asked[row.image_name].append(row.question)
    assert list(asked) == list(scenes)
    assert min(map(len, asked.values())) >= 8
    assert all(len(set(own)) == len(own) for own in asked.values())


def test_types_are_many_and_worded_in_three_ways(rows):
    assert set(NAIVE) == {row.type for row in rows} and len(NAIVE) >= 9
    assert min(map(len, WORDINGS.values())) >= 3
    assert all(len(set(wordings)) == len(wordings) for wordings in WORDINGS.values())


def test_no_question_contains_its_answer(rows):
    for row in rows:
        if row.type in ("what", "color", "where", "weather", "action", "exists", "count"):
            assert not re.search(rf"\b{row.answer}\b", row.question), row


def test_questions_alone_say_little(rows):
    right, total = map(sum, zip(*question_only(rows).values()))
    assert right / total < 0.45


def test_question_only_finds_a_giveaway():
    rows = [
        Row(f"{i}.jpg", f"Is there a {'cat' if i % 2 else 'dog'}?", "no yes".split()[i % 2], "exists")
        for i in range(40)
    ]
    assert question_only(rows) == {"exists": (40, 40)}
    assert "100.0%" in list(report(rows))[1]


def test_yes_and_no_are_equally_frequent_for_each_question(rows):
    answers = defaultdict(Counter)
    for row in rows:
        if row.type == "exists":
            answers[row.question][row.answer] += 1
    assert all(counts["yes"] == counts["no"] for counts in answers.values())


@pytest.mark.parametrize("type", ["count", "side", "relation", "height", "size", "weather", "time"])
def test_answers_are_equally_frequent(rows, type):
    counts = Counter(row.answer for row in rows if row.type == type)
    four = counts.pop("four", 0)  # rarer in the images
    assert four <= max(counts.values()) <= min(counts.values()) + 3  # one for each wording


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (30, 5)])
def test_questions_of_another_archive(count, seed):
    other = {scene.name: scene for scene in (layout(index, seed) for index in range(count))}
    rows = questions(list(other.values()))
    assert rows == questions(list(other.values())) and rows
    for row in rows:
        assert NAIVE[row.type](row, other[row.image_name]) == row.answer, row


def test_only_questions_needs_no_font(tmp_path, capsys):
    path = tmp_path / "asked.csv"
    flags = ["--only-questions", "--questions", str(path), "--count", "20", "--font", "no-such.ttf"]
    assert main(flags) == 0
    written = path.read_text(encoding="utf-8").splitlines()
    assert written[0] == "image_name,question,answer,type"
    assert f"all {len(written) - 1:12,}" in capsys.readouterr().out
    assert main(flags) == 1 and f"{path} exists" in capsys.readouterr().err
