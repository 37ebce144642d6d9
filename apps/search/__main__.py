"""Search a folder of images and videos by text or by image, and list its duplicates.

    python -m apps.search index my_image_archive                     again after changes: only those are read
    python -m apps.search index photos --watch                       and go on, until Ctrl-C
    python -m apps.search find "a dog on a beach"                    cosine scores and paths, best first
    python -m apps.search find "a dog" --not snow --html dogs.html   and a contact sheet
    python -m apps.search find --image photo.jpg --grid like.png     images like this one
    python -m apps.search find "a dog" --threshold 0.3 --null | xargs -0 cp -t dogs
    python -m apps.search find "a cake" --after 2023-12 --before 2024   taken in December of 2023
    python -m apps.search duplicates                                 identical files and near-duplicates

The index is one SQLite file. A killed run leaves an index that can be searched; run index again to finish it.
"""

import argparse
import datetime
import json
import math
import os
import sys
import time
from pathlib import Path

from apps.search.duplicates import NEAR, duplicates
from apps.search.find import EXACT_ROWS, find
from apps.search.index import CACHE, update
from apps.search.sheets import named, save
from apps.search.store import DEFAULT, opened, shown
from models import script
from models.files import printable, relative

SHOWN = 20  # paths of a group of duplicates


def parse(argv):
    """The command line."""
    p = script.parser("python -m apps.search", __doc__)
    commands = p.add_subparsers(dest="command", required=True)
    example = "python -m apps.search index my_image_archive"
    c = script.add_command(commands, "index", "make or update the index of a folder", example)
    what = "folder of images, videos and folders; hidden ones, system files and links are left out"
    c.add_argument("dir", help=what, metavar="DIR")
    script.add_folder_flags(c)
    script.add_frames(c, 8)
    cache = "features that train.py and this share (default %(default)s)"
    c.add_argument("--cache", default=CACHE, help=cache, metavar="FILE")
    c.add_argument("--batch-size", type=int, default=32, help="images per transaction (default %(default)s)")
    watch = (
        "go on until Ctrl-C, and look for new, changed and removed files every SECONDS (1 without a number)"
    )
    c.add_argument("--watch", nargs="?", type=float, const=1.0, help=watch, metavar="SECONDS")
    script.add_model_flags(c)
    example = 'python -m apps.search find "a dog on a beach" --grid beach.png'
    c = script.add_command(commands, "find", "search by text, by image, or by both", example)
    text = "what the images show; one sentence does better than several --and"
    c.add_argument("text", nargs="?", help=text, metavar="TEXT")
    c.add_argument("--image", help="find images like this file", metavar="FILE")
    more = dict(nargs="+", action="extend", default=[], metavar="TEXT")
    c.add_argument("--and", dest="also", help="and this, each a text", **more)
    c.add_argument("--not", dest="without", help="but not this, each a text", **more)
    c.add_argument("--top", type=int, default=12, help="how many images (default %(default)s)")
    least = "lowest cosine to show, -1 to 1 (default: all; without SCORE: the run's own, as eval.py --reject)"
    own = dict(nargs="?", type=float, const=math.nan, default=-1, metavar="SCORE")
    c.add_argument("--threshold", help=least, **own)
    when = dict(type=date, metavar="DATE")
    taken = (
        "taken at or after DATE, such as 2024, 2024-05 or 2024-05-31; by EXIF, else by the time of the file"
    )
    c.add_argument("--after", help=taken, **when)
    c.add_argument("--before", help="taken earlier than DATE begins", **when)
    how, flag = c.add_mutually_exclusive_group(), argparse.BooleanOptionalAction
    how.add_argument("--json", action=flag, default=False, help="print scores and paths as JSON")
    null_help = "end each path with a NUL byte, for xargs -0; a pipe without it gets a path per line"
    how.add_argument("--null", action=flag, default=False, help=null_help)
    c.add_argument("--html", help="write a contact sheet that works offline", metavar="FILE.html")
    c.add_argument("--grid", help="write a contact sheet as a picture", metavar="FILE.png")
    ann = f"approximate search with usearch (default: above {EXACT_ROWS:,} images)"
    c.add_argument("--ann", action=argparse.BooleanOptionalAction, help=ann)
    script.add_model_flags(c)
    example = "python -m apps.search duplicates --threshold 0.95"
    c = script.add_command(commands, "duplicates", "list identical files and near-duplicates", example)
    c.add_argument("--threshold", type=float, default=NEAR, help="lowest cosine (default %(default)s)")
    script.add_quiet(c)
    for c in commands.choices.values():
        c.add_argument("--index", default=DEFAULT, help="index file (default %(default)s)", metavar="FILE")
    args = p.parse_args(argv)
    _check(p, args)
    return args


def date(text):
    """`text` if it is a year, a month or a day, such as 2024-05-31. ValueError for any other."""
    day = f"{text}-01-01"[:10]
    if len(text) not in (4, 7, 10) or str(datetime.date.fromisoformat(day)) != day:
        raise ValueError
    return text


def _check(p, args):
    flags = vars(args)
    if args.command == "find" and not (args.text or args.image or args.also):
        p.error("find what? give a text, --image FILE, or --and TEXT")
    for name, suffix in (("html", ".html"), ("grid", ".png")):
        if (file := flags.get(name)) and not file.lower().endswith(suffix):
            p.error(f"--{name} {file}: give a name that ends in {suffix}")
    dated = flags.get("after") or flags.get("before")
    if dated and args.ann:
        p.error("--ann: an approximate search knows no dates; leave it out with --after and --before")
    for name in ("top", "batch_size"):
        if flags.get(name, 1) < 1:
            p.error(f"--{name.replace('_', '-')} {flags[name]}: give 1 or more")
    if flags.get("watch") is not None and not args.watch > 0:
        p.error(f"--watch {args.watch}: give more than 0 seconds")
    if args.command == "duplicates" and not 0 < args.threshold <= 1:
        p.error(f"--threshold {args.threshold}: give more than 0 and at most 1")
    if abs(flags.get("threshold", 1)) > 1:
        p.error(f"--threshold {args.threshold}: a cosine is -1 to 1")


def run_index(args):
    """Update the index, with --watch again and again, and print what became of the files."""
    # Read when torch is imported: a thread that waits for another one leaves its core to those that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options = (args.device, args.cache, args.batch_size, args.quiet, args.exclude, args.follow_links)
    watched = args.watch is not None
    done = update(args.dir, args.index, args.run, *options, args.frames, settled=watched)
    print_counts(args, done)
    while watched:
        time.sleep(args.watch)
        done = update(args.dir, args.index, args.run, *options, args.frames, settled=True)
        if done.changed or done.moved or done.gone:
            print_counts(args, done)


def print_counts(args, done):
    """Print one line for an Update."""
    kinds = [f"{done.indexed:,} indexed", f"{done.damaged:,} damaged"]
    kinds += [f"{done.waiting:,} still changing"] if done.waiting else []
    counts = done.walked.counted(args.dir, *kinds)
    print(f"{counts}; {done.changed:,} new or changed, {done.moved:,} moved, {done.gone:,} gone", flush=True)


def run_find(args, store):
    """Print what `find` finds, and write the contact sheets."""
    # --html cannot hit an image by its suffix, --grid can.
    if args.grid and Path(args.grid).exists() and Path(args.grid).resolve().is_relative_to(store.root):
        raise ValueError(f"--grid {args.grid}: is a file in the indexed folder; name another one")
    texts = ([args.text] if args.text else []) + args.also
    options = (args.without, args.top, args.run, args.device, args.ann, args.quiet)
    dates = dict(after=args.after, before=args.before)
    results, recall, times = find(store, texts, args.image, *options, **dates)
    if recall:
        print(f"approximate: {recall} against exact search", file=sys.stderr)
    best = f", the best {results[0][0]:.4f}" if results else ""
    least = args.threshold
    if math.isnan(least):
        from models.rejection import least_score
        from models.runs import load_model

        least = least_score(load_model(args.run)[2], "reject", args.run)
    results = [(score, path) for score, path in results if score >= least]
    if not results and least > -1:
        print(f"nothing scores {least:.3g} or more{best}", file=sys.stderr)
    print_results(args, results, times)
    like = [f"like {os.path.basename(args.image)}"] if args.image else []
    title = printable(", ".join([*texts, *like, *(f"not {text}" for text in args.without)]))
    for sheet in filter(None, (args.html, args.grid)):
        save(sheet, results, title, times)
        print(f"wrote {sheet}", file=sys.stderr)


def print_results(args, results, times):
    """Print [(score, path)] and the times of videos {path: seconds}: all to a terminal and as JSON, paths
    alone into a pipe."""
    paths = [relative(path) for _, path in results]
    if args.json:
        entries = [dict(score=score, path=path) for (score, _), path in zip(results, paths)]
        for entry, (_, path) in zip(entries, results):
            entry |= dict(time=times[path]) if path in times else {}
        print(json.dumps(entries, indent=1))
    elif args.null or not sys.stdout.isatty():
        if not args.null and any("\n" in path for path in paths):
            print("note: a name holds a line break; --null tells paths apart", file=sys.stderr)
        end = b"\0" if args.null else b"\n"
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(os.fsencode(path) + end for path in paths))
        sys.stdout.flush()
    else:
        for score, path in results:
            print(f"{score:7.4f}  {named(shown(path), times.get(path))}")


def run_duplicates(args, store):
    """Print how many groups there are, and then the groups."""
    identical, near = duplicates(store, args.threshold, args.quiet)
    print(
        f"{len(identical):,} groups of identical files, {len(near):,} of near-duplicates "
        f"(every cosine {args.threshold:g} or more)"
    )
    groups = [("identical", paths) for paths in identical]
    groups += [(f"near, lowest cosine {cosine:.3f}", paths) for cosine, paths in near]
    for what, paths in groups:
        print(f"{what}, {len(paths):,} files")
        print(*(f"  {shown(path)}" for path in paths[:SHOWN]), sep="\n")
        if len(paths) > SHOWN:
            print(f"  ... and {len(paths) - SHOWN:,} more")


def work(args):
    """Run the command."""
    if args.command == "index":
        return run_index(args)
    with opened(args.index) as store:
        if not os.path.isdir(store.root):
            advice = "if it was moved, index it where it is now, and nothing is encoded again"
            raise ValueError(f"{args.index}: its folder {shown(store.root)} is gone; {advice}")
        if store.meta["complete"] != "1":
            print(f"note: {args.index} is not finished, images are missing; run index again", file=sys.stderr)
        return (run_find if args.command == "find" else run_duplicates)(args, store)


def main(argv=None):
    """The exit code, see models/script.py."""
    args = parse(argv)
    return script.run("search", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
