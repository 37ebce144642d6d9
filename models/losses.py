"""How wrong a batch of predictions is. Pure functions: predicted (B, D) and text (B, D) are unit rows, row i a pair;
image_of (B,) int64 says which image row i is about, so that two captions of one image are never each other's negatives.

    cosine(predicted, text, image_of)                    1 - cosine similarity, the documented default
    info_nce(predicted, text, image_of, scale)           the VL-JEPA paper's (section 3.1), both directions
    sigmoid(predicted, text, image_of, scale, bias)      SigLIP's (Zhai et al. 2023, equation 1)

Each returns a scalar, the mean over the batch. `scale` is 1 / temperature.
"""

import torch.nn.functional as F

# name -> (function's start values for its learned scalars: scale, bias). cosine has none.
LOSSES = {"cosine": None, "info_nce": (14.3, 0.0), "sigmoid": (10.0, -10.0)}
MAX_SCALE = 100.0  # CLIP (Radford et al. 2021, section 2.5) clamps the temperature at 0.01


def cosine(predicted, text, image_of=None, scale=None, bias=None):
    """1 - cosine similarity. It has no negatives: nothing stops predictions from crowding together."""
    return 1 - F.cosine_similarity(predicted, text, dim=-1).mean()


def info_nce(predicted, text, image_of, scale, bias=None):
    """Mean of image-to-text and text-to-image InfoNCE. Every row of the same image is a positive, each against the rows
    of other images alone: -log(e^s+ / (e^s+ + sum e^s-)), averaged over a row's positives. With one caption an image this
    is CLIP's loss."""
    logits = scale * predicted @ text.T  # (B, B)
    same = image_of[:, None] == image_of[None]  # (B, B)

    def one_way(logits):
        negatives = logits.masked_fill(same, -1e9).logsumexp(dim=1, keepdim=True)  # (B, 1); finite, so its gradient is too
        each = F.softplus(negatives - logits) * same
        return (each.sum(1) / same.sum(1)).mean()

    return (one_way(logits) + one_way(logits.T)) / 2


def sigmoid(predicted, text, image_of, scale, bias):
    """Every (image, caption) pair of the batch is its own yes-or-no question; summed over pairs, divided by B."""
    logits = scale * predicted @ text.T + bias  # (B, B)
    same = image_of[:, None] == image_of[None]
    return -F.logsigmoid(logits * (2.0 * same - 1)).sum() / len(logits)
