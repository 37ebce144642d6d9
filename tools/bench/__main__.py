"""Measure speed and memory, as ratios to a limit or a peer of the same run.

    python -m tools.bench                                  everything, on the archive in this repository
    python -m tools.bench --csv train.csv --images photos  everything, on photographs
    python -m tools.bench --only kernels                   some rows
    python -m tools.bench --growth growth.png              seconds and memory from 1,000 to 64,000 images

Each line shows what was measured, its value, the limit or peer, and the ratio (above 1: better than
the peer). The machine should be idle. The last line is one JSON object with all rows.
"""

import json
import sys
from importlib.util import find_spec

from models import script

from . import indexing, kernels, timing, towers, videos, whole

ROWS = dict(
    kernels=kernels.kernels,
    tower=towers.tower,
    clip=towers.clip,
    jpeg=towers.jpeg,
    captions=towers.captions,
    epoch=whole.epoch,
    scripts=whole.scripts,
    index=indexing.indexing,
    search=whole.search,
    shards=whole.shards,
    loop=whole.loop,
    videos=videos.videos,
)


def parse(argv):
    """The command line. Exits with 2 when a peer that a row needs is not installed."""
    p = script.parser("python -m tools.bench", __doc__)
    p.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}"
    )
    p.add_argument("--csv", default="caption.csv", help="captions file (default %(default)s)")
    p.add_argument("--images", default="my_image_archive", help="folder of its images (default %(default)s)")
    p.add_argument("--count", type=int, default=2000, help="images to use (default %(default)s)")
    p.add_argument(
        "--rows",
        type=int,
        default=1_000_000,
        help="random embeddings of the rows search and shards (default %(default)s)",
    )
    p.add_argument("--repeats", type=int, default=7, help="runs per median (default %(default)s)")
    p.add_argument("--growth", metavar="PNG", help="only measure and plot cost against images")
    args = p.parse_args(argv)
    if not args.growth and "search" in args.only and find_spec("faiss") is None:
        p.error(
            "the row `search` is measured against faiss: pip install faiss-cpu, or leave it out with --only"
        )
    return args


def shown(value):
    """A number with three digits, or with all digits from 1,000 on."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def work(args):
    """Print a table and one line of JSON."""
    machine, found = timing.machine(), []
    print(machine)
    groups = [whole.growth(args.growth)] if args.growth else [ROWS[name](args) for name in args.only]
    for row in (row for group in groups for row in group):
        value = shown(row.value) if row.what else ""
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
        print(f"{row.what:62} {value:>10}  {row.against:72} {ratio:>8}", flush=True)
        what = row.what or found[-1]["what"]
        found.append(row._replace(what=what)._asdict())
    print(json.dumps(dict(machine=machine, rows=found)))


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    return script.run("bench", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
