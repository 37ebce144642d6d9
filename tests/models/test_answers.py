"""models/answers.py: published worked values, naive loops, and scikit-learn."""

import doctest
import math
import random

import pytest

from models import answers
from models.answers import average_precision, normalise, vqa_accuracy, yes_no


def test_docstrings_show_what_runs():
    found = doctest.testmod(answers)
    assert found.attempted >= 8 and found.failed == 0


@pytest.mark.parametrize(("matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_of_ten_annotators(matches, accuracy):
    others = ["dog", "cat", "bird"] * 4
    assert vqa_accuracy("red", ["red"] * matches + others[: 10 - matches]) == pytest.approx(accuracy)


def test_vqa_accuracy_is_the_leave_one_out_mean():
    random.seed(0)
    for _ in range(200):
        given = random.choices("abcd", k=random.randint(2, 12))  # "a" is an article, "" once normalised
        guess = random.choice("abcd")
        left_out = [given[:i] + given[i + 1 :] for i in range(len(given))]
        mean = sum(min(rest.count(guess) / 3, 1) for rest in left_out) / len(given)
        assert vqa_accuracy(guess, given) == pytest.approx(mean)


def test_vqa_accuracy_normalises_only_where_annotators_differ():
    assert vqa_accuracy("Two", ["2"] * 10) == 0
    assert vqa_accuracy("Two", ["2"] * 9 + ["3"]) == 1
    assert vqa_accuracy("2", ["two"] * 9 + ["Two"]) == 1
    assert vqa_accuracy(" a\tred\n hat", ["a red hat"] * 10) == 1  # white space counts nowhere


@pytest.mark.parametrize("few", [[], ["yes"]])
def test_vqa_accuracy_of_too_few_annotators_is_refused(few):
    with pytest.raises(ValueError, match=str(len(few))):
        vqa_accuracy("yes", few)


NORMALISED = {  # from the description at visualqa.org/evaluation.html
    "YES": "yes",
    "three": "3",
    "none": "0",
    "ten": "10",
    "eleven": "eleven",
    "the dog on a mat": "dog on mat",
    "an": "",
    "another": "another",
    "dont": "don't",
    "don't": "don't",
    "wont isnt cant": "won't isn't can't",
    "youre hes im ive": "you're he's i'm i've",
    "5 oclock": "5 o'clock",
    "its well were ill": "its well were ill",
    "girl's": "girl's",
    "2:50 pm": "2:50 pm",
    "2:50 p.m.": "2:50 pm",
    "100,978": "100978",
    "red, white": "red white",
    "red,white": "red white",
    "black-and-white": "black and white",
    "[x] {y} (z)": "x y z",
    'a "stop" sign!': "stop sign",
    "left/right\\up_down": "left right up down",
    "3.5": "3.5",
    ".5": ".5",
    "st. john.": "st john",
    "$5 & 50%": "$5 & 50%",
}


@pytest.mark.parametrize(("answer", "normal"), NORMALISED.items())
def test_answer_is_normalised(answer, normal):
    assert normalise(answer) == normal
    assert normalise(normal) == normal


def test_yes_no_counts_yes_as_positive():
    found = yes_no(["yes"] * 3 + ["no"] * 5, ["yes", "yes", "no", "yes", "yes", "no", "no", "no"])
    assert found == pytest.approx(
        dict(accuracy=5 / 8, precision=2 / 3, recall=1 / 2, f1=4 / 7, yes_ratio=3 / 8)
    )


def test_yes_no_agrees_with_scikit_learn():
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    random.seed(0)
    for n in (1, 2, 5, 50):
        predicted, true = (random.choices(["yes", "no"], k=n) for _ in range(2))
        found = yes_no(predicted, true)
        peer = precision_recall_fscore_support(
            true, predicted, pos_label="yes", average="binary", zero_division=0, labels=["no", "yes"]
        )
        assert [found[key] for key in ("precision", "recall", "f1")] == pytest.approx(list(peer[:3]))
        assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))


def test_yes_no_ratio_over_nothing_is_zero():
    found = yes_no(["no", "no"], ["no", "yes"])
    assert (found["precision"], found["recall"], found["f1"], found["yes_ratio"]) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("predicted", "true", "place"),
    [(["yes", "red"], ["no", "no"], r"predicted\[1\].*'red'"), (["yes"], ["Yes"], r"true\[0\].*'Yes'")],
)
def test_yes_no_refuses_other_answers(predicted, true, place):
    with pytest.raises(ValueError, match=place):
        yes_no(predicted, true)


def test_average_precision_agrees_with_scikit_learn():
    from sklearn.metrics import average_precision_score

    random.seed(0)
    for n in (1, 2, 7, 100):
        scores = [random.randint(0, 9) / 9 for _ in range(n)]  # with ties
        answerable = [True] + random.choices([True, False], k=n - 1)
        assert average_precision(scores, answerable) == pytest.approx(
            average_precision_score(answerable, scores)
        )


def test_average_precision_of_constant_scores_is_the_share():
    assert average_precision([0.5] * 4, [False, True, False, False]) == 0.25


@pytest.mark.parametrize(
    ("scores", "answerable"),
    [([math.nan, 1], [True, False]), ([math.inf], [True]), ([0.1, 0.2], [False] * 2)],
)
def test_average_precision_without_meaning_is_refused(scores, answerable):
    with pytest.raises(ValueError, match="average precision"):
        average_precision(scores, answerable)


@pytest.mark.parametrize("measure", [yes_no, average_precision])
@pytest.mark.parametrize(("predicted", "true"), [([], []), (["yes"], ["yes", "no"])])
def test_lists_that_do_not_match_are_refused(measure, predicted, true):
    with pytest.raises(ValueError, match=f"{len(predicted)} and {len(true)}"):
        measure(predicted, true)
