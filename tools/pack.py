"""Pack a captions file and its images into WebDataset tars, for train.py --shards.

python -m tools.pack --out runs/drawn-{:05}.tar
python train.py --shards 'runs/drawn-{00000..00001}.tar' --run runs/shards
"""

import io
import json
import sys
import tarfile

from models import script
from models.files import replacing


def pack(dataset, out, per_shard):
    """Write tars of `per_shard` images each and return their paths.

    Each image is KEY.jpg, and KEY.json beside it holds its captions. `out` is a pattern such as
    drawn-{:05}.tar; ValueError when it has no place for a number."""
    try:
        same = out.format(0) == out.format(1)
    except LookupError:  # more than one place, or one with a name
        same = True
    if same:
        raise ValueError(f"--out {out}: wants one place for the number of the tar; write photos-{{:05}}.tar")
    captions = [[] for _ in dataset.image_names]
    for caption, image in zip(dataset.captions, dataset.image_of):
        captions[image].append(caption)
    written = []
    for number, first in enumerate(range(0, len(captions), per_shard)):
        path = out.format(number)
        with replacing(path) as new, tarfile.open(new, "w") as tar:
            for i in range(first, min(first + per_shard, len(captions))):
                add(tar, dataset, i, captions[i])
        written.append(path)
    return written


def add(tar, dataset, i, captions):
    """Add image number `i` and its captions to a tar."""
    key = dataset.image_names[i].partition(".")[0]  # in a WebDataset a key ends at the first dot
    tar.add(dataset.path(i), key + dataset.path(i).suffix)
    content = json.dumps(dict(captions=captions)).encode()
    member = tarfile.TarInfo(f"{key}.json")
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def work(args):
    """Pack, and print which tars were written."""
    from models.dataset import VisionTextDataset

    written = pack(VisionTextDataset(args.csv, None, args.images), args.out, args.per_shard)
    print(f"written: {written[0]} to {written[-1]}")


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    p = script.parser("python -m tools.pack", __doc__)
    p.add_argument(
        "--csv", default="caption.csv", help="captions file, image_name,comment (default %(default)s)"
    )
    p.add_argument(
        "--images",
        default="my_image_archive",
        metavar="DIR",
        help="folder of its images (default %(default)s)",
    )
    p.add_argument("--out", required=True, metavar="PATTERN", help="tars to write, such as photos-{:05}.tar")
    p.add_argument("--per-shard", type=int, default=500, help="images per tar (default %(default)s)")
    args = p.parse_args(argv)
    if args.per_shard < 1:
        p.error(f"--per-shard {args.per_shard}: give 1 or more")
    return script.run("pack", lambda: work(args))


if __name__ == "__main__":
    sys.exit(main())
