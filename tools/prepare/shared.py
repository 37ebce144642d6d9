"""What captions and questions share: checked fields of JSON, the image folder, the CSV, the summary."""

import csv
import json
import os
from functools import cache

from models.files import replacing, tally


def load_json(source, kind=dict):
    """The `kind`, dict or list, that a JSON file holds. Raises ValueError with what the file begins with."""
    from models.dataset import read_text

    text = read_text(source)
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{source}: expected JSON ({error}); it begins {text[:80]!r}; download it again"
        ) from None
    if isinstance(data, kind):
        return data
    raise ValueError(
        f"{source}: expected a {kind.__name__}, found {str(data)[:100]}; check SOURCE and its format"
    )


def field(entry, key, kind, place):
    """entry[key], which must be a `kind`. Raises ValueError with its place in the JSON file."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, kind):
        return value
    raise ValueError(
        f"{place}: expected a {kind.__name__} {key!r}, found {str(entry)[:100]}; "
        "fix it, or check SOURCE and its format"
    )


def locator(images, notes, any_ending=False):
    """A function from an image name to (its name in the folder `images`, why it is dropped or None). Without
    a folder every name is right. An image of COCO under another name is found by its id, and with
    `any_ending` a file with another ending by the rest of its name; both are added to `notes`."""
    from models.dataset import Lookalikes, image_path
    from models.dataset.lookalikes import COCO_ID, ENDING

    if not images:
        return lambda name: (name, None)
    looks = Lookalikes(images)

    @cache
    def locate(name):
        """(the name in the folder, None), or (the name, why its rows are dropped)."""
        why = "not in the image folder"
        try:
            if os.path.isfile(image_path(images, name, follow_links=True)):
                return name, None
        except ValueError:
            why = "outside the image folder"
        found, how = looks.find(name) or (name, "")
        if how == COCO_ID:
            notes["images found by their COCO id"].append(f"{found} for {name}")
            return found, None
        if how == ENDING and any_ending:
            notes["files found under another ending"].append(f"{found} for {name}")
            return found, None
        if found != name:
            why = f"in the image folder under another name ({how})"
        return name, f"dropped, {why}"

    return locate


def check_paths(sources, images, outputs, overwrite):
    """Raise ValueError when something to read is missing, or something to write exists already."""
    for source in sources:
        if not source.is_file():
            what = "a folder" if source.is_dir() else "no such file"
            raise ValueError(f"{source}: {what}; SOURCE is the official file itself")
    if images and not images.is_dir():
        raise ValueError(f"--images {images}: no such folder; give the folder that holds the images")
    for path in outputs:
        if path.exists() and any(path.samefile(source) for source in sources):
            raise ValueError(f"{path} is SOURCE; give another --out")
        if path.exists() and not overwrite:
            raise ValueError(f"{path} exists; replace it with --overwrite, or give another --out")


def write_csv(path, rows, header=("image_name", "comment")):
    """Write a CSV of these rows, whole or not at all; captions by default."""
    with replacing(path) as new, open(new, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def account(sources, unit, used, notes, start="dropped, "):
    """How many captions or questions came out and how many were left out: the notes that begin so."""
    left_out = {
        what.removeprefix(start): len(places) for what, places in notes.items() if what.startswith(start)
    }
    return f"{' and '.join(map(str, sources))}: {tally(unit, used, left_out)}"


def summary(notes):
    """One line for each kind of note, with its number and the first three places."""
    for what, places in notes.items():
        if places:
            names = sorted(set(places))
            yield f"{len(places):>9,} {what}: {', '.join(names[:3])}{' ...' * (len(names) > 3)}"
