"""Linear baselines on the same frozen features: ridge regression and canonical correlation analysis (CCA).

    python -m tools.linear --csv train.csv --eval-csv dev.csv --images images
    python -m tools.linear --questions questions_train.csv --eval-questions questions_dev.csv --images images

They have a closed form, so no training is faster. What a trained predictor adds shows beside them. Ridge maps
image features to the mean embedding of an image's captions. CCA (Hotelling 1936) finds pairs of directions that
correlate most, and scores with the cosine after weighting each by its correlation (Gong et al., IJCV 2014). For
questions the input is the image's row beside the question's, and the output the answer's embedding. The
penalty is chosen on a sixth of the training images.
"""

import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from models import answering, metrics, script
from models.features import encode_archive, encode_texts
from models.features.load import dataset_of
from models.report import retrieval_header, retrieval_row
from models.text import TextEncoder
from models.vision import VisionEncoder

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # times the mean variance of the features
HELD_OUT = 6  # one image of so many is held out to choose by


def ridge(x, y, penalty):
    """(map of inputs, map of outputs): least squares of y (N, Dy) on x (N, Dx) with a penalty on the weights,
    times the mean variance of x. The outputs are left as they are."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    weights = torch.linalg.solve(_penalised(x, penalty), x.T @ y / len(x))  # (Dx, Dy)
    return lambda rows: (rows - x_mean) @ weights + y_mean, lambda rows: rows


def cca(x, y, penalty):
    """(map of inputs, map of outputs) onto the canonical directions of x (N, Dx) and y (N, Dy), each weighted
    by its correlation. The penalty is added to both covariances, times their mean variance."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    x_root = torch.linalg.cholesky(_penalised(x, penalty))
    y_root = torch.linalg.cholesky(_penalised(y, penalty))
    between = torch.linalg.solve_triangular(x_root, x.T @ y / len(x), upper=False)
    between = torch.linalg.solve_triangular(y_root, between.T, upper=False).T  # (Dx, Dy), whitened
    left, correlation, right = torch.linalg.svd(between, full_matrices=False)
    x_map = torch.linalg.solve_triangular(x_root.T, left, upper=True) * correlation
    y_map = torch.linalg.solve_triangular(y_root.T, right.T, upper=True) * correlation
    return lambda rows: (rows - x_mean) @ x_map, lambda rows: (rows - y_mean) @ y_map


def _penalised(x, penalty):
    """The covariance of centred rows x (N, D), with the penalty on its diagonal."""
    covariance = x.T @ x / len(x)
    return covariance + penalty * covariance.diagonal().mean() * torch.eye(len(covariance))


def fit(method, x, y, score):
    """The maps of `method` with the penalty of the highest score(maps), which looks at held-out rows."""
    return max((method(x, y, penalty) for penalty in PENALTIES), key=score)


def unit(rows):
    return F.normalize(rows, dim=1)


def caption_recalls(maps, features):
    """The dict of `metrics.retrieval` for images and captions after the two maps."""
    to_shared, text_map = maps
    return metrics.retrieval(unit(to_shared(features.image)), unit(text_map(features.text)), features.image_of)


def means(features):
    """(N, Dt): the mean caption embedding of each image."""
    total = torch.zeros(len(features.image), features.text.shape[1])
    count = features.image_of.bincount(minlength=len(total)).clamp_min(1)
    return total.index_add(0, features.image_of, features.text) / count[:, None]


def captions(method, chosen_by, train, test):
    """The dict of `metrics.retrieval` on `test`."""
    fit_on, held_out = chosen_by

    def score(maps):
        found = caption_recalls(maps, held_out)
        return found["text_retrieval_recall@1"] + found["image_retrieval_recall@1"]

    penalty = max(PENALTIES, key=lambda p: score(method(fit_on.image, means(fit_on), p)))
    return caption_recalls(method(train.image, means(train), penalty), test)


def asked(features):
    """(Q, Dv + Dt): the image beside the question, for each pair."""
    questions = features.questions
    pairs = [features.image[questions.image_of], questions.rows[questions.question_of]]
    return torch.cat([unit(rows) for rows in pairs], dim=1)


def accuracy(maps, features, bank, answer):
    """The share of pairs whose nearest answer of `bank`, embedded as answer (A, Dt), is right."""
    to_shared, answer_map = maps
    best = (unit(to_shared(asked(features))) @ unit(answer_map(answer)).T).argmax(1).tolist()
    return answering.is_right(features.questions, [bank[i] for i in best]).mean().item()


def answers(method, chosen_by, train, test, bank, answer):
    """The accuracy on `test`."""
    number = {text: i for i, text in enumerate(bank)}

    def targets(features):
        firsts = [right.most_common(1)[0][0] for right in features.questions.answers]
        return answer[[number[text] for text in firsts]]

    fit_on, held_out = chosen_by
    penalty = max(
        PENALTIES,
        key=lambda p: accuracy(method(asked(fit_on), targets(fit_on), p), held_out, bank, answer),
    )
    return accuracy(method(asked(train), targets(train), penalty), test, bank, answer)
