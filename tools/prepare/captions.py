"""The official captions of Flickr8k, Flickr30k, COCO, MSR-VTT and MSVD, and Karpathy's splits."""

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
# A line of MSVD: the id of a video of YouTube with the seconds where the clip begins and ends.
CLIP = re.compile(r"(?P<id>[\w-]+_\d+_\d+)\s+(?P<caption>.*)", re.ASCII)
# The endings of the official files; the captions name videos without one.
VIDEOS = {"msrvtt": ".mp4", "msvd": ".avi"}


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
    split = re.search("(?<![a-z])(trainval|train|val|test)(?![a-z])", source.name)

    def about(image, place):
        return field(image, "file_name", str, place), split and split[0]

    return joined(text, source, notes, int, ("images", "id", about), ("annotations", "image_id"))


def read_msrvtt(text, source, notes):
    """Yield (video name, caption, split) from MSRVTT_data.json, train_val_videodatainfo.json and the like, or
    (video name, caption, None) from MSRVTT_JSFUSION_test.csv, the split 1k-A, which has one caption of each
    video."""
    from models.dataset import read_rows

    def about(video, place):
        return video["video_id"] + VIDEOS["msrvtt"], field(video, "split", str, place)

    if "video_id" in text.partition("\n")[0] and not text.lstrip().startswith("{"):
        for row in read_rows(source, "video_id", "sentence"):
            yield row.image_name + VIDEOS["msrvtt"], row.text, None
    else:
        yield from joined(text, source, notes, str, ("videos", "video_id", about), ("sentences", "video_id"))


def joined(text, source, notes, kind, things, captions):
    """Yield (name, caption, split) for each caption of a JSON file with two lists. `things` is the name of
    the list of images or videos, the key of their ids, and a function (entry, place) -> (name, split);
    `captions` is the name of the list of captions and the key of those ids. An id is a `kind`."""
    data = json.loads(text)
    (many, own, about), (entries, key) = things, captions
    one, entry_name = many.removesuffix("s"), entries.removesuffix("s")
    known = {}
    for i, thing in enumerate(field(data, many, list, source)):
        place = f"{source} {many}[{i}]"
        number = field(thing, own, kind, place)
        told = about(thing, place)
        if known.setdefault(number, told) != told:
            raise ValueError(f"{place}: id {number} is {known[number][0]} already; delete one of the two")
    captioned = set()
    for i, entry in enumerate(field(data, entries, list, source)):
        place = f"{source} {entries}[{i}]"
        number, caption = field(entry, key, kind, place), field(entry, "caption", str, place)
        if number in known:
            captioned.add(number)
            name, split = known[number]
            yield name, caption, split
        else:
            notes[f"dropped, {entry_name} of an unknown {one}"].append(f"{entries}[{i}] of {key} {number}")
    notes[f"{many} without a caption"] += [known[number][0] for number in known if number not in captioned]


def read_msvd(text, source, notes):
    """Yield (video name, caption, None) for each line of AllVideoDescriptions.txt. Lines that begin with #
    are comments."""
    from models.dataset import split_lines

    for number, line in enumerate(split_lines(text), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = CLIP.fullmatch(line.strip())
        if not match:
            raise ValueError(
                f"{source}:{number}: expected ID_START_END caption, found {line[:100]!r}; "
                "fix or delete this line, or check SOURCE and its format"
            )
        yield match["id"] + VIDEOS["msvd"], match["caption"], None


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
    "msrvtt": read_msrvtt,
    "msvd": read_msvd,
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
    """(the rows of a split, lines about it). A split is names joined by + where the rows have splits, or the
    path of a text file of image names."""
    from models.dataset import read_lines

    found, names = Counter(row[2] for row in rows), split.split("+")
    known = set(names) <= set(found)
    if None not in found and (known or not Path(split).is_file()):
        if not known:
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


def keep_good(rows, images, notes, any_ending=False):
    """{image name: captions} in the order of the rows, without empty captions and unusable images;
    `any_ending` is that of `locator`."""
    locate = locator(images, notes, any_ending)
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
    captions = keep_good(rows, images, notes, any_ending=args.format in VIDEOS)
    if not captions:
        what = f"{source}: no caption is left; check SOURCE, --split {args.split} and --images {images}"
        raise ValueError("\n".join([what, *summary(notes)]))
    write_csv(full, [(name, text) for name, texts in captions.items() for text in texts])
    write_csv(unique, [(name, texts[0]) for name, texts in captions.items()])
    each = sorted(map(len, captions.values()))
    spread = f"min {each[0]}, median {statistics.median(each):g}, max {each[-1]}"
    thing = "video" if args.format in VIDEOS else "image"
    command = ["python", "train.py", "--csv", str(full), "--images", str(images or "IMAGE_FOLDER")]
    return [
        f"{len(each):>9,} {thing}s",
        f"{sum(each):>9,} captions; per {thing} {spread}",
        *lines,
        account(args.source, "captions", sum(each), notes),
        *summary(notes),
        f"written: {full} and {unique}",
        f"next:    {shlex.join(command)}",
    ]
