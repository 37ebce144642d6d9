"""Linear baselines on the same frozen features: ridge regression and canonical correlation analysis (CCA).

    python -m tools.linear --csv train.csv --eval-csv dev.csv --images images
    python -m tools.linear --questions questions_train.csv --eval-questions questions_dev.csv --images images

Both have a closed form; what a trained predictor adds shows beside them. Ridge maps an image's features to
the mean embedding of its captions. CCA (Hotelling 1936) finds the directions of both spaces that correlate
most, and compares there, each direction weighted by its correlation (Gong et al., IJCV 2014). For questions
the input is the image's row beside the question's, and the output the answer's embedding. The penalty is
chosen on a sixth of the training images.
"""

import sys
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from models import answering, metrics, script

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
    """The dict of `metrics.retrieval` on `test`, Features both."""
    means = torch.zeros(len(train.image), train.text.shape[1]).index_add(0, train.image_of, train.text)
    means /= train.image_of.bincount(minlength=len(means)).clamp_min(1)[:, None]
    of_image, of_text = method(train.image, means, penalty)
    predicted, text = of_image(test.image), of_text(test.text)
    return metrics.retrieval(F.normalize(predicted, dim=1), F.normalize(text, dim=1), test.image_of)


def accuracy(method, penalty, bank, train, test):
    """The share of pairs of `test`, Features, whose nearest answer is right. `bank` maps answers to rows."""
    answers = torch.stack(list(bank.values()))  # (A, Dt)
    right = torch.stack([bank[max(found, key=found.get)] for found in train.questions.answers])
    of_input, of_answer = method(_inputs(train), right, penalty)
    predicted = F.normalize(of_input(_inputs(test)), dim=1)
    best = (predicted @ F.normalize(of_answer(answers), dim=1).T).argmax(1).tolist()
    names = list(bank)
    return answering.is_right(test.questions, [names[i] for i in best]).mean().item()


def _inputs(features):
    """(Q, Dv + Dt): the image's row beside the question's, for each pair."""
    questions = features.questions
    return torch.cat([features.image[questions.image_of], questions.rows[questions.question_of]], dim=1)


def choose(score, train, names):
    """The penalty with the highest score(penalty, train, test), fitted to five sixths of the images and
    scored on the others."""
    from models.dataset import split_by_image

    _, held_out = split_by_image(names, SIXTH)
    is_held_out = torch.tensor([name in held_out for name in names])
    inner = train.of(~is_held_out), train.of(is_held_out)
    return max(PENALTIES, key=lambda penalty: score(penalty, *inner))


def work(args):
    """Print a row for each method."""
    from models.features import encode_archive, encode_texts
    from models.features.load import dataset_of
    from models.report import retrieval_header, retrieval_row
    from models.text import TextEncoder
    from models.vision import VisionEncoder
    from models.vision import choose as choose_tower

    vision, text = VisionEncoder("cpu", choose_tower(args.vision)[0]), TextEncoder("cpu")
    columns = dict(image_column=args.image_column, caption_column=args.caption_column, caption_lists=False)

    def load(csv, questions):
        sources = SimpleNamespace(csv=csv, questions=questions, images=args.images, **columns)
        dataset = dataset_of(sources, skip_bad=False)
        return encode_archive(dataset, vision, text, args.cache, quiet=args.quiet), dataset.image_names

    if args.csv:
        (train, names), (test, _) = load(args.csv, ""), load(args.eval_csv, "")
        print(f"{args.eval_csv}: {len(test.image)} images, {len(test.text)} captions; {vision.name}")
        print(retrieval_header())
        for row, method in METHODS.items():
            penalty = choose(lambda *given, method=method: _hits(recalls(method, *given)), train, names)
            print(retrieval_row(row, recalls(method, penalty, train, test)))
    if args.questions:
        (train, names), (test, _) = load("", args.questions), load("", args.eval_questions)
        found = list(train.questions.bank())
        bank = dict(zip(found, encode_texts(found, text, args.cache, quiet=args.quiet)))
        print(f"{args.eval_questions}: {len(test.questions)} questions; {vision.name}")
        for row, method in METHODS.items():
            score = partial(accuracy, method)
            penalty = choose(lambda penalty, *inner, score=score: score(penalty, bank, *inner), train, names)
            print(f"  {row:24} accuracy {100 * score(penalty, bank, train, test):.1f}")


def _hits(found):
    return found["text_retrieval_recall@1"] + found["image_retrieval_recall@1"]


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted, 2 wrong usage."""
    p = script.parser("python -m tools.linear", __doc__)
    add = p.add_argument
    add("--csv", default="", help="captions file to fit to")
    add("--eval-csv", help="captions file to score on, images in the same folder")
    add("--questions", default="", metavar="FILE", help="questions file to fit to")
    add("--eval-questions", metavar="FILE", help="questions file to score on")
    add("--images", default="my_image_archive", metavar="DIR", help="folder of images (default %(default)s)")
    add("--image-column", default="image_name", help="column of image names (default %(default)s)")
    add("--caption-column", nargs="+", default=["comment"], help="column of captions (default comment)")
    add("--vision", default="auto", help="image tower, as for train.py (default %(default)s)")
    add("--cache", default=".cache/features.sqlite", help="file of the towers' outputs (default %(default)s)")
    script.add_quiet(p)
    args = p.parse_args(argv)
    for file, scored in (("csv", "eval_csv"), ("questions", "eval_questions")):
        if bool(getattr(args, file)) != bool(getattr(args, scored)):
            p.error(f"--{file} and --{scored.replace('_', '-')} go together")
    if not (args.csv or args.questions):
        p.error(
            "name a captions file (--csv, --eval-csv) or a questions file (--questions, --eval-questions)"
        )
    return script.run("linear", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
