"""Turn the official Flickr8k, Flickr30k, COCO or Karpathy captions into the two CSVs that train.py and eval.py read.

    python -m tools.prepare flickr8k captions.txt --images Images
    python -m tools.prepare flickr8k Flickr8k.token.txt --images Images --split Flickr_8k.trainImages.txt --out data/train
    python -m tools.prepare flickr30k results.csv --images flickr30k_images
    python -m tools.prepare coco captions_train2017.json --images train2017
    python -m tools.prepare karpathy dataset_coco.json --images coco --split train+restval --out data/train

Writes caption.csv (every caption) and unique_caption.csv (the first caption of each image): image_name,comment.
"""

import argparse
import csv
import json
import os
import re
import shlex
import statistics
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

TOKEN = re.compile(r"(?P<name>.+?)#\d+\t(?P<caption>.*)")  # one row of name.jpg#0<TAB>caption
# Copies of captions.txt differ: some quote a caption that holds commas, some do not. An image name never holds one.
COMMA = re.compile(r'(?P<name>[^,]+),\s*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<caption>.*))')
# The second | may be missing: a row of the official results.csv is `2199200615.jpg| 4   A dog runs across the grass .`
PIPED = re.compile(r"(?P<name>[^|]+)\|\s*\d+(?:\s*\||(?P<recovered>\s))(?P<caption>.*)")


def read_flickr(header, pattern, text, source, notes):
    """Yield (image_name, caption, None) from rows under `header`, or from name.jpg#0<TAB>caption rows; the first line tells which."""
    # Only \n ends a row: str.splitlines would also cut a caption at U+2028 and its like.
    lines = [(number, line.strip(" ")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    first_line = lines[0][1] if lines else ""
    if TOKEN.fullmatch(first_line):
        header, pattern = "name.jpg#0<TAB>caption", TOKEN
    elif first_line.replace(" ", "").lower() == header:
        lines = lines[1:]
    else:
        raise ValueError(
            f"{source}: expected the header {header} or rows name.jpg#0<TAB>caption; its first line is {first_line[:100]!r}; "
            f"check SOURCE, or name another format ({', '.join(READERS)})"
        )
    for number, line in lines:
        if not (match := pattern.fullmatch(line)):
            raise ValueError(
                f"{source}:{number}: expected {header}, found {line[:100]!r}; fix or delete this line"
            )
        row = match.groupdict()
        if row.get("recovered"):
            notes["recovered, a separator was missing"].append(f"{source}:{number} {line[:60]}")
        if re.fullmatch(
            r".*\.jpg\.\d+", row["name"]
        ):  # Flickr8k.token.txt has 2258277193_586949ec62.jpg.1, which is in no archive
            notes["dropped, a name of no image in the data set"].append(row["name"])
        else:
            yield (
                row["name"],
                row["caption"] if row["caption"] is not None else row["quoted"].replace('""', '"'),
                None,
            )


def field(entry, key, kind, place):
    """entry[key], which must be a `kind`. Raises ValueError naming the place in the JSON file."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, kind):
        return value
    raise ValueError(
        f"{place}: expected a {kind.__name__} {key!r}, found {str(entry)[:100]}; fix it, or check SOURCE and its format"
    )


def read_coco(text, source, notes):
    """Yield (image_name, caption, split) from captions_train2017.json and its kin; the split is told by the file's name."""
    data, split, names = (
        json.loads(text),
        re.search("(?<![a-z])(trainval|train|val|test)(?![a-z])", source.name),
        {},
    )
    for i, image in enumerate(field(data, "images", list, source)):
        place = f"{source} images[{i}]"
        names[field(image, "id", int, place)] = field(image, "file_name", str, place)
    for i, annotation in enumerate(field(data, "annotations", list, source)):
        place = f"{source} annotations[{i}]"
        image_id, caption = (
            field(annotation, "image_id", int, place),
            field(annotation, "caption", str, place),
        )
        if image_id in names:
            yield names[image_id], caption, split and split[0]
        else:
            notes["dropped, annotation of an unknown image"].append(
                f"annotations[{i}] of image_id {image_id}"
            )


def read_karpathy(text, source, notes):
    """Yield (image_name, caption, split) from dataset_flickr8k.json, dataset_flickr30k.json or dataset_coco.json."""
    for i, image in enumerate(field(json.loads(text), "images", list, source)):
        place = f"{source} images[{i}]"
        name, split = field(image, "filename", str, place), field(image, "split", str, place)
        if "filepath" in image:  # COCO only: the folder, train2014 or val2014
            name = f"{field(image, 'filepath', str, place)}/{name}"
        for sentence in field(image, "sentences", list, place):
            yield name, field(sentence, "raw", str, f"{place} sentences"), split


READERS = {
    "flickr8k": partial(read_flickr, "image,caption", COMMA),  # captions.txt, Flickr8k.token.txt
    "flickr30k": partial(
        read_flickr, "image_name|comment_number|comment", PIPED
    ),  # results.csv, results_20130124.token
    "coco": read_coco,
    "karpathy": read_karpathy,
}


def select(rows, split, source, notes):
    """The rows of `split`: names joined by + where rows carry one, otherwise a text file of image names, one a line."""
    found, names = Counter(row[2] for row in rows), split.split("+")
    if None not in found:
        if not set(names) <= set(found):
            raise ValueError(
                f"{source}: no split {split!r}; pass --split with one of these, or a+b (captions): {dict(found)}"
            )
        return [row for row in rows if row[2] in names]
    if not Path(split).is_file():
        raise ValueError(
            f"--split {split}: no such file, and {source} names no splits; pass a text file of image names, one a line"
        )
    wanted = {
        line.strip() for line in Path(split).read_text(encoding="utf-8-sig", errors="replace").split("\n")
    } - {""}
    kept = [
        row for row in rows if row[0] in wanted or Path(row[0]).stem in wanted
    ]  # Flickr30k's usual lists leave out the .jpg
    notes[f"named in {split}, but without a caption"] += sorted(
        wanted - {part for row in kept for part in (row[0], Path(row[0]).stem)}
    )
    return kept


def image_problem(images, name):
    """Why `name` is no image of the folder `images`, or None. Names are somebody's text: they must stay inside the folder."""
    if "\0" in name or not (images / name).resolve().is_relative_to(images.resolve()):
        return "dropped, outside the image folder"
    return None if os.path.isfile(images / name) else "dropped, not in the image folder"


def write_csv(path, rows):
    """Write `rows` under the header image_name,comment. The file appears whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([("image_name", "comment"), *rows])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def prepare(format, source, images, split, out, overwrite):
    """Read, select, check, write, and say what was done. Raises ValueError or OSError with the way out."""
    full, unique = out / "caption.csv", out / "unique_caption.csv"
    if not source.is_file():
        raise ValueError(
            f"{source}: {'a folder' if source.is_dir() else 'no such file'}; SOURCE is the captions file itself"
        )
    if images and not images.is_dir():
        raise ValueError(f"--images {images}: no such folder; pass the folder that holds the images")
    for path in (full, unique):
        if path.exists() and (path.samefile(source) or not overwrite):
            raise ValueError(
                f"{path} {'is SOURCE' if path.samefile(source) else 'exists; --overwrite replaces it'}; or pass another --out"
            )
    notes = defaultdict(list)  # what happened -> where, one entry a row
    try:
        rows = list(READERS[format](source.read_text(encoding="utf-8-sig"), source, notes))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source}: expected {format} captions in UTF-8 ({error}); it begins {source.read_bytes()[:80]}; "
            f"unpack it, or name another format ({', '.join(READERS)})"
        ) from None
    rows = [(name.strip(), " ".join(caption.split()), part) for name, caption, part in rows]
    rows = rows if split is None else select(rows, split, source, notes)
    problems = {name: image_problem(images, name) for name in {row[0] for row in rows}} if images else {}
    captions = defaultdict(list)  # image name -> its captions, in the file's order
    for name, caption, _ in rows:
        problem = (
            "dropped, empty caption"
            if not caption
            else "dropped, no image name"
            if not name
            else problems.get(name)
        )
        (notes[problem] if problem else captions[name]).append((name or caption) if problem else caption)
    told = [
        f"{len(at):>9,} {what}: {', '.join(sorted(set(at))[:3])}{' ...' * (len(set(at)) > 3)}"
        for what, at in notes.items()
        if at
    ]
    if not captions:
        raise ValueError(
            "\n".join(
                [
                    f"{source}: no caption left to write; check SOURCE, --split {split}, --images {images}",
                    *told,
                ]
            )
        )
    out.mkdir(parents=True, exist_ok=True)
    write_csv(full, [(name, text) for name, texts in captions.items() for text in texts])
    write_csv(unique, [(name, texts[0]) for name, texts in captions.items()])
    each = sorted(len(texts) for texts in captions.values())
    print(
        f"{len(each):>9,} images\n{sum(each):>9,} captions; per image min {each[0]}, median {statistics.median(each):g}, max {each[-1]}",
        *told,
        f"written: {full} and {unique}",
        f"next:    python train.py --csv {shlex.quote(str(full))} --images {shlex.quote(str(images or 'IMAGE_FOLDER'))}",
        sep="\n",
    )


def main(argv=None):
    """Returns 0 when both files were written and 1 when not; argparse leaves with 2 on wrong usage."""
    parser = argparse.ArgumentParser(
        "python -m tools.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("format", choices=READERS, help="whose files these are")
    parser.add_argument("source", type=Path, metavar="SOURCE", help="the official captions file")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="image folder; captions of images not in it are left out, and counted",
    )
    parser.add_argument(
        "--split",
        help="coco, karpathy: split name, or several as a+b; flickr8k, flickr30k: text file of image names",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder to write the two CSVs to (default: the folder of SOURCE)",
    )
    parser.add_argument(
        "--overwrite",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replace CSVs that are there already",
    )
    args = parser.parse_args(argv)
    try:
        prepare(
            args.format, args.source, args.images, args.split, args.out or args.source.parent, args.overwrite
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
