"""tools/questions on captions of a line or two: what each rule asks, and what it leaves out."""

import csv
import re
from collections import Counter, defaultdict

import pytest

from tests.conftest import ROOT
from tools.prepare import write_csv
from tools.questions import asking, evidence
from tools.questions.__main__ import HEADER, SHEET, main, sample
from tools.questions.reading import ing, plural, present, read


def rows(*captions):
    """(question, answer, type) rows made of the captions of one image, without those of exists."""
    scenes = evidence.scenes([("a.jpg", caption) for caption in captions])
    return {row[1:] for row in asking.rows_of(asking.ask(scenes)) if row[3] != "exists"}


def reasons(*captions):
    """{question: why it is not asked} of one image."""
    found = asking.ask(evidence.scenes([("a.jpg", caption) for caption in captions]))
    return {f.question: f.reason for f in found if f.reason}


RULES = {
    "object": (
        ["A man is riding a bike down the street ."],
        {
            ("What is the man riding?", "bicycle", "object"),
            ("What is the man doing?", "riding a bicycle", "action"),
            ("Who is riding a bicycle?", "man", "who"),
            ("Where is this?", "on the street", "where"),
            ("Where is the man?", "on the street", "where"),
        },
    ),
    "object on a table": (
        ["There are two apples on a table .", "An apple on the table"],
        {
            ("What is on the table?", "apples", "object"),
            ("What is on the table?", "apple", "object"),
            ("How many apples are there?", "two", "count"),
        },
    ),
    "animal": (
        ["A dog is barking ."],
        {
            ("What animal is barking?", "dog", "object"),
            ("What is the dog doing?", "barking", "action"),
        },
    ),
    "who": (
        ["A girl in a red dress is dancing .", "A child dances ."],
        {
            ("Who is dancing?", "girl", "who"),
            ("What is the girl doing?", "dancing", "action"),
            ("What is the child doing?", "dancing", "action"),
            ("What color is the dress?", "red", "color"),
        },
    ),
    "color": (
        ["A black and white dog with a red collar .", "The white dog .", "A dog ."],
        {
            ("What color is the dog?", "black", "color"),
            ("What color is the dog?", "white", "color"),
            ("What color is the collar?", "red", "color"),
        },
    ),
    "color of a pair": (
        ["Someone in blue jeans"],
        {("What color are the jeans?", "blue", "color")},
    ),
    "count": (
        ["Two black dogs play .", "2 dogs on a sled", "A dog near a dog house ."],
        {("How many dogs are there?", "two", "count")},
    ),
    "where": (
        ["A boat is floating on the water .", "A boat on the water .", "A small boat ."],
        {("Where is this?", "on the water", "where"), ("Where is the boat?", "on the water", "where")},
    ),
    "where, before": (
        ["In the kitchen there is a cat ."],
        {("Where is this?", "in a kitchen", "where"), ("Where is the cat?", "in a kitchen", "where")},
    ),
    "action": (
        ["A boy plays soccer .", "The boy is smiling ."],
        {
            ("What is the boy doing?", "playing soccer", "action"),
            ("What is the boy doing?", "smiling", "action"),
            ("Who is playing soccer?", "boy", "who"),
            ("Who is smiling?", "boy", "who"),
            ("What is the boy playing?", "soccer", "object"),
        },
    ),
}


@pytest.mark.parametrize(("captions", "expected"), RULES.values(), ids=RULES)
def test_rule_gives_exactly_these_rows(captions, expected):
    assert rows(*captions) == expected


LEFT_OUT = {
    "two colors": (["A red hat .", "A blue hat ."], {"What color is the hat?": evidence.CONTRADICT}),
    "two hats": (["A red hat and a red hat ."], {"What color is the hat?": evidence.SEVERAL}),
    "the shirt of one of two": (
        ["A man in a red shirt and a woman ."],
        {"What color is the shirt?": evidence.SEVERAL},
    ),
    "sitting and running": (
        ["A dog sits .", "A dog is running ."],
        {
            "What is the dog doing?": evidence.CONTRADICT,
            "What animal is sitting?": evidence.CONTRADICT,
            "What animal is running?": evidence.CONTRADICT,
        },
    ),
    "boy and girl": (
        ["A boy is dancing .", "A girl in white"],
        {"What is the boy doing?": evidence.CONTRADICT, "Who is dancing?": evidence.CONTRADICT},
    ),
    "given away": (
        ["A skier is skiing ."],
        {"What is the skier doing?": evidence.GIVEN, "Who is skiing?": evidence.GIVEN},
    ),
    "two numbers": (
        ["Two cats", "Two cats", "Three cats"],
        {"How many cats are there?": evidence.CONTRADICT},
    ),
    "one caption of three": (
        ["Two cats", "cats", "some cats"],
        {"How many cats are there?": evidence.SINGLE},
    ),
    "inside and outside": (
        ["A person in a kitchen", "A person in the snow"],
        {"Where is this?": evidence.CONTRADICT, "Where is the person?": evidence.CONTRADICT},
    ),
    "a statue": (["A statue near a red car"], {"What color is the car?": evidence.DEPICTED}),
}


@pytest.mark.parametrize(("captions", "expected"), LEFT_OUT.values(), ids=LEFT_OUT)
def test_question_is_left_out_for_its_reason(captions, expected):
    assert rows(*captions) == set()
    found = reasons(*captions)
    assert {question: found.get(question) for question in expected} == expected


SILENT = {
    "a longer noun": ["A dog sled", "a bike rack", "a black horse racing track", "A beach ball bat thing"],
    "a subject of another verb": ["A woman with a dog runs ."],
    "clothes": ["A man in swimming trunks and running shoes ."],
    "about to": ["A boy is about to jump ."],
    "somewhere else": ["A boy jumps into the water .", "A boy near the water ."],
    "a toy": ["There is a red toy car ."],
    "a game": ["The game of football ."],
}


@pytest.mark.parametrize("captions", SILENT.values(), ids=SILENT)
def test_nothing_is_read_into(captions):
    for caption in captions:
        types = {row[2] for row in rows(caption)}
        assert not types & {"color", "count", "where"}, caption
        assert "running" not in {row[1] for row in rows(caption)}


def test_forms_of_words_are_english():
    assert [
        plural(word) for word in ("dog", "fireman", "puppy", "boy", "bird of prey", "couch", "human")
    ] == [
        "dogs",
        "firemen",
        "puppies",
        "boys",
        "birds of prey",
        "couches",
        "humans",
    ]
    assert [ing(verb) for verb in ("run", "ride", "lie", "ski", "see", "play")] == [
        "running",
        "riding",
        "lying",
        "skiing",
        "seeing",
        "playing",
    ]
    assert [present(verb) for verb in ("run", "carry", "catch", "fish", "have")] == [
        "runs",
        "carries",
        "catches",
        "fishes",
        "has",
    ]


def test_phrase_has_its_number_colors_and_tokens():
    (phrase,) = read("Two small black and white dogs .").phrases
    assert phrase[:8] == ("dog", "animal", 0, 6, True, 2, ("black", "white"), False)


def test_numbers_of_one_are_as_many_as_others():
    images = {"two.jpg": ["Two cats", "Two cats"]} | {f"{i}.jpg": ["A cat", "The cat"] for i in range(9)}
    scenes = evidence.scenes([(name, text) for name, texts in images.items() for text in texts])
    made = asking.rows_of(asking.ask(scenes))
    assert Counter(row[2] for row in made if row[3] == "count") == {"two": 1, "one": 1}


@pytest.fixture(scope="module")
def drawn():
    """The questions of the drawn archive, as (scenes, found)."""
    with open(ROOT / "caption.csv", encoding="utf-8", newline="") as file:
        scenes = evidence.scenes(list(csv.reader(file))[1:])
    return scenes, asking.ask(scenes)


def test_yes_and_no_are_balanced_for_each_noun(drawn):
    answers = defaultdict(Counter)
    for _, question, answer, kind in asking.rows_of(drawn[1]):
        if kind == "exists":
            answers[question][answer] += 1
    assert len(answers) > 50
    assert all(counted["yes"] == counted["no"] <= 100 for counted in answers.values())


def test_exists_gives_exactly_these_rows():
    scenes = evidence.scenes([("a.jpg", "A cat"), ("b.jpg", "Two boats")])
    assert [row for row in asking.rows_of(asking.ask(scenes)) if row[3] == "exists"] == [
        ("a.jpg", "Is there a boat?", "no", "exists"),
        ("a.jpg", "Is there a cat?", "yes", "exists"),
        ("b.jpg", "Is there a boat?", "yes", "exists"),
        ("b.jpg", "Is there a cat?", "no", "exists"),
    ]


def test_yes_is_said_of_what_a_caption_names_and_no_of_what_none_does(drawn):
    texts = {scene.image: " ".join(scene.texts).lower() for scene in drawn[0]}
    asked = {"dog": "dog|puppy|poodle", "couch": "couch|sofa", "giraffe": "giraffe"}
    seen = Counter()
    for image, question, answer, kind in asking.rows_of(drawn[1]):
        noun = question.removeprefix("Is there a ").strip("?")
        if kind == "exists" and noun in asked:
            named = re.search(rf"\b({asked[noun]})", texts[image].replace("hot dog", ""))
            assert bool(named) == (answer == "yes"), (image, question, answer)
            seen[noun] += 1
    assert min(seen[noun] for noun in asked) >= 2


def test_no_is_not_said_where_a_caption_has_a_broader_word():
    scenes = evidence.scenes(
        [("a.jpg", "A parrot"), ("b.jpg", "A bird"), ("c.jpg", "A macaw"), ("d.jpg", "A bed")]
    )
    made = asking.rows_of(asking.ask(scenes))
    assert {row[0] for row in made if row[1:3] == ("Is there a parrot?", "no")} == {"d.jpg"}


def test_no_noun_is_asked_after_that_no_caption_names():
    scenes = evidence.scenes([("a.jpg", "A cat"), ("b.jpg", "A boat")])
    questions = {row[1] for row in asking.rows_of(asking.ask(scenes)) if row[3] == "exists"}
    assert questions == {"Is there a cat?", "Is there a boat?"}


def test_seed_decides_every_draw(drawn):
    scenes, found = drawn
    assert asking.ask(scenes) == found
    assert asking.ask(scenes, seed=1) != found
    made = asking.rows_of(found)
    assert sample(made, 70, 0) == sample(made, 70, 0) != sample(made, 70, 1)


def test_sample_has_as_many_of_each_type_as_there_are(drawn):
    drawn_rows = sample(asking.rows_of(drawn[1]), 70, 0)
    assert set(Counter(row[3] for row in drawn_rows).values()) == {10}
    few = [("a", "q", str(i), "who") for i in range(3)] + [("a", "q", str(i), "color") for i in range(99)]
    assert Counter(row[3] for row in sample(few, 20, 0)) == {"who": 3, "color": 17}


def test_found_is_asked_plus_left_out(drawn):
    for name, total in asking.tally(drawn[1]).items():
        left_out = sum(n for key, n in total.items() if key not in ("found", "asked", "rows", "images"))
        assert total["found"] == total["asked"] + left_out > 0, name
    made = asking.rows_of(drawn[1])
    assert sum(total["rows"] for total in asking.tally(drawn[1]).values()) == len(made) == len(set(made))


def test_no_answer_is_given_away(drawn):
    assert [row for row in asking.rows_of(drawn[1]) if evidence.given_away(row[1], row[2])] == []


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "mine.csv"
    write_csv(
        path, [("a, b.jpg", "Two dogs run .")] * 3 + [("c.jpg", "A red car"), ("d.jpg", "Nothing to see")]
    )
    return path


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_output_has_the_four_columns(captions, tmp_path, capsys):
    out = tmp_path / "q.csv"
    assert main(["--csv", str(captions), "--out", str(out), "--sample", "3"]) == 0
    header, *made = table(out)
    assert tuple(header) == HEADER == ("image_name", "question", "answer", "type")
    assert ["a, b.jpg", "How many dogs are there?", "two", "count"] in made
    assert ["c.jpg", "What color is the car?", "red", "color"] in made
    header, *judged = table(tmp_path / "q_sheet.csv")
    assert tuple(header) == SHEET and len(judged) == 3 and {row[-1] for row in judged} == {""}
    printed = capsys.readouterr().out
    assert "5 captions of 3 images read = 4 used + 1 unused" in printed


def test_other_columns_are_read(tmp_path):
    source, out = tmp_path / "mine.tsv", tmp_path / "q.csv"
    source.write_text("file\ttext\nx.jpg\tA red car\n", encoding="utf-8")
    flags = ["--image-column", "file", "--caption-column", "text"]
    assert main(["--csv", str(source), "--out", str(out), *flags]) == 0
    assert table(out)[1:] == [["x.jpg", "What color is the car?", "red", "color"]]


def test_files_are_not_replaced_unasked(captions, tmp_path, capsys):
    out = tmp_path / "q.csv"
    out.write_text("mine")
    assert main(["--csv", str(captions), "--out", str(out)]) == 1
    assert f"{out} exists" in capsys.readouterr().err and out.read_text() == "mine"
    assert main(["--csv", str(captions), "--out", str(out), "--overwrite"]) == 0
    assert main(["--csv", str(captions), "--out", str(captions), "--overwrite"]) == 1


def test_captions_without_a_question_are_an_error(tmp_path, capsys):
    source, out = tmp_path / "mine.csv", tmp_path / "q.csv"
    write_csv(source, [("x.jpg", "Ein Hund läuft .")])
    assert main(["--csv", str(source), "--out", str(out)]) == 1
    assert str(source) in capsys.readouterr().err and not out.exists()
