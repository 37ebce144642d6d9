"""How often the nearest answer is a right one, and the baselines that a model has to beat.

    chosen, scores = choose(predictor, features, bank, answer)  # a list of Q answers, their cosines (Q,)
    right = is_right(features.questions, chosen)                # (Q,) float64, 0 or 1
    accuracy(right, features.questions)                         # {"accuracy": 0.7, "accuracy_by_type": {...}}

`features` holds Q pairs of an image and a question. `answer` (A, Dt) are the embeddings of `bank`, the A
answers to choose from. An answer is right when the file has it for the pair.
"""

from collections import Counter

import torch

from models import answers
from models.metrics import interval

CHUNK = 1024  # pairs predicted at once
ANNOTATORS = 10  # of a question, in VQAv2 and VizWiz


@torch.no_grad()
def choose(predictor, features, bank, answer, image_of=None):
    """(the answer of `bank` with the highest cosine for each pair, a list of Q; these cosines, (Q,) float32).
    `predictor` is an AnswerPredictor. `image_of` (Q,) replaces the image of each pair."""
    questions = features.questions
    device = answer.device
    image_of = questions.image_of if image_of is None else image_of
    chosen, scores = [], []
    for pairs in torch.arange(len(image_of)).split(CHUNK):
        inputs = [questions.tokens[questions.question_of[pairs]]]
        if predictor.reads_image:
            images, which = image_of[pairs].unique(return_inverse=True)
            inputs += [features.image[images], features.places[images], which]
        predicted = predictor(*(rows.to(device) for rows in inputs))
        best = (predicted @ answer.T).max(1)
        chosen += best.indices.tolist()
        scores.append(best.values.cpu())
    return [bank[number] for number in chosen], torch.cat(scores)


def is_right(questions, chosen):
    """(Q,) float64: 1 where the file has the chosen answer for the pair, else 0."""
    hits = [float(answer in right) for answer, right in zip(chosen, questions.answers)]
    return torch.tensor(hits, dtype=torch.float64)


def accuracy(right, questions):
    """{"accuracy": fraction, "accuracy_by_type": {type: fraction}} of right (Q,)."""
    by_type = {}
    for value, kind in zip(right.tolist(), questions.types):
        by_type.setdefault(kind or "any", []).append(value)
    means = {kind: sum(values) / len(values) for kind, values in sorted(by_type.items())}
    return dict(accuracy=right.mean().item(), accuracy_by_type=means)


def intervals(right, questions):
    """The 95 % intervals of what `accuracy` gives, {"accuracy": (low, high), "accuracy_by_type": {...}},
    from a bootstrap over images."""

    def of(kept):
        images, number = questions.image_of[kept].unique(return_inverse=True)
        hits = torch.zeros(len(images), dtype=torch.float64).index_add(0, number, right[kept])
        return interval(hits, number.bincount(minlength=len(images)))

    kinds = [kind or "any" for kind in questions.types]
    by_type = {}
    for kind in sorted(set(kinds)):
        by_type[kind] = of(torch.tensor([found == kind for found in kinds]))
    return dict(accuracy=of(torch.ones(len(kinds), dtype=torch.bool)), accuracy_by_type=by_type)


def most_frequent(rows, questions):
    """A list with an answer for each pair, from the training rows alone: the most frequent one of the same
    question, else of its type, else of all."""
    by_question, by_type, overall = {}, {}, Counter()
    for row in rows:
        by_question.setdefault(row.question, Counter())[row.text] += 1
        by_type.setdefault(row.type, Counter())[row.text] += 1
        overall[row.text] += 1
    found = []
    for i, kind in zip(questions.question_of.tolist(), questions.types):
        counts = by_question.get(questions.texts[i]) or by_type.get(kind) or overall
        found.append(min(counts, key=lambda answer: (-counts[answer], answer)))
    return found


def derangement(image_of, images, seed=0):
    """(Q,) int64: another image for each pair, by a random cyclic shift of two images or more."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    return other[image_of]


def choices(model, features, bank, answer, training_rows):
    """{row of the table: a list of Q answers} of the baselines and of a VLJEPA. Without `training_rows` (a
    list of Row) the row of the most frequent answer is left out, and with one image that of mismatched
    images."""
    questions, predictor = features.questions, model.predictor
    images = len(features.image)
    found = {}
    if training_rows:
        found["most frequent answer"] = most_frequent(training_rows, questions)
    found["question only"], _ = choose(predictor.question_only, features, bank, answer)
    if images > 1:
        other = derangement(questions.image_of, images)
        found["mismatched images"], _ = choose(predictor.answers, features, bank, answer, other)
    found["this model"], _ = choose(predictor.answers, features, bank, answer)
    return found


def official(questions, chosen):
    """The accuracies of published data sets, where the file has what they need: "vqa_accuracy" where ten
    people answered each question, and POPE's measures where every answer is yes or no."""
    found = {}
    if all(right.total() == ANNOTATORS for right in questions.answers):
        scores = map(answers.vqa_accuracy, chosen, (list(right.elements()) for right in questions.answers))
        found["vqa_accuracy"] = sum(scores) / len(chosen)
    if {"yes", "no"} >= set(chosen).union(*questions.answers) and all(map(_is_one, questions.answers)):
        measures = answers.yes_no(chosen, [next(iter(right)) for right in questions.answers])
        found |= {name: measures[name] for name in ("precision", "recall", "f1", "yes_ratio")}
    return found


def _is_one(right):
    return len(right) == 1
