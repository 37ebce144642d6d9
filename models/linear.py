"""Linear baselines in closed form, on the features that a predictor is trained on: ridge regression, and
canonical correlation analysis.

    of_image, of_text = cca(train.image, means, penalty=0.1)      # two maps of rows
    recalls(cca, 0.1, train, test)                                # the dict of metrics.retrieval
    accuracy(ridge, 0.1, bank, train, test)                       # of answers

`train` and `test` are Features.
"""

import torch
import torch.nn.functional as F

from models import answering, metrics
from models.dataset import split_by_image
from models.predictor import mean_pool

PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)  # times the mean variance of the features
SIXTH = 1 / 6  # of the training images, held out to choose by


def ridge(x, y, penalty):
    """(map of inputs, map of outputs): least squares of y (N, Dy) on x (N, Dx) with a penalty on the weights.
    Outputs are left as they are."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    weights = torch.linalg.solve(_covariance(x, penalty), (x - x_mean).T @ (y - y_mean) / len(x))  # (Dx, Dy)
    return lambda rows: (rows - x_mean) @ weights + y_mean, lambda rows: rows


def cca(x, y, penalty):
    """(map of inputs, map of outputs) onto the canonical directions of x (N, Dx) and y (N, Dy), each weighted
    by its correlation."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    x_root = torch.linalg.cholesky(_covariance(x, penalty))
    y_root = torch.linalg.cholesky(_covariance(y, penalty))
    between = (x - x_mean).T @ (y - y_mean) / len(x)  # (Dx, Dy)
    between = torch.linalg.solve_triangular(x_root, between, upper=False)
    between = torch.linalg.solve_triangular(y_root, between.T, upper=False).T
    left, correlation, right = torch.linalg.svd(between, full_matrices=False)
    x_map = torch.linalg.solve_triangular(x_root.T, left, upper=True) * correlation
    y_map = torch.linalg.solve_triangular(y_root.T, right.T, upper=True) * correlation
    return lambda rows: (rows - x_mean) @ x_map, lambda rows: (rows - y_mean) @ y_map


METHODS = {"ridge regression": ridge, "CCA": cca}


def _covariance(x, penalty):
    """(D, D), of rows x (N, D); the penalty, times the mean variance, is added to its diagonal."""
    covariance = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    return covariance + penalty * covariance.diagonal().mean() * torch.eye(len(covariance))


def recalls(method, penalty, train, test):
    """The dict of `metrics.retrieval` on `test`."""
    means = torch.zeros(len(train.image), train.text.shape[1]).index_add(0, train.image_of, train.text)
    means /= train.image_of.bincount(minlength=len(means)).clamp_min(1)[:, None]
    of_image, of_text = method(train.image, means, penalty)
    predicted, text = of_image(test.image), of_text(test.text)
    return metrics.retrieval(F.normalize(predicted, dim=1), F.normalize(text, dim=1), test.image_of)


def accuracy(method, penalty, bank, train, test):
    """The share of pairs of `test` whose nearest answer is right. `bank` maps answers to rows."""
    answers = torch.stack(list(bank.values()))  # (A, Dt)
    right = torch.stack([bank[max(found, key=found.get)] for found in train.questions.answers])
    of_input, of_answer = method(_inputs(train), right, penalty)
    predicted = F.normalize(of_input(_inputs(test)), dim=1)
    best = (predicted @ F.normalize(of_answer(answers), dim=1).T).argmax(1).tolist()
    names = list(bank)
    return answering.is_right(test.questions, [names[i] for i in best]).mean().item()


def _inputs(features):
    """(Q, Dv + Dk): the image's row beside the mean of the question's tokens, for each pair."""
    questions = features.questions
    asked = mean_pool(questions.tokens[torch.arange(len(questions.texts))])  # (K, Dk)
    return torch.cat([features.image[questions.image_of], asked[questions.question_of]], dim=1)


def choose(score, train, names):
    """The penalty with the highest score(penalty, train, test), fitted to five sixths of the images and
    scored on the others."""
    _, held_out = split_by_image(names, SIXTH)
    is_held_out = torch.tensor([name in held_out for name in names])
    inner = train.of(~is_held_out), train.of(is_held_out)
    return max(PENALTIES, key=lambda penalty: score(penalty, *inner))
