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

from models import script


def work(args):
    """Print a row for each method."""
    from models.features import encode_archive, encode_texts
    from models.features.load import dataset_of
    from models.linear import METHODS, accuracy, choose, recalls
    from models.report import retrieval_header, retrieval_row
    from models.text import TextEncoder
    from models.vision import VisionEncoder
    from models.vision import choose as choose_tower

    vision, text = VisionEncoder("cpu", choose_tower(args.vision)[0]), TextEncoder("cpu")
    columns = dict(image_column=args.image_column, caption_column=args.caption_column)
    columns |= dict(caption_lists=False, follow_links=False)

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
    return script.run("linear", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
