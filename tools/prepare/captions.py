"""The official captions of Flickr8k, Flickr30k and COCO, and Karpathy's splits."""

import json
import re
import shlex
import statistics
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from models.files import tally

from .shared import account, check_paths, field, locator, summary, write_csv

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
    from models.dataset import split_lines

    lines = [(number, line.strip(" ")) for number, line in enumerate(split_lines(text), 1) if line.strip()]
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
        name, number = field(image, "file_name", str, place), field(image, "id", int, place)
        if names.setdefault(number, name) != name:
            raise ValueError(f"{place}: id {number} is {names[number]} already; delete one of the two")
    captioned = set()
    for i, annotation in enumerate(field(data, "annotations", list, source)):
        place = f"{source} annotations[{i}]"
        image_id = field(annotation, "image_id", int, place)
        caption = field(annotation, "caption", str, place)
        if image_id in names:
            captioned.add(image_id)
            yield names[image_id], caption, split and split[0]
        else:
            what = f"annotations[{i}] of image_id {image_id}"
            notes["dropped, annotation of an unknown image"].append(what)
    notes["images without a caption"] += [name for number, name in names.items() if number not in captioned]


def read_karpathy(text, source, notes):
    """Yield (image name, caption, split) from dataset_flickr8k.json, _flickr30k.json or _coco.json."""
    for i, image in enumerate(field(json.loads(text), "images", list, source)):
        place = f"{source} images[{i}]"
        name, split = field(image, "filename", str, place), field(image, "split", str, place)
        if "filepath" in image:  # COCO only: the folder, train2014 or val2014
            name = f"{field(image, 'filepath', str, place)}/{name}"
        sentences = field(image, "sentences", list, place)
        if not sentences:
            notes["images without a caption"].append(name)
        for sentence in sentences:
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
    from models.dataset import read_text

    text = read_text(source)
    try:
        rows = list(READERS[kind](text, source, notes))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{source}: expected {kind} captions ({error}); it begins {text[:80]!r}; "
            f"give another format ({', '.join(READERS)})"
        ) from None
    return [(name.strip(), " ".join(caption.split()), split) for name, caption, split in rows]


def select(rows, split, source, notes):
    """(the rows of a split, lines about it). A split is names joined by + where the rows have splits,
    otherwise the path of a text file of image names."""
    from models.dataset import read_lines

    found, names = Counter(row[2] for row in rows), split.split("+")
    if None not in found:
        if not set(names) <= set(found):
            raise ValueError(
                f"{source}: no split {split!r}; give --split one of these, or a+b (captions): {dict(found)}"
            )
        notes["dropped, of another split"] += [row[0] for row in rows if row[2] not in names]
        return [row for row in rows if row[2] in names], []
    if not Path(split).is_file():
        raise ValueError(
            f"--split {split}: no such file, and {source} has no splits; "
            "give a text file with one image name per line"
        )
    lines = read_lines(split)
    wanted = set(lines) - {""}
    # The usual lists of Flickr30k leave out the .jpg.
    parts = [{row[0], Path(row[0]).stem} & wanted for row in rows]
    lost = sorted(wanted - set().union(*parts))
    notes[f"named in {split}, but without a caption"] += lost
    notes["dropped, of another split"] += [row[0] for row, part in zip(rows, parts) if not part]
    blank, used = lines.count(""), len(wanted) - len(lost)
    left_out = {"blank": blank, "repeated": len(lines) - blank - len(wanted), "without a caption": len(lost)}
    kept = [row for row, part in zip(rows, parts) if part]
    return kept, [f"{split}: {tally('lines', used, left_out)}"]


def keep_good(rows, images, notes):
    """{image name: captions} in the order of the rows, without empty captions and unusable images."""
    locate = locator(images, notes)
    captions = defaultdict(list)
    for name, caption, _ in rows:
        found, problem = locate(name)
        if not caption:
            notes["dropped, empty caption"].append(name)
        elif not name:
            notes["dropped, no image name"].append(caption)
        elif problem:
            notes[problem].append(name)
        else:
            captions[found].append(caption)
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
    rows, lines = read(args.format, source, notes), []
    if args.split is not None:
        rows, lines = select(rows, args.split, source, notes)
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
        *lines,
        account(args.source, "captions", sum(each), notes),
        *summary(notes),
        f"written: {full} and {unique}",
        f"next:    {shlex.join(command)}",
    ]
