"""The row of `apps.search index`: images per second, against what its parts take one after the other."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.prepare import write_csv

from .data import PACKAGED, captions_of, write_sheets
from .timing import Row, process, side_by_side

SOME = 256  # photographs on which the parts are timed


def decoded(path):
    """The pixels of a JPEG, by Pillow alone."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return image


def parts(paths, vision, repeats):
    """Seconds per image of decoding and of Pillow's resize, each on all cores, and of the tower."""
    import torch
    from PIL import Image

    images = [decoded(path) for path in paths]
    size = vision.pixel_spec["size"]
    shape = (int(size * images[0].width / images[0].height), size)
    pixels = torch.stack([vision.preprocess(image) for image in images[:32]])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        calls = [
            lambda: [None for _ in pool.map(decoded, paths)],
            lambda: list(pool.map(lambda image: image.resize(shape, Image.Resampling.BICUBIC), images)),
            lambda: vision.encode(pixels),
        ]
        seconds = side_by_side(calls, repeats)
    return [taken / count for taken, count in zip(seconds, (len(paths), len(paths), len(pixels)))]


def indexing(args):
    """`apps.search index` of `--count` photographs of 1024 x 768, the whole command, nothing cached."""
    from models.vision import VisionEncoder

    with TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        paths = write_sheets(args, photos)
        csv, run = Path(folder, "few.csv"), partial(process, PYTHONPATH=os.getcwd())
        write_csv(csv, [(name, texts[0]) for name, texts in list(captions_of(args).items())[:32]])
        common = ["--run", f"{folder}/run", "--cache", f"{folder}/cache.sqlite", "--quiet"]
        run("train.py", "--csv", csv, "--images", args.images, "--epochs", 1, "--vision", PACKAGED, *common)
        each = parts(paths[:SOME], VisionEncoder("cpu", PACKAGED), args.repeats)
        whole = run("apps/search", "index", photos, "--index", f"{folder}/index.sqlite", *common)
    rate, limit = args.count / whole.seconds, 1 / sum(each)
    decode, resize, tower = (1 / seconds for seconds in each)
    alone = f"decoding {decode:.0f}, resizing {resize:.0f}, tower {tower:.0f}: together {limit:.1f}"
    yield Row(f"apps.search index, {args.count:,} of 1024 x 768, images/s", rate, alone, rate / limit)
    yield Row("  the whole command, s", whole.seconds, f"its own memory at most, {whole.own:.2f} GB")
