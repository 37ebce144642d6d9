"""The official captions of Flickr8k, Flickr30k and COCO, and Karpathy's splits."""

import json
import re
import shlex
import statistics
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from .shared import check_paths, field, image_problem, summary, write_csv

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


def convert(args):
    """Write caption.csv and unique_caption.csv; a list of lines that say what was done. Raises ValueError
    or OSError with the way out."""
    if len(args.source) > 1:
        raise ValueError(f"{args.format} takes one SOURCE, the captions file; got {len(args.source)}")
    (source,), images = args.source, args.images
    out = args.out or source.parent
    full, unique = out / "caption.csv", out / "unique_caption.csv"
    check_paths([source], images, (full, unique), args.overwrite)
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
    spread = f"min {each[0]}, median {statistics.median(each):g}, max {each[-1]}"
    command = ["python", "train.py", "--csv", str(full), "--images", str(images or "IMAGE_FOLDER")]
    return [
        f"{len(each):>9,} images",
        f"{sum(each):>9,} captions; per image {spread}",
        *summary(notes),
        f"written: {full} and {unique}",
        f"next:    {shlex.join(command)}",
    ]
