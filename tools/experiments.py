"""Train several recipes on one feature cache and print a table: mean and standard deviation over seeds.

    python -m tools.experiments --csv train.csv --images images
    python -m tools.experiments ... --only retrieval "--recipe retrieval --dropout 0.3" --seeds 5
    python -m tools.experiments ... --eval-csv dev.csv      the final check, not for choosing
    python -m tools.experiments --compare runs/a runs/b     runs that are there, side by side

Without --eval-csv a recipe is scored on a sixth of the training images, held out, another sixth per seed.
"""

import json
import shlex
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from models import script
from models.files import replacing

# Name -> flags of train.py. All but the first three change one thing of `retrieval`.
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
HELD_OUT_BY = ("data", "val_fraction", "seed")  # what decides which images are held out
COLUMNS = "tower | recipe | flags | image to text R@1 / 5 / 10 | text to image | hub-corrected, both | s"


def parse(argv):
    """The command line."""
    p = script.parser("python -m tools.experiments", __doc__)
    p.add_argument("--csv", default="caption.csv", help="captions to train on (default %(default)s)")
    p.add_argument("--images", default="my_image_archive", help="folder of its images (default %(default)s)")
    p.add_argument("--eval-csv", help="captions to score on, images in the same folder (default: held out)")
    p.add_argument(
        "--vision", nargs="+", default=["efficientnet-lite0"], help="image towers (default %(default)s)"
    )
    p.add_argument(
        "--only",
        nargs="+",
        default=list(RECIPES),
        metavar="RECIPE",
        help="names of recipes, or flags in quotes",
    )
    p.add_argument("--seeds", type=int, default=3, help="runs per recipe (default %(default)s)")
    p.add_argument("--cache", default=".cache/features.sqlite", help="feature cache (default %(default)s)")
    group = p.add_argument_group("runs that are there")
    what = "only print where these runs differ and what their best epochs gave, and plot every epoch"
    group.add_argument("--compare", nargs="+", metavar="RUN", help=what)
    group.add_argument("--out", default="compare.png", help="the plot (default %(default)s)", metavar="PNG")
    return p.parse_args(argv)


def compare(folders, picture):
    """Print a Markdown table with a column per run folder of train.py, and plot their logs."""
    from models import runs

    columns, logs = {}, {}
    for folder in folders:
        _, config, record = runs.load_model(folder)
        lines = Path(folder, runs.LOG).read_text("utf-8").splitlines()
        logs[folder] = {entry["epoch"]: entry for entry in map(json.loads, lines)}
        towers = {f"{kind} tower": tower["name"] for kind, tower in config["towers"].items()}
        facts = towers | {name: config[name] for name in ("data", "images", "captions")} | config["recipe"]
        columns[folder] = (facts, logs[folder][record["epoch"]])
    print(f"| | {' | '.join(folders)} |\n|{'---|' * (len(folders) + 1)}")
    for part in (0, 1):
        names = dict.fromkeys(name for column in columns.values() for name in column[part])
        for name in names:
            values = [column[part].get(name, "") for column in columns.values()]
            if part or any(value != values[0] for value in values):
                cells = [f"{v:.4g}" if isinstance(v, float) else str(v)[:40] for v in values]
                print(f"| {name} | {' | '.join(cells)} |")
    facts = [[column[0].get(name) for name in HELD_OUT_BY] for column in columns.values()]
    if any(one != facts[0] for one in facts):
        print("note: they hold out different images, so their numbers differ by more than the recipe")
    plot(logs, picture)
    print(f"wrote {picture}")


def plot(logs, path):
    """A PNG with a panel per number in the logs {run: {epoch: entry}}, and a line per run in each."""
    from matplotlib.figure import Figure

    names = dict.fromkeys(name for log in logs.values() for entry in log.values() for name in entry)
    names = [name for name in names if name not in ("epoch", "seconds")]
    rows = -(-len(names) // 3)
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    for number, name in enumerate(names, 1):
        axis = figure.add_subplot(rows, 3, number)
        for run, log in logs.items():
            epochs = [epoch for epoch, entry in log.items() if name in entry]
            axis.plot(epochs, [log[epoch][name] for epoch in epochs], ".-", label=run)
        axis.set(title=name, xlabel="epoch")
    figure.axes[0].legend()
    with replacing(path) as new:
        figure.savefig(new, format="png", dpi=120)


def python(*command):
    """Run `python SCRIPT ...`, without its output. ValueError when it fails; it has said why on stderr."""
    words = list(map(str, command))
    if code := subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL).returncode:
        raise ValueError(f"python {shlex.join(words)}: ended with exit code {code}")


def train(folder, *flags):
    """Seconds of `train.py --run FOLDER FLAGS`."""
    began = time.perf_counter()
    python("train.py", "--run", folder, "--quiet", *flags)
    return time.perf_counter() - began


def score(folder, *flags):
    """{row of the retrieval table: metrics} of `eval.py --run FOLDER FLAGS`."""
    report = Path(folder, "report.json")
    python("eval.py", "--run", folder, "--quiet", "--json", report, *flags)
    return json.loads(report.read_text(encoding="utf-8"))["rows"]


def measure(args, vision, flags, seed):
    """(rows of the retrieval table, seconds of training) of one run."""
    data = ["--images", args.images, "--cache", args.cache]
    fraction = 0 if args.eval_csv else 0.1667
    scored = [args.eval_csv] if args.eval_csv else [args.csv, "--held-out"]
    with TemporaryDirectory() as folder:
        run = ["--vision", vision, "--seed", seed, "--val-fraction", fraction, *shlex.split(flags)]
        seconds = train(folder, "--csv", args.csv, *data, *run)
        return score(folder, "--csv", *scored, *data, "--hub-correction"), seconds


def cell(runs, row, keys):
    """'31.6 ± 0.8 / ...': mean and deviation of some metrics of a row over runs, in percent."""
    shown = []
    for key in keys:
        values = [100 * rows[row][key] for rows, _ in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else 0
        shown.append(f"{statistics.mean(values):.1f} ± {deviation:.1f}")
    return " / ".join(shown)


def work(args):
    """Print a Markdown row for each tower and recipe as soon as it is done, or compare runs."""
    if args.compare:
        return compare(args.compare, args.out)
    scored = args.eval_csv or "images held out of it"
    print(f"trained on {args.csv}, scored on {scored}, {args.seeds} seeds; percent, mean ± deviation")
    print(f"| {COLUMNS} |\n|{'---|' * 7}")
    for vision in args.vision:
        for name in args.only:
            flags = RECIPES.get(name, name)
            runs = [measure(args, vision, flags, seed) for seed in range(args.seeds)]
            plain = partial(cell, runs, "this model")
            corrected = partial(cell, runs, "this model, hub-corrected")
            seconds = statistics.median(seconds for _, seconds in runs)
            hub = f"{corrected(KEYS[:3])} ; {corrected(KEYS[3:])}"
            cells = [vision, name, f"`{flags}`", plain(KEYS[:3]), plain(KEYS[3:]), hub, f"{seconds:.0f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


def main(argv=None):
    """Return the exit code, see models.script."""
    args = parse(argv)
    return script.run("experiments", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
