"""Pack captions, questions and their images or videos into WebDataset tars, for train.py --shards.

    python -m tools.pack --out runs/drawn-{:05}.tar
    python train.py --shards 'runs/drawn-{00000..00001}.tar' --run runs/shards

The pattern of --out has one place for the number of the tar.
"""

import io
import json
import math
import sys
import tarfile
from argparse import BooleanOptionalAction
from pathlib import Path

from models import script
from models.files import replacing


def pack(dataset, out, per_shard):
    """Write tars of `per_shard` images each and return their paths.

    Each image is KEY.jpg (or another ending), and KEY.json beside it holds its name, captions and questions,
    see `records`. Keys are numbers, since a key must be unique and hold no dot, and names can be long, in
    folders, or differ in case alone. `out` is a pattern such as drawn-{:05}.tar; ValueError when it has no
    place for a number, and, before anything is written, for images that could not be read back
    (`dataset.skip_bad` leaves them out) and for tars of an earlier, longer archive."""
    check_pattern(out)
    dataset.drop(find_unusable(dataset))
    contents = records(dataset)
    if (after := Path(out.format(math.ceil(len(contents) / per_shard)))).exists():
        raise ValueError(f"{after}: is there already, from a longer archive; delete its tars, or name others")
    endings = [ending(name, dataset.path(i)) for i, name in enumerate(dataset.image_names)]
    written = []
    for number, first in enumerate(range(0, len(contents), per_shard)):
        path = out.format(number)
        with replacing(path) as new, tarfile.open(new, "w") as tar:
            for i in range(first, min(first + per_shard, len(contents))):
                add(tar, f"{i:08}.{endings[i]}", dataset.path(i).read_bytes())
                add(tar, f"{i:08}.json", contents[i])
        written.append(path)
    return written


def check_pattern(out):
    """ValueError for a pattern of names that has not one place for the number of a tar."""
    try:
        same = out.format(0) == out.format(1)
    except (LookupError, ValueError, AttributeError):  # more than one place, or one with a name
        same = True
    if same:
        raise ValueError(f"--out {out}: wants one place for the number of the tar; write photos-{{:05}}.tar")


def find_unusable(dataset):
    """{image name: reason} for the images that --shards could not read back."""
    from models.features.tars import LIMITS, TOO_LARGE

    bad = dataset.find_damaged(range(len(dataset.image_names)))
    for i, content in enumerate(records(dataset)):
        path = dataset.path(i)
        if path.stat().st_size > LIMITS["image"] or len(content) > LIMITS["json"]:
            bad.setdefault(dataset.image_names[i], f"{path}: it or its captions are {TOO_LARGE}")
    return bad


def records(dataset):
    """The content of each image's .json, a list of N bytes: an object with image_name, captions (a list of
    str) and questions (a list of objects with question, answer and type)."""
    found = {name: dict(image_name=name, captions=[], questions=[]) for name in dataset.image_names}
    for row in dataset.rows:
        if row.question:
            asked = dict(question=row.question, answer=row.text, type=row.type)
            found[row.image_name]["questions"].append(asked)
        else:
            found[row.image_name]["captions"].append(row.text)
    return [json.dumps(record).encode() for record in found.values()]


def ending(name, path):
    """The ending of an image's member: that of its name or, where that is none of an image, its format's; of
    a video mp4."""
    from models.dataset import format_of, is_video
    from models.features.tars import KINDS

    own = Path(name).suffix[1:].lower()
    if KINDS.get(own) == "image":
        return own
    return "mp4" if is_video(path) else format_of(path).lower().replace("jpeg2000", "jp2")


def add(tar, name, content):
    """Add a member to a tar: content and name alone, so that the same images give the same tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def work(args):
    """Pack, and print what became of every row and which tars were written."""
    from models.features.load import dataset_of

    dataset = dataset_of(args, args.skip_bad)
    written = pack(dataset, args.out, args.per_shard)
    print(dataset.account())
    members = 2 * len(dataset.image_names)
    print(f"{len(dataset.image_names):,} images, {members:,} members, written: {written[0]} to {written[-1]}")


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    p = script.parser("python -m tools.pack", __doc__)
    add_flag = p.add_argument
    add_flag("--csv", help="captions file (default caption.csv, or none with --questions)")
    add_flag("--questions", default="", metavar="FILE", help="questions file, as train.py reads it")
    add_flag("--images", default="my_image_archive", metavar="DIR", help="its images (default %(default)s)")
    add_flag("--image-column", default="image_name", help="column of image names (default %(default)s)")
    columns = "column of captions, or several (default comment)"
    add_flag("--caption-column", nargs="+", default=["comment"], metavar="COLUMN", help=columns)
    lists = "read a list in a field as several captions"
    add_flag("--caption-lists", action=BooleanOptionalAction, default=False, help=lists)
    bad = "leave out images and lines that cannot be used"
    add_flag("--skip-bad", action=BooleanOptionalAction, default=False, help=bad)
    add_flag("--out", required=True, metavar="PATTERN", help="tars to write, such as photos-{:05}.tar")
    add_flag("--per-shard", type=int, default=500, help="images per tar (default %(default)s)")
    script.add_follow_links(p)
    args = p.parse_args(argv)
    if args.csv is None:
        args.csv = "" if args.questions else "caption.csv"
    if args.per_shard < 1:
        p.error(f"--per-shard {args.per_shard}: give 1 or more")
    return script.run("pack", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
