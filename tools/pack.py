"""Pack a captions file and its images into WebDataset tars, for train.py --shards.

python -m tools.pack --out runs/drawn-{:05}.tar
python train.py --shards 'runs/drawn-{00000..00001}.tar' --run runs/shards
"""

import argparse
import io
import json
import os
import sys
import tarfile
from pathlib import Path


def pack(dataset, out, per_shard):
    """Write tars of `per_shard` images each, KEY.jpg beside KEY.json, which holds its captions; returns their paths. `out` has a place
    for the number, such as drawn-{:05}.tar. Each is written whole or not at all."""
    captions, written = [[] for _ in dataset.image_names], []
    for caption, image in zip(dataset.captions, dataset.image_of):
        captions[image].append(caption)
    for number, first in enumerate(range(0, len(captions), per_shard)):
        path = Path(out.format(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with tarfile.open(temporary, "w") as tar:
                for i in range(first, min(first + per_shard, len(captions))):
                    key = dataset.image_names[i].partition(".")[0]  # a key ends at the first dot
                    tar.add(dataset.path(i), key + dataset.path(i).suffix)
                    content = json.dumps(dict(captions=captions[i])).encode()
                    member = tarfile.TarInfo(f"{key}.json")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        written.append(path)
    return written


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    p = argparse.ArgumentParser(
        "python -m tools.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--csv", default="caption.csv", help="captions file, columns image_name,comment (default %(default)s)"
    )
    p.add_argument(
        "--images",
        default="my_image_archive",
        help="folder of its images (default %(default)s)",
        metavar="DIR",
    )
    p.add_argument("--out", required=True, metavar="PATTERN", help="tars to write, such as photos-{:05}.tar")
    p.add_argument("--per-shard", type=int, default=500, help="images a tar (default %(default)s)")
    args = p.parse_args(argv)
    if args.per_shard < 1:
        p.error(f"--per-shard {args.per_shard}: give 1 or more")
    try:
        if args.out.format(0) == args.out.format(1):
            raise ValueError(
                f"--out {args.out}: has no place for the number of the tar; write for example photos-{{:05}}.tar"
            )
        from models.dataset import VisionTextDataset

        written = pack(VisionTextDataset(args.csv, None, args.images), args.out, args.per_shard)
    except (OSError, ValueError, LookupError) as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"written: {written[0]} to {written[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
