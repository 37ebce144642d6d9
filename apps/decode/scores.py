"""How good captions are: BLEU-4 and CIDEr-D, with intervals."""

import re

import numpy as np
import torch

from models.metrics import bootstrap, interval


def words(text):
    """A caption as the metrics read it: lower case, words of letters and digits with apostrophes inside,
    separated by one space. This is not the Penn Treebank tokeniser of the literature, which needs Java and
    also splits "dog's"."""
    return " ".join(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower()))


def counts(written, references):
    """(rows (N, 10), cider (N,)), float64, for N captions and N lists of references.

    A row holds what BLEU-4 sums over images: matches of 1 to 4 words, n-grams of 1 to 4 words, the length,
    and the length of the nearest reference. CIDEr-D takes its document frequencies from these references.
    Raises ValueError for fewer than two images, since every word is then in every document."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider

    if len(references) < 2:
        raise ValueError(
            f"{len(references)} images; CIDEr weighs words by how rare they are, so it needs two"
        )
    written = [words(text) for text in written]
    references = [[words(text) for text in texts] for texts in references]
    bleu = BleuScorer(n=4)
    for text, texts in zip(written, references):
        bleu += (text, texts)
    rows = [
        [*c["correct"], *c["guess"], c["testlen"], _nearest(c["reflen"], c["testlen"])] for c in bleu.ctest
    ]
    singles = {i: [text] for i, text in enumerate(written)}
    _, cider = Cider().compute_score(dict(enumerate(references)), singles)
    return torch.tensor(rows, dtype=torch.double), torch.from_numpy(np.asarray(cider, dtype=float))


def _nearest(lengths, length):
    return min((abs(one - length), one) for one in lengths)[1]


def bleu4(totals):
    """BLEU-4, 0 to 1, of sums (..., 10) of the rows of `counts`."""
    matches, grams, length, reference = totals.split([4, 4, 1, 1], dim=-1)
    precision = (matches.clamp_min(1e-15) / grams.clamp_min(1e-9)).log().mean(-1).exp()
    brevity = (1 - reference / length.clamp_min(1e-9)).clamp_max(0).exp()[..., 0]
    return precision * brevity


def intervals(rows, cider, seed=0):
    """[(value, low, high)] of BLEU-4 and CIDEr-D in percent, with the 95 % interval of a bootstrap over
    images."""
    bleu = (bleu4(rows.sum(0)).item(), *bootstrap(rows, bleu4, seed))
    mean = (cider.mean().item(), *interval(cider, torch.ones(len(cider)), seed))
    return [tuple(100 * value for value in found) for found in (bleu, mean)]
