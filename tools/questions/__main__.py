"""Make questions and answers from anybody's English captions, by rules one can read.

    python -m tools.questions --csv caption.csv --out questions.csv
    python -m tools.questions ... --sample 200 --seed 1 --sheet sheet.csv      a sheet to judge by hand

Writes the columns image_name,question,answer,type; a question with two right answers has two rows. What was
read, asked and left out is printed for each rule. docs/questions_from_captions.md describes the rules and how
often they err.
"""

import csv
import random
import sys
from argparse import BooleanOptionalAction
from collections import defaultdict
from pathlib import Path

from models import script
from models.files import replacing
from tools.questions import asking, evidence

HEADER = ("image_name", "question", "answer", "type")
SHEET = ("image_name", "captions", "question", "answer", "type", "right")


def write(path, header, rows):
    """Write a CSV, whole or not at all."""
    with replacing(path) as new, open(new, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def sample(rows, size, seed):
    """`size` rows, as many of each type as there are, drawn with the seed; all rows where there are fewer."""
    by_type = defaultdict(list)
    for row in rows:
        by_type[row[3]].append(row)
    drawn, draw = [], random.Random(seed)
    listed = sorted(by_type.values(), key=len)  # the short ones first: what they lack goes to the others
    for i, rows_of_type in enumerate(listed):
        share = -(-(size - len(drawn)) // (len(listed) - i))
        drawn += draw.sample(rows_of_type, min(share, len(rows_of_type)))
    return sorted(drawn, key=lambda row: (asking.TYPES.index(row[3]), row))


def report(scenes, found):
    """Lines: captions read = used + unused, and for each rule found = asked + left out."""
    captions = sum(len(scene.captions) for scene in scenes)
    used = len({number for f in found if not f.reason for number in f.captions})
    yield (
        f"{captions:,} captions of {len(scenes):,} images read = {used:,} used + {captions - used:,} unused "
        '(an answer "no" rests on no caption)'
    )
    yield f"{'rule':8}{'found':>9} = {'asked':>7} + {'left out':>8}{'rows':>9}{'images':>8}   left out"
    for name, total in asking.tally(found).items():
        reasons = {key: n for key, n in total.items() if key not in ("found", "asked", "rows", "images")}
        listed = ", ".join(f"{n:,} {key}" for key, n in sorted(reasons.items(), key=lambda pair: -pair[1]))
        numbers = f"{total['found']:>9,} = {total['asked']:>7,} + {sum(reasons.values()):>8,}"
        yield f"{name:8}{numbers}{total['rows']:>9,}{total['images']:>8,}   {listed}"


def check_outputs(paths, source, overwrite):
    """Raise ValueError when a file to write exists, or is the captions file itself."""
    for path in paths:
        if path.exists() and path.samefile(source):
            raise ValueError(f"{path} is the captions file; give another name to write to")
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists; replace it with --overwrite, or give another name")


def work(args):
    """Make the questions, write them, and print what was done."""
    from models.dataset import read_rows

    options = dict(skip_bad=args.skip_bad, caption_lists=args.caption_lists)
    rows = read_rows(args.csv, args.image_column, args.caption_column, **options)
    sheet = args.sheet or args.out.with_name(f"{args.out.stem}_sheet.csv")
    check_outputs([args.out, *([sheet] if args.sample else [])], args.csv, args.overwrite)
    scenes = evidence.scenes((row.image_name, row.text) for row in rows)
    found = asking.ask(scenes, args.seed, args.yes_no_per_noun)
    made = asking.rows_of(found)
    print(*report(scenes, found), sep="\n")
    if not made:
        raise ValueError(
            f"{args.csv}: no question could be made of {len(rows)} captions; the rules read English, and "
            f"--caption-column {' '.join(args.caption_column)} must hold it"
        )
    write(args.out, HEADER, made)
    print(f"written: {args.out}, {len(made):,} rows")
    if args.sample:
        texts = {scene.image: " | ".join(scene.texts) for scene in scenes}
        drawn = sample(made, args.sample, args.seed)
        write(sheet, SHEET, [(row[0], texts[row[0]], *row[1:], "") for row in drawn])
        print(f"written: {sheet}, {len(drawn)} rows; write yes or no into the column `right`")


def parse(argv):
    """The command line."""
    p = script.parser("python -m tools.questions", __doc__)
    p.add_argument("--csv", type=Path, default=Path("caption.csv"), help="captions (default %(default)s)")
    p.add_argument("--out", type=Path, required=True, help="questions file to write")
    p.add_argument("--image-column", default="image_name", help="column of images (default %(default)s)")
    p.add_argument(
        "--caption-column",
        nargs="+",
        default=["comment"],
        metavar="COLUMN",
        help="column of captions, or several (default comment)",
    )
    p.add_argument(
        "--caption-lists",
        action=BooleanOptionalAction,
        default=False,
        help="read a list in a field as several captions",
    )
    p.add_argument("--seed", type=int, default=0, help="draws yes, no and the sample (default %(default)s)")
    p.add_argument(
        "--yes-no-per-noun",
        type=int,
        default=100,
        metavar="N",
        help='at most N "yes" and N "no" for each noun (default %(default)s)',
    )
    p.add_argument("--sample", type=int, default=0, metavar="N", help="also write a sheet of N rows to judge")
    p.add_argument("--sheet", type=Path, help="where the sheet goes (default: OUT with _sheet in its name)")
    p.add_argument(
        "--skip-bad", action=BooleanOptionalAction, default=False, help="leave out lines that are no captions"
    )
    p.add_argument(
        "--overwrite", action=BooleanOptionalAction, default=False, help="replace files that exist already"
    )
    args = p.parse_args(argv)
    for flag, value in (("--yes-no-per-noun", args.yes_no_per_noun), ("--sample", args.sample)):
        if value < 0:
            p.error(f"{flag} {value}: give 0 or more")
    return args


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    return script.run("questions", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
