"""The corpus of captions files: those that are read, those that are refused, and names of images."""

import json
import os
import unicodedata
from functools import partial
from pathlib import Path

from models.dataset import VisionTextDataset, read_rows
from tests.corpus.encoders import RGB, saved
from tests.corpus.trial import write

HEAD = "image_name,comment\n"
ROWS = [("a.jpg", "a dog runs"), ("b.jpg", "two dogs, running")]
BODY = 'a.jpg,a dog runs\nb.jpg,"two dogs, running"\n'
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
NFD_CAFE = unicodedata.normalize("NFD", "café")
NO_NAME = "no column 'image_name'.*tools.prepare"


def good_encodings():
    words = [
        "naïve café",
        unicodedata.normalize("NFD", "naïve café"),
        "猫が走る",
        "🐈 ❤️",
        "כלב",
        "\U0010ffff",
    ]
    words += ["a\u2028b", "a\u0085b", "a\x1cb", "a\u200db"]  # str.splitlines cuts at three of them
    values = [("NA", "null"), ("001", "1e3"), ("-1", "=1+1")]
    return [
        ("plain.csv", HEAD + BODY, ROWS),
        ("bom.csv", "\ufeff" + HEAD + BODY, ROWS),
        ("bom and quotes.csv", '\ufeff"image_name","comment"\n' + BODY, ROWS),
        ("unicode.csv", HEAD + "".join(f"{w}.jpg,{w}\n" for w in words), [(f"{w}.jpg", w) for w in words]),
        ("values.csv", HEAD + "".join(f"{','.join(row)}\n" for row in values), values),
    ]


def line_ends():
    ends = {"crlf": "\r\n", "cr": "\r", "blank lines": "\n\n \n", "mixed": "\r\n\n"}
    rows = [("a.jpg", "a dog\nruns"), ("b.jpg", "a cat\r\nsits")]
    return [
        *((f"{name}.csv", (HEAD + BODY).replace("\n", end), ROWS) for name, end in ends.items()),
        ("no last.csv", (HEAD + BODY).rstrip("\n"), ROWS),
        ("blank first.csv", "\n\r\n" + HEAD + BODY, ROWS),
        ("in quotes.csv", HEAD + "".join(f'{name},"{text}"\n' for name, text in rows), rows),
    ]


def separators():
    files = []
    for name, separator in (("tab", "\t"), ("pipe", "|"), ("semicolon", ";"), ("comma", ",")):
        rows = [("a.jpg", "a dog runs"), ("b.jpg", "two, or; three|four dogs".replace(separator, ""))]
        for space in ("", " "):
            lines = [f"{n}{separator}{space}{text}" for n, text in [("image_name", "comment"), *rows]]
            files.append((f"{name}{len(space)}.csv", "\n".join(lines), rows))
    numbered = "image_name| comment_number| comment\na.jpg| 0| a dog runs\nb.jpg| 1| two dogs, running\n"
    unnamed = "\timage_name\tcomment\n0\ta.jpg\ta dog runs\n1\tb.jpg\ttwo dogs, running\n"
    return [
        *files,
        ("number.csv", numbered, ROWS),
        ("unnamed first.tsv", unnamed, ROWS),
        ("excel.csv", "\ufeffsep=,\r\n" + HEAD + BODY, ROWS),
        ("excel caret.csv", "sep=^\nimage_name^comment\na.jpg^a dog runs\n", ROWS[:1]),
        ("unnamed last.csv", "image_name,comment,\na.jpg,a dog runs,\n", ROWS[:1]),
    ]


def good_quotes():
    doubled = [("a.jpg", 'a "big" dog'), ("b.jpg", 'a 6" pipe')]
    quoted = "".join(f'"{name}","{text}"\n' for name, text in [("image_name", "comment"), *ROWS])
    return [
        ("doubled.csv", HEAD + 'a.jpg,"a ""big"" dog"\nb.jpg,a 6" pipe\n', doubled),
        ("all.csv", quoted, ROWS),
        ("single.csv", HEAD + "a.jpg,it's 'fine'\n", [("a.jpg", "it's 'fine'")]),
    ]


def names_and_rows():
    long = "dog " * 32_000 + "dog"
    return [
        ("spaces.csv", " image_name , comment \n  my photo.jpg ,  a dog  \n", [("my photo.jpg", "a dog")]),
        ("order.csv", "comment,split,image_name\na dog runs,train,a.jpg\n", ROWS[:1]),
        ("doubled.csv", HEAD + BODY + BODY, ROWS + ROWS),
        ("many.csv", HEAD + "a.jpg,a dog runs\n" * 100_000, ROWS[:1] * 100_000),
        ("long caption.csv", HEAD + f"a.jpg,{long}\n", [("a.jpg", long)]),
        *((name, HEAD + BODY, ROWS) for name in ("other case.CSV", "no end", "café 猫.csv")),
    ]


def bad_encodings():
    cafe = HEAD + "a.jpg,x\nb.jpg,café\n"
    nul = HEAD + "a.jpg,x\nb.jpg,a\0b\n"
    boms = {"utf-16": b"", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-32": b""}
    wide = [(f"{n}.csv", bom + (HEAD + BODY).encode(n), f"iconv -f {n[:6]} ") for n, bom in boms.items()]
    return [
        ("cp1252.csv", cafe.encode("cp1252"), "line 3: byte 0xe9.*cp1252"),
        ("cp1252 cr.csv", cafe.replace("\n", "\r").encode("cp1252"), "line 3: byte 0xe9"),
        *wide,
        ("utf-16 bare.csv", (HEAD + BODY).encode("utf-16-le"), "line 1: .*NUL"),
        ("nul.csv", nul, "line 3: .*NUL"),
        ("nul cr.csv", nul.replace("\n", "\r"), "line 3: .*NUL"),
        ("zeros.csv", bytes(5000), "NUL"),
        ("cut in a letter.csv", (HEAD + "a.jpg,café").encode()[:-1], "line 2: byte 0xc3"),
    ]


def columns():
    found = "no column 'comment'.*found: image_name, caption.*--caption-column"
    return [
        ("empty.csv", "", "found: nothing"),
        ("blank.csv", " \n\n\r\n", "found: nothing"),
        ("header only.csv", HEAD, "no captions"),
        ("no header.csv", BODY, NO_NAME),
        ("one missing.csv", "image_name,caption\na.jpg,x\n", found),
        ("doubled name.csv", "image_name,image_name,comment\na.jpg,b.jpg,x\n", "2 columns 'image_name'"),
        ("doubled comment.csv", "image_name,comment,comment\na.jpg,x,y\n", "2 columns 'comment'"),
        ("unquoted comma.csv", HEAD + "a.jpg,a dog, running\n", "line 2: 3 fields"),
        ("short row.csv", HEAD + "a.jpg,x\nb.jpg\n", "line 3: 1 fields?"),
        ("empty caption.csv", HEAD + "a.jpg,\n", "line 2: the caption is empty"),
        ("blank caption.csv", HEAD + "a.jpg,\u3000 \n", "line 2: the caption is empty"),
        ("empty name.csv", HEAD + " ,x\n", "line 2: the image name is empty"),
        ("list.csv", HEAD + 'a.jpg,"[""a dog"", ""a cat""]"\n', "line 2: .*list of 2: .*--caption-lists"),
        ("numpy list.csv", HEAD + "a.jpg,['a dog' 'a cat']\n", "line 2: .*list of 2: .*--caption-lists"),
        ("capitals.csv", "Image_Name,Comment\na.jpg,x\n", "found: Image_Name, Comment"),
    ]


def bad_quotes():
    opened = HEAD + 'a.jpg,x\nb.jpg,"opens\n'
    return [
        ("open.csv", opened + "c.jpg,y\n", "line 3: "),
        ("open, long.csv", opened + "c.jpg,y\n" * 50_000, "line 3: .*quote"),
        ("after.csv", HEAD + 'a.jpg,"Stop" sign\n', "line 2: "),
        ("long caption.csv", HEAD + f"a.jpg,{'x' * 1_000_000}\n", "line 2: .*131,?072"),
        ("long quoted caption.csv", HEAD + f'a.jpg,"{"x" * 1_000_000}"\n', "line 2: .*131,?072"),
        ("long line.csv", "x" * 1_000_000, "no column"),
    ]


def published_layouts():
    images = [{"id": i, "file_name": f"{i:012}.jpg"} for i in range(5000)]
    coco = json.dumps({"info": {}, "images": images, "annotations": []})
    karpathy = json.dumps({"images": [{"filename": "a.jpg", "sentences": []}]}, indent=1)
    flickr = "image_name| comment_number| comment\n1.jpg| 0| Two men .\n"
    captions = "image,caption\n1.jpg,A child , in a dress .\n"
    return [
        ("Flickr8k.token.txt", "1.jpg#0\tA child in a pink dress .\n" * 2, "no column.*tools.prepare"),
        ("captions.txt", captions, "--image-column.*tools.prepare"),
        ("results.csv", flickr + "2199200615.jpg| 4   A dog runs across the grass .\n", "line 3: 2 fields"),
        ("captions_train2017.json", coco, "no column.*tools.prepare"),
        ("dataset_coco.json", karpathy, "no column.*tools.prepare"),
        ("rows.jsonl", '{"image_name": "a.jpg", "comment": "a dog"}\n' * 3, "no column"),
    ]


def other_files():
    return [
        ("book.xlsx", b"PK\3\4" + bytes(range(256)) * 9, "workbook|ZIP"),
        ("rows.csv.gz", b"\x1f\x8b\x08" + bytes(range(256)), "gzip"),
        ("photo.csv", saved(RGB, "PNG"), "NUL"),
        ("page.csv", "<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
        ("pointer.csv", LFS, "git lfs pull"),
    ]


GOOD = {"encodings": good_encodings, "line ends": line_ends, "separators": separators, "quotes": good_quotes}
GOOD |= {"names and rows": names_and_rows}
BAD = {"encodings": bad_encodings, "columns": columns, "quotes": bad_quotes}
BAD |= {"published layouts": published_layouts, "other files": other_files}
KINDS = list(dict.fromkeys([*GOOD, *BAD, "names of images"]))
OUTSIDE = "leads out of the image folder"
# Image names in the second row of a file whose first row is good, and the pattern of the error. "{}" is the
# folder of the corpus.
BAD_NAMES = {
    "../outside.jpg": OUTSIDE,
    "{}/outside.jpg": OUTSIDE,
    "/etc/hostname": OUTSIDE,
    "inner/../../outside.jpg": OUTSIDE,
    "out.jpg": OUTSIDE,
    "up/outside.jpg": OUTSIDE,
    "inner": "a folder",
    ".": "a folder",
    "..": OUTSIDE,
    "circle.jpg": "ymbolic link|ymlink loop",
    "pipe.jpg": "a pipe",
    "gone.jpg": "no such file",
    "a.jpg/x.jpg": "no such file|Not a directory",
    "n" * 300 + ".jpg": "too long",
    "~/a.jpg": "no such file",
    "inner\\c.jpg": "no such file",
    "A.JPG": "no such file",
    "café.jpg": "Unicode",
}
GOOD_NAMES = ["my photo.jpg", "inner/c.jpg", "./a.jpg", "in.jpg", "{}/images/a.jpg", "inner/../b.jpg"]
GOOD_NAMES += [f"{NFD_CAFE}.jpg"]


def pairs(path, images=None):
    """[(image name, caption)] of a captions file; with `images`, their files are looked up too."""
    rows = VisionTextDataset(path, None, images).rows if images else read_rows(path)
    return [(row.image_name, row.text) for row in rows]


def make_captions(folder):
    """Write the captions files to `folder`, which must be empty, and return their Cases."""
    folder, cases = Path(folder), []
    for kind, files in GOOD.items():
        cases += [write(folder, kind, name, data, rows, read=pairs) for name, data, rows in files()]
    for kind, files in BAD.items():
        cases += [write(folder, kind, name, data, None, error, read=pairs) for name, data, error in files()]
    return cases + list(_not_files(folder)) + list(_names(folder))


def _not_files(folder):
    data = {"unreadable": HEAD + BODY}
    errors = dict(folder="folder", pipe="pipe", missing="No such file", unreadable="ermission")
    errors |= dict(circle="symbolic links")
    cases = {
        name: write(folder, "other files", f"{name}.csv", data.get(name), None, error, read=pairs)
        for name, error in errors.items()
    }
    cases["folder"].path.mkdir()
    os.mkfifo(cases["pipe"].path)
    cases["unreadable"].path.chmod(0)
    cases["circle"].path.symlink_to("circle.csv")
    return cases.values()


def _names(folder):
    images, kind = folder / "images", "names of images"
    (images / "inner").mkdir(parents=True)
    files = ("a.jpg", "b.jpg", "my photo.jpg", "inner/c.jpg", "../outside.jpg", f"{NFD_CAFE}.jpg")
    for name in files:
        (images / name).write_bytes(saved(RGB, "JPEG"))
    links = {"out.jpg": "../outside.jpg", "in.jpg": "inner/c.jpg", "up": "..", "circle.jpg": "circle.jpg"}
    for name, target in links.items():
        (images / name).symlink_to(target)
    os.mkfifo(images / "pipe.jpg")
    read = partial(pairs, images=images)
    for number, (name, error) in enumerate(BAD_NAMES.items()):
        data = f"{HEAD}a.jpg,x\n{name.format(folder)},y\n"
        yield write(folder, kind, f"bad {number}.csv", data, None, f"line 3: .*({error})", read=read)
    for number, name in enumerate(name.format(folder) for name in GOOD_NAMES):
        yield write(folder, kind, f"good {number}.csv", f"{HEAD}{name},y\n", [(name, "y")], read=read)
