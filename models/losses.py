"""How wrong a batch of predictions is. Pure functions of the triple that metrics.py takes too:

    predicted (N, D)   one unit row per image of the batch        text (M, D)   one unit row per caption
    image_of  (M,)     the image, a row of `predicted`, that each caption describes

    cosine(predicted, text, image_of)                    1 - cosine similarity, the documented default
    info_nce(predicted, text, image_of, scale)           the VL-JEPA paper's (section 3.1), both directions
    sigmoid(predicted, text, image_of, scale, bias)      SigLIP's (Zhai et al. 2023, equation 1)

Each returns a scalar. `scale` is 1 / temperature. Captions of one image are never each other's negatives.
"""

import torch
import torch.nn.functional as F

# The values that the learned scale and bias of each loss start from; cosine has neither.
LOSSES = {"cosine": None, "info_nce": (14.3, 0.0), "sigmoid": (10.0, -10.0)}
MAX_SCALE = 100.0  # CLIP (Radford et al. 2021, section 2.5) clamps the temperature at 0.01


def cosine(predicted, text, image_of, scale=None, bias=None):
    """Mean over captions of 1 - cosine similarity. No negatives keep predictions apart."""
    return 1 - F.cosine_similarity(predicted[image_of], text, dim=-1).mean()


def info_nce(predicted, text, image_of, scale, bias=None):
    """The mean of two InfoNCE losses. With one caption per image this is CLIP's loss.

    Text to image: each caption has one right image among the N. Image to text: an image may have several
    right captions. Each of them competes with the captions of other images only, and their losses are
    averaged."""
    logits = scale * predicted @ text.T  # (N, M)
    caption = torch.arange(len(text), device=text.device)
    right = logits[image_of, caption]  # (M,)
    masked = torch.tensor(-1e9, device=logits.device, dtype=logits.dtype)
    wrong = logits.index_put((image_of, caption), masked)  # (N, M) without the right captions
    image_to_text = F.softplus(wrong.logsumexp(1)[image_of] - right)  # (M,)
    captions = image_of.bincount(minlength=len(predicted)).clamp_min(1)  # (N,) of each image
    weight = 1 / captions[image_of]  # (M,)
    text_to_image = logits.logsumexp(0) - right  # (M,)
    return ((image_to_text * weight).sum() / len(predicted) + text_to_image.mean()) / 2


def answer_bank(predicted, answer, answer_of, share, scale):
    """Softmax over all answers, for B questions: predicted (B, D) and answer (A, D) are unit rows, answer_of
    (B, W) the right answers of each question and share (B, W) how much each counts (Hu, Chao and Sha, CVPR
    2018). The answers are a constant matrix, so no answer of another question is a false negative."""
    log_likelihood = (scale * predicted @ answer.T).log_softmax(dim=1)  # (B, A)
    return -(log_likelihood.gather(1, answer_of) * share).sum() / len(predicted)


def sigmoid(predicted, text, image_of, scale, bias):
    """Each (image, caption) pair of the batch is a yes-or-no question; the sum over pairs, divided by M."""
    logits = scale * predicted @ text.T + bias  # (N, M)
    caption = torch.arange(len(text), device=text.device)
    true = logits[image_of, caption]  # (M,)
    return (F.softplus(logits).sum() - true.sum()) / len(text)  # -log sigmoid(x) = softplus(x) - x
