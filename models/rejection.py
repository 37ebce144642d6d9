"""When to say "none of these": the score from which a run was right nine times in ten on held-out images.

    scores, right = best_captions(predicted, text, image_of)      # (N,) each
    found = threshold(scores, right)                # dict(threshold=0.61, kept=40, of=200, curve)

The threshold belongs to the candidates that it was measured with: all captions that were held out, or all
answers of training. Other candidates, such as short labels, score lower or higher, so elsewhere it is a
starting point."""

import torch

from models.metrics import FEW

NONE = "none of these"
PRECISION = 0.9
POINTS = 20  # of the stored curve


def best_captions(predicted, text, image_of, chunk=1024):
    """(scores (N,) float32, right (N,) bool): the cosine of each image's best caption, and whether it is its
    own. Shapes as in models/metrics.py."""
    found = [(predicted[i : i + chunk] @ text.T).max(1) for i in range(0, len(predicted), chunk)]
    scores = torch.cat([best.values for best in found])
    chosen = torch.cat([best.indices for best in found])
    return scores, image_of[chosen] == torch.arange(len(predicted))


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
        reason = f"at no score are {PRECISION:.0%} of {FEW} or more of {stored['of']} held-out choices right"
    raise ValueError(f"{folder}: {reason}; give the score yourself, as in --reject 0.4")
