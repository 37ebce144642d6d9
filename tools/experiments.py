"""Train several recipes on one warm cache and print a table: mean and standard deviation over seeds.

    python -m tools.experiments --csv ../shared/flickr8k/train.csv --images ../shared/flickr8k/images
    python -m tools.experiments ... --only retrieval "no input dropout" --seeds 5
    python -m tools.experiments ... --eval-csv ../shared/flickr8k/dev.csv      the final check, not for choosing

Without --eval-csv a recipe is judged on images held out of the training CSV, another sixth of them for each seed.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# name -> what is typed after `python train.py`. Each changes one thing of `retrieval`.
RECIPES = {
    "classic": "--recipe classic",
    "classic, InfoNCE": "--recipe classic --loss info_nce",
    "retrieval": "--recipe retrieval",
    "sigmoid": "--recipe retrieval --loss sigmoid",
    "no input dropout": "--recipe retrieval --input-dropout 0",
    "no hidden dropout": "--recipe retrieval --dropout 0",
    "hidden 1024": "--recipe retrieval --hidden 1024",
    "captions shuffled": "--recipe retrieval --no-group-captions",
    "not standardised": "--recipe retrieval --no-standardise",
    "constant lr": "--recipe retrieval --schedule constant --warmup 0",
}
KEYS = [f"{way}_retrieval_recall@{k}" for way in ("text", "image") for k in (1, 5, 10)]


def parse(argv):
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--csv", default="caption.csv", help="captions to train on (default %(default)s)")
    p.add_argument("--images", default="my_image_archive", help="folder of its images (default %(default)s)")
    p.add_argument(
        "--eval-csv", help="captions to judge on, same folder of images (default: images held out of --csv)"
    )
    p.add_argument(
        "--vision", nargs="+", default=["efficientnet-lite0"], help="image towers (default %(default)s)"
    )
    p.add_argument(
        "--only",
        nargs="+",
        default=list(RECIPES),
        help="recipes by name, or as train.py flags in quotes",
        metavar="RECIPE",
    )
    p.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default %(default)s)")
    p.add_argument(
        "--cache",
        default=".cache/features.sqlite",
        help="file that keeps the towers' outputs (default %(default)s)",
    )
    return p.parse_args(argv)


def run(args, vision, flags, seed, folder):
    """({row name: metrics}, seconds of training): one training run and its verdict. Both are the commands a user types."""
    data = ["--images", args.images, "--cache", args.cache, "--quiet"]
    began = time.perf_counter()
    held_out = "0" if args.eval_csv else "0.1667"
    subprocess.run(
        [
            sys.executable,
            "train.py",
            "--csv",
            args.csv,
            "--vision",
            vision,
            "--seed",
            str(seed),
            "--run",
            folder,
            *data,
            "--val-fraction",
            held_out,
            *shlex.split(flags),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    judged = ["--csv", args.eval_csv] if args.eval_csv else ["--csv", args.csv, "--held-out"]
    report = Path(folder, "report.json")
    subprocess.run(
        [
            sys.executable,
            "eval.py",
            "--run",
            folder,
            *judged,
            *data,
            "--hub-correction",
            "--json",
            str(report),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(report.read_text())["rows"], seconds


def main(argv=None):
    """Print a Markdown row a tower and recipe as each is done. Exit code 0; a run that fails raises CalledProcessError."""
    args = parse(argv)
    print(
        f"trained on {args.csv}, judged on {args.eval_csv or 'images held out of it'}, {args.seeds} seeds; percent, mean ± deviation"
    )
    print(
        "| tower | recipe | flags | image to text R@1 / 5 / 10 | text to image R@1 / 5 / 10 | hub-corrected, the same | s |"
    )
    print("|---|---|---|---|---|---|---|")
    for vision in args.vision:
        for name in args.only:
            flags = RECIPES.get(name, name)
            with tempfile.TemporaryDirectory() as folder:
                runs = [run(args, vision, flags, seed, f"{folder}/{seed}") for seed in range(args.seeds)]
            cells = []
            for row in ("this model", "this model, hub-corrected"):
                values = {key: [100 * rows[row][key] for rows, _ in runs] for key in KEYS}
                mean = {k: statistics.mean(v) for k, v in values.items()}
                spread = {k: statistics.stdev(v) if args.seeds > 1 else 0 for k, v in values.items()}
                cells += [
                    " / ".join(f"{mean[k]:.1f} ± {spread[k]:.1f}" for k in half)
                    for half in (KEYS[:3], KEYS[3:])
                ]
            seconds = statistics.median(seconds for _, seconds in runs)
            print(
                f"| {vision} | {name} | `{flags}` | {cells[0]} | {cells[1]} | {cells[2]} ; {cells[3]} | {seconds:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
