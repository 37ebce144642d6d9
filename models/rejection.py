"""When to say "none of these": below the score from which nine in ten pairs of held-out images and captions
belong together.

    scores, right = pairs(predicted, text, image_of)   # (2 M,) each
    found = threshold(scores, right)                   # dict(threshold=0.40, kept=468, of=1150, curve=...)

Each caption is paired with its own image and with another one, so that by chance half of the pairs belong
together. Whether the best of many captions is an image's own is another question: no cosine of a small model
answers that nine times in ten (docs/training.md)."""

import torch

from models.metrics import FEW

NONE = "none of these"
# What the thresholds that a model stores are learned from.
WHAT = dict(reject="pairs of an image and a caption", reject_answers="answers")
PRECISION = 0.9
POINTS = 20  # of the stored curve, and the threshold


def pairs(predicted, text, image_of):
    """(scores (2 M,) float32, right (2 M,) bool): the cosine of each caption with its own image, then with
    another image of at least two, and which of these belong together. Shapes as in models/metrics.py."""
    images = len(predicted)
    other = (image_of + images // 2) % images
    scores = torch.cat([(predicted[of] * text).sum(1) for of in (image_of, other)])
    return scores, torch.arange(len(scores)) < len(text)


def threshold(scores, right):
    """The lowest score from which at least PRECISION of the choices are right, with the curve behind it: a
    dict with `threshold` (None where no score is enough, or is so for fewer than FEW choices), `kept`, the
    number of choices from there on, `of`, the number of all, and `curve`, a list of [score, share right from
    there on, share kept].

    scores (N,) are those of the chosen candidates, right (N,) says which of the choices are right."""
    scores, order = scores.double().sort(descending=True)
    kept = torch.arange(1, len(scores) + 1)
    precision = right[order].double().cumsum(0) / kept
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[:-1] > scores[1:]  # equal scores are kept together
    enough = ((precision >= PRECISION) & (kept >= FEW) & last).nonzero()[:, 0]
    found = dict(threshold=None, kept=0, of=len(scores))
    if len(enough):
        found |= dict(threshold=scores[enough[-1]].item(), kept=int(kept[enough[-1]]))
    at = torch.linspace(0, len(scores) - 1, min(POINTS, len(scores))).round().long()
    at = torch.cat([at, enough[-1:]]).unique()  # the threshold is a point of the curve
    points = zip(scores[at], precision[at], kept[at] / len(scores))
    return found | dict(curve=[[round(float(value), 4) for value in point] for point in points])


def kept(threshold, scores, right):
    """What a threshold keeps of other choices: a dict with it and the counts `kept`, `right` and `of`."""
    chosen = scores >= threshold
    counts = dict(kept=int(chosen.sum()), right=int(right[chosen].sum()), of=len(scores))
    return dict(threshold=threshold) | counts


def threshold_of(record, key):
    """The threshold that a model's record stores under `key`, or None: "reject" for captions and labels,
    "reject_answers" for answers."""
    return ((record.get("held_out") or {}).get(key) or {}).get("threshold")


def least_score(record, key, folder):
    """`threshold_of`; ValueError with the reason where there is none."""
    if (found := threshold_of(record, key)) is not None:
        return found
    stored = (record.get("held_out") or {}).get(key)
    reason = "no image was held out to learn from which score it is right"
    if stored:
        most = f"{stored['of']} held-out {WHAT[key]}"
        reason = f"of its {most}, no {FEW} or more of the best are right {PRECISION:.0%} of the time"
    raise ValueError(f"{folder}: {reason}; give a score yourself, such as 0.4")
