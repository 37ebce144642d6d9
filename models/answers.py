"""The official accuracies of answers to questions. Pure functions of text and numbers.

>>> vqa_accuracy("two", ["2"] * 3 + ["3"] * 7)
0.9
>>> yes_no(["yes", "yes"], ["yes", "no"])["accuracy"]
0.5
>>> average_precision([0.9, 0.1], [True, False])
1.0

VQAv2 and VizWiz take `vqa_accuracy`, POPE `yes_no`, and VizWiz's second task `average_precision`. GQA, CLEVR,
TallyQA and COCO-QA count an answer as right when it equals the one given.
"""

import re

NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), [0, *range(11)]))
ARTICLES = {"a", "an", "the"}
# Contractions by ending, and the words that take it. Left out is what is a common word without its
# apostrophe: its, were, well, ill, shed, id.
ENDINGS = {
    "n't": "ai are ca could did do does had has have is might must need should was were wo would",
    "'ve": "could i might must should they we what who would you",
    "'s": "he how let she somebody someone something that there what when where who why",
    "'d": "he how it somebody someone that there they what when where who why you",
    "'ll": "how it somebody someone that they what who you",
    "'re": "they what why you",
    "'m": "i",
}
CONTRACTIONS = {"oclock": "o'clock", "maam": "ma'am", "yall": "y'all"} | {
    word + ending.replace("'", ""): word + ending
    for ending, words in ENDINGS.items()
    for word in words.split()
}
# As in the evaluation script: of ASCII punctuation, an answer keeps ' : # $ % & * ^ | ~ and a decimal point.
PUNCTUATION = re.compile(r"[]!\"()+,/;<=>?@\[\\_`{}-]")
COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
POINT = re.compile(r"\.(?!\d)")  # one that no digit follows


def normalise(answer):
    """An answer as VQA's evaluation compares it (visualqa.org/evaluation.html): lower case, no punctuation,
    digits for number words up to ten, no articles, apostrophes in contractions.

    >>> normalise("The Two dogs, dont they?"), normalise("100,978"), normalise("2:50 p.m."), normalise("1.5")
    ("2 dogs don't they", '100978', '2:50 pm', '1.5')
    """
    text = PUNCTUATION.sub(" ", COMMA_IN_NUMBER.sub("", answer.lower()))
    words = [str(NUMBERS.get(word, word)) for word in POINT.sub("", text).split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(answer, answers):
    """Accuracy from 0 to 1 of an answer, given those of the annotators: the mean over all ways to leave one
    annotator out of min(matches / 3, 1) (Antol et al. 2015). Of ten that is 0.3, 0.6, 0.9 and 1 for one, two,
    three and four matches.

    Answers are normalised only where the annotators differ, as the evaluation does. ValueError for fewer than
    two annotators.

    >>> vqa_accuracy("yes", ["yes"] * 10), vqa_accuracy("Yes", ["yes"] * 10)
    (1.0, 0.0)
    >>> vqa_accuracy("Yes", ["yes"] * 9 + ["no"])
    1.0
    """
    if len(answers) < 2:
        raise ValueError(f"accuracy leaves one annotator out, so it needs two or more, got {len(answers)}")
    answer, *answers = (" ".join(text.split()) for text in (answer, *answers))
    if len(set(answers)) > 1:
        answer, *answers = map(normalise, (answer, *answers))
    n, matches = len(answers), answers.count(answer)
    # Leaving a match out (matches ways) keeps one match fewer; leaving another answer out keeps all.
    thirds = matches * min(matches - 1, 3) + (n - matches) * min(matches, 3)
    return thirds / (3 * n)


def yes_no(predicted, true):
    """{accuracy, precision, recall, f1, yes_ratio} from 0 to 1 of answers "yes" and "no", where yes is the
    positive class (POPE, Li et al. 2023). A ratio over nothing is 0. ValueError for any other answer, and for
    lists that are empty or of different lengths.

    >>> yes_no(["yes", "yes", "no", "no"], ["yes", "no", "no", "no"])
    {'accuracy': 0.75, 'precision': 0.5, 'recall': 1.0, 'f1': 0.6666666666666666, 'yes_ratio': 0.5}
    """
    _check_pairs(predicted, true)
    for name, answers in (("predicted", predicted), ("true", true)):
        for i, answer in enumerate(answers):
            if answer not in ("yes", "no"):
                raise ValueError(
                    f'{name}[{i}]: expected "yes" or "no", found {answer!r}; rank only these two'
                )
    pairs = list(zip(predicted, true))
    hits, said, there = pairs.count(("yes", "yes")), predicted.count("yes"), true.count("yes")
    return dict(
        accuracy=sum(guess == truth for guess, truth in pairs) / len(pairs),
        precision=hits / max(said, 1),
        recall=hits / max(there, 1),
        f1=2 * hits / max(said + there, 1),
        yes_ratio=said / len(pairs),
    )


def average_precision(scores, answerable):
    """Average precision from 0 to 1, VizWiz's measure of scores that are higher the more likely a question is
    answerable: the sum of precision times the step in recall, over the thresholds from high to low. Equal
    scores cross a threshold together, so constant scores give the share of answerable questions. ValueError
    for scores that are not finite, and where no question is answerable.

    >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [False, False, True, True]), 4)
    0.8333
    """
    _check_pairs(scores, answerable)
    if not all(abs(score) < float("inf") for score in scores):
        raise ValueError("scores hold non-finite numbers; their average precision means nothing")
    positives = sum(map(bool, answerable))
    if not positives:
        raise ValueError(f"none of {len(scores)} questions is answerable; average precision needs one")
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    total, hits, counted = 0.0, 0, 0
    for seen, i in enumerate(order, 1):
        hits += bool(answerable[i])
        if seen == len(order) or scores[order[seen]] != scores[i]:
            total += hits / seen * (hits - counted)
            counted = hits
    return total / positives


def _check_pairs(predicted, true):
    if not predicted or len(predicted) != len(true):
        raise ValueError(
            f"expected a true answer for each predicted one, got {len(predicted)} and {len(true)}"
        )
