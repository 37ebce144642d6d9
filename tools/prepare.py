"""Convert the official captions of Flickr8k, Flickr30k, COCO or Karpathy for train.py.

    python -m tools.prepare flickr8k captions.txt --images Images
    python -m tools.prepare flickr8k Flickr8k.token.txt --split Flickr_8k.trainImages.txt --out data/train
    python -m tools.prepare flickr30k results.csv --images flickr30k_images
    python -m tools.prepare coco captions_train2017.json --images train2017
    python -m tools.prepare karpathy dataset_coco.json --images coco --split train+restval --out data/train

Writes caption.csv (every caption) and unique_caption.csv (the first caption of each image).
"""

import csv
import json
import os
import re
import shlex
import statistics
import sys
from argparse import BooleanOptionalAction
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from models import script
from models.files import replacing

TOKEN = re.compile(r"(?P<name>.+?)#\d+\t(?P<caption>.*)")
# Some copies of captions.txt quote a caption that holds commas, others do not. No image name holds one.
COMMA = re.compile(r'(?P<name>[^,]+),\s*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<caption>.*))')
# Row 19999 of the official results.csv lacks a |: `2199200615.jpg| 4   A dog runs across the grass .`
PIPED = re.compile(r"(?P<name>[^|]+)\|\s*\d+(?:\s*\||(?P<recovered>\s))(?P<caption>.*)")
# Flickr8k.token.txt lists 2258277193_586949ec62.jpg.1, which is not among the images.
NO_IMAGE = re.compile(r".*\.jpg\.\d+")


def read_flickr(header, pattern, text, source, notes):
    """Yield (image name, caption, None) for each row below `header`, or for each row
    name.jpg#0<TAB>caption. The first line decides which of the two it is."""
    # Only \n ends a row: str.splitlines also splits at U+2028 and similar characters.
    lines = [(number, line.strip(" ")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = lines[0][1] if lines else ""
    if TOKEN.fullmatch(first):
        header, pattern = "name.jpg#0<TAB>caption", TOKEN
    elif first.replace(" ", "").lower() == header:
        lines = lines[1:]
    else:
        raise ValueError(
            f"{source}: expected the header {header} or rows name.jpg#0<TAB>caption, found {first[:100]!r}; "
            f"check SOURCE, or give another format ({', '.join(READERS)})"
        )
    for number, line in lines:
        match = pattern.fullmatch(line)
        if not match:
            raise ValueError(
                f"{source}:{number}: expected {header}, found {line[:100]!r}; fix or delete this line"
            )
        row = match.groupdict()
        if row.get("recovered"):
            notes["recovered, a separator was missing"].append(f"{source}:{number} {line[:60]}")
        if NO_IMAGE.fullmatch(row["name"]):
            notes["dropped, a name of no image in the data set"].append(row["name"])
            continue
        caption = row["caption"] if row["caption"] is not None else row["quoted"].replace('""', '"')
        yield row["name"], caption, None


def field(entry, key, kind, place):
    """entry[key], which must be a `kind`. Raises ValueError with its place in the JSON file."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, kind):
        return value
    raise ValueError(
        f"{place}: expected a {kind.__name__} {key!r}, found {str(entry)[:100]}; "
        "fix it, or check SOURCE and its format"
    )


def read_coco(text, source, notes):
    """Yield (image name, caption, split) from captions_train2017.json and the like, where `train` in
    the name of the file is the split."""
    data = json.loads(text)
    split = re.search("(?<![a-z])(trainval|train|val|test)(?![a-z])", source.name)
    names = {}
    for i, image in enumerate(field(data, "images", list, source)):
        place = f"{source} images[{i}]"
        names[field(image, "id", int, place)] = field(image, "file_name", str, place)
    for i, annotation in enumerate(field(data, "annotations", list, source)):
        place = f"{source} annotations[{i}]"
        image_id = field(annotation, "image_id", int, place)
        caption = field(annotation, "caption", str, place)
        if image_id in names:
            yield names[image_id], caption, split and split[0]
        else:
            what = f"annotations[{i}] of image_id {image_id}"
            notes["dropped, annotation of an unknown image"].append(what)


def read_karpathy(text, source, notes):
    """Yield (image name, caption, split) from dataset_flickr8k.json, _flickr30k.json or _coco.json."""
    for i, image in enumerate(field(json.loads(text), "images", list, source)):
        place = f"{source} images[{i}]"
        name, split = field(image, "filename", str, place), field(image, "split", str, place)
        if "filepath" in image:  # COCO only: the folder, train2014 or val2014
            name = f"{field(image, 'filepath', str, place)}/{name}"
        for sentence in field(image, "sentences", list, place):
            yield name, field(sentence, "raw", str, f"{place} sentences"), split


READERS = {
    "flickr8k": partial(read_flickr, "image,caption", COMMA),
    "flickr30k": partial(read_flickr, "image_name|comment_number|comment", PIPED),
    "coco": read_coco,
    "karpathy": read_karpathy,
}


def read(kind, source, notes):
    """[(image name, caption, split or None)] with single spaces. Adds what is odd to `notes`, a dict
    from what happened to the places where."""
    try:
        rows = list(READERS[kind](source.read_text(encoding="utf-8-sig"), source, notes))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source}: expected {kind} captions in UTF-8 ({error}); it begins {source.read_bytes()[:80]}; "
            f"unpack it, or give another format ({', '.join(READERS)})"
        ) from None
    return [(name.strip(), " ".join(caption.split()), split) for name, caption, split in rows]


def select(rows, split, source, notes):
    """The rows of a split: names joined by + where the rows have splits, otherwise the path of a text
    file of image names."""
    found, names = Counter(row[2] for row in rows), split.split("+")
    if None not in found:
        if not set(names) <= set(found):
            raise ValueError(
                f"{source}: no split {split!r}; give --split one of these, or a+b (captions): {dict(found)}"
            )
        return [row for row in rows if row[2] in names]
    if not Path(split).is_file():
        raise ValueError(
            f"--split {split}: no such file, and {source} has no splits; "
            "give a text file with one image name per line"
        )
    lines = Path(split).read_text(encoding="utf-8-sig", errors="replace").split("\n")
    wanted = {line.strip() for line in lines} - {""}
    # The usual lists of Flickr30k leave out the .jpg.
    kept = [row for row in rows if row[0] in wanted or Path(row[0]).stem in wanted]
    matched = {part for row in kept for part in (row[0], Path(row[0]).stem)}
    notes[f"named in {split}, but without a caption"] += sorted(wanted - matched)
    return kept


def image_problem(images, name):
    """Why `name` is not an image inside the folder `images`, or None."""
    from models.dataset import image_path

    try:
        found = os.path.isfile(image_path(images, name))
    except ValueError:
        return "dropped, outside the image folder"
    return None if found else "dropped, not in the image folder"


def keep_good(rows, images, notes):
    """{image name: captions} in the order of the rows, without empty captions and unusable images."""
    problems = {name: image_problem(images, name) for name in {row[0] for row in rows}} if images else {}
    captions = defaultdict(list)
    for name, caption, _ in rows:
        if not caption:
            notes["dropped, empty caption"].append(name)
        elif not name:
            notes["dropped, no image name"].append(caption)
        elif problems.get(name):
            notes[problems[name]].append(name)
        else:
            captions[name].append(caption)
    return captions


def check_paths(source, images, outputs, overwrite):
    """Raise ValueError when something to read is missing, or something to write exists already."""
    if not source.is_file():
        what = "a folder" if source.is_dir() else "no such file"
        raise ValueError(f"{source}: {what}; SOURCE is the captions file itself")
    if images and not images.is_dir():
        raise ValueError(f"--images {images}: no such folder; give the folder that holds the images")
    for path in outputs:
        if path.exists() and path.samefile(source):
            raise ValueError(f"{path} is SOURCE; give another --out")
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists; replace it with --overwrite, or give another --out")


def write_csv(path, rows, header=("image_name", "comment")):
    """Write a captions file of (image name, caption) rows, or one of another header, whole or not at all."""
    with replacing(path) as new, open(new, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def summary(notes):
    """One line for each kind of note, with its number and the first three places."""
    for what, places in notes.items():
        if places:
            names = sorted(set(places))
            yield f"{len(places):>9,} {what}: {', '.join(names[:3])}{' ...' * (len(names) > 3)}"


def prepare(args):
    """Convert the file, and print what was done. Raises ValueError or OSError with the way out."""
    source, images, out = args.source, args.images, args.out or args.source.parent
    full, unique = out / "caption.csv", out / "unique_caption.csv"
    check_paths(source, images, (full, unique), args.overwrite)
    notes = defaultdict(list)
    rows = read(args.format, source, notes)
    if args.split is not None:
        rows = select(rows, args.split, source, notes)
    captions = keep_good(rows, images, notes)
    if not captions:
        what = f"{source}: no caption is left; check SOURCE, --split {args.split} and --images {images}"
        raise ValueError("\n".join([what, *summary(notes)]))
    write_csv(full, [(name, text) for name, texts in captions.items() for text in texts])
    write_csv(unique, [(name, texts[0]) for name, texts in captions.items()])
    each = sorted(map(len, captions.values()))
    print(f"{len(each):>9,} images")
    spread = f"min {each[0]}, median {statistics.median(each):g}, max {each[-1]}"
    print(f"{sum(each):>9,} captions; per image {spread}")
    print(*summary(notes), f"written: {full} and {unique}", sep="\n")
    command = ["python", "train.py", "--csv", str(full), "--images", str(images or "IMAGE_FOLDER")]
    print("next:   ", shlex.join(command))


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    p = script.parser("python -m tools.prepare", __doc__)
    p.add_argument("format", choices=READERS, help="where the captions come from")
    p.add_argument("source", type=Path, metavar="SOURCE", help="the official captions file")
    p.add_argument(
        "--images", type=Path, metavar="DIR", help="image folder; captions of images not in it are dropped"
    )
    p.add_argument(
        "--split",
        help="coco, karpathy: a split, or several as a+b; flickr8k, flickr30k: a list of image names",
    )
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the two CSVs (default: that of SOURCE)")
    p.add_argument(
        "--overwrite", action=BooleanOptionalAction, default=False, help="replace CSVs that exist already"
    )
    args = p.parse_args(argv)
    return script.run("prepare", lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
