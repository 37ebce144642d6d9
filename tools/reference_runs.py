"""Repeat the reference results from an empty cache and compare them with what was measured at commit 24a77c6.

    python -m tools.reference_runs                    the archive that ships with the project
    python -m tools.reference_runs --flickr8k DIR     and Flickr8k: DIR has train.csv, dev.csv, images/

Every flag that decides a result is typed out here, so new defaults and recipes do not move it. Exits with
1 when a number differs by more than 0.2 percentage points.
"""

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from models import script

from .experiments import KEYS, score, train

TOLERANCE = 0.2  # percentage points
CLASSIC = (
    "--recipe classic --loss cosine --epochs 10 --batch-size 16 --lr 1e-4 --schedule constant --warmup 0 "
    "--weight-decay 0.01 --hidden 1024 --members 1 --dropout 0 --input-dropout 0 --no-standardise "
    "--no-group-captions --text-head none --views 0 --seed 0"
)
RETRIEVAL = (
    "--recipe retrieval --loss info_nce --epochs 20 --batch-size 1280 --lr 1e-3 --schedule cosine "
    "--warmup 0.1 --weight-decay 0.01 --hidden 2048 --members 3 --dropout 0.5 --input-dropout 0.5 "
    "--standardise --group-captions --text-head none --views 0 --seed 0"
)
COLUMNS = "--image-column image_name --caption-column comment"
ENGINE = "--text all-MiniLM-L6-v2 --device cpu --no-bf16 --no-compile --encode-batch 32"
LITE0, LITE2 = "--vision efficientnet-lite0-stages", "--vision efficientnet-lite2-stages"
ARCHIVE = "--images my_image_archive"


class Reference(NamedTuple):
    """One training run and its result: R@1, 5, 10 image to text, then text to image, in percent."""

    name: str
    train: str
    score: str
    expected: tuple


def archive(name, csv, recipe, expected):
    """A Reference trained on a captions file of the archive and scored on the tenth it holds out."""
    flags = f"--csv {csv} {ARCHIVE} --val-fraction 0.1 {LITE0} {recipe}"
    return Reference(name, flags, f"--csv caption.csv {ARCHIVE} --held-out", expected)


REFERENCES = (
    archive(
        "archive, unique_caption.csv, classic",
        "unique_caption.csv",
        CLASSIC,
        (43.5, 80.0, 89.6, 46.6, 75.1, 85.0),
    ),
    archive("archive, caption.csv, classic", "caption.csv", CLASSIC, (64.3, 85.2, 92.2, 53.4, 85.4, 92.5)),
    archive(
        "archive, caption.csv, retrieval", "caption.csv", RETRIEVAL, (66.1, 91.3, 95.7, 56.7, 85.2, 92.7)
    ),
)
FLICKR8K = Reference(
    "Flickr8k dev, retrieval",
    f"--csv {{0}}/train.csv --images {{0}}/images --val-fraction 0 {LITE2} {RETRIEVAL}",
    "--csv {0}/dev.csv --images {0}/images",
    (31.6, 60.6, 73.1, 27.5, 57.1, 70.0),
)


def at(reference, folder):
    """The Reference with {0} in its flags replaced by a folder, whose name may hold spaces. FileNotFoundError
    when it is not there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; --flickr8k names that of train.csv and dev.csv")
    place = shlex.quote(str(folder))
    return reference._replace(train=reference.train.format(place), score=reference.score.format(place))


def measure(reference, cache, folder):
    """The six recalls of a Reference, in percent."""
    common = shlex.split(COLUMNS) + ["--cache", cache]
    train(folder, *shlex.split(reference.train), *shlex.split(ENGINE), *common)
    rows = score(folder, *shlex.split(reference.score), "--device", "cpu", *common)
    return [100 * rows["this model"][key] for key in KEYS]


def numbers(values, style=".1f"):
    """'31.6 / 60.6 / 73.1, 27.5 / 57.1 / 70.0'."""
    texts = [format(value, style) for value in values]
    return f"{' / '.join(texts[:3])}, {' / '.join(texts[3:])}"


def work(flickr8k):
    """Print measured | expected | difference for each Reference, with a folder `flickr8k` also for that one.
    Returns 1 when one is off, else 0."""
    references = [*REFERENCES, *([at(FLICKR8K, flickr8k)] if flickr8k else [])]
    off = 0
    print("run | measured (image to text, text to image) | expected | difference")
    with TemporaryDirectory() as folder:
        for i, reference in enumerate(references):
            found = measure(reference, f"{folder}/features.sqlite", f"{folder}/{i}")
            apart = [round(a, 1) - b for a, b in zip(found, reference.expected)]
            wrong = max(map(abs, apart)) > TOLERANCE + 1e-6
            off |= wrong
            cells = [reference.name, numbers(found), numbers(reference.expected), numbers(apart, "+.1f")]
            print(" | ".join(cells) + "  OFF" * wrong, flush=True)
    return int(off)


def main(argv=None):
    """Exit code: 0 all as expected, 1 a number is off or a run failed, 130 interrupted."""
    p = script.parser("python -m tools.reference_runs", __doc__)
    p.add_argument("--flickr8k", type=Path, metavar="DIR", help="folder with train.csv, dev.csv and images/")
    args = p.parse_args(argv)
    return script.run("reference_runs", lambda: work(args.flickr8k))


if __name__ == "__main__":
    sys.exit(main())
