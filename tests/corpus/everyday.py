"""The corpus of what people have on their disks, kind by kind: photographs, tars, folders, text files. Each
was found in a bug report about a comparable tool. The right value is what was put in, or follows from a
published format."""

import base64
import csv
import io
import json
import os
import tarfile
from collections import defaultdict
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from models.dataset import VisionTextDataset, open_image, read_rows
from tests.corpus.captions import HEAD, pairs
from tests.corpus.encoders import RGB, exif, png, saved, scene
from tests.corpus.trial import Came, write

# RGB as HEIC by libheif 1.23: no package that this project needs writes one.
HEIC = base64.b64decode("""
    AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAWltZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA
    ACJpbG9jAAAAAERAAAEAAQAAAAABjQABAAAAAAAAARwAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt
    AAAAAAABAAAA6WlwcnAAAADKaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA
    AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAAUaXNwZQAA
    AAAAAABAAAAAQAAAAChjbGFwAAAAOAAAAAEAAAAoAAAAAf////gAAAAC////6AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAF2lwbWEA
    AAAAAAAAAQABBIECBIMAAAEkbWRhdAAAARgoAa8O4FeybLRzXeon5lJjod0Na9iR7CnXpBldyv7sijOKurOwumI1I7O8V/waRQId
    lQYKnvrFxAox8eLzzkaif8NlIxt7kul4O5X644yTaKwhRL4uYzkMVn8yxcy6fBqDbabP3e2SP9a9kHYc6xVOVYFf9WrF3C6DCmFj
    i8LCtr8os7CaIcCqaowzTyoeebCzZ+nsAC6W8ZiXHEp9z0kHtRTuNZYPoE5CRymdNrx++cuzCODZblr9UXb9oEb1neTCG0btQxdM
    yF9icARoI0twdT+s98/lnBSrjRP9ZCMYKwUWqf8y3SJgpNrlntCJCSrYK/AfE/efsWFEnBohmrGZDTeJ2F+cKuOD3MMgK9xuUI1r
    8Plcfi/8
""")
JPEG = saved(RGB, "JPEG")


def small(path):
    """An image of any size at the size of the scene."""
    return open_image(path).resize(RGB.shape[1::-1], Image.Resampling.BOX)


def tiff_pages(*parts):
    """A TIFF (bytes) of the pages (pixels, how tifffile writes them)."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as out:
        for pixels, how in parts:
            out.write(pixels, **how)
    return file.getvalue()


def photographs(folder):
    """A phone's 90 megapixels, cameras' raw files, HEIC with and without the package that reads it."""
    add = partial(write, folder, "large, raw and HEIC photographs")
    large = Image.fromarray(RGB).resize((11_200, 8_000), Image.Resampling.BILINEAR)
    turned = saved(large.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=70, exif=exif(6))
    cut = JPEG.replace(bytes([0, 40, 0, 56]), bytes([40, 0, 40, 0]))
    sensor = np.arange(120 * 160, dtype=np.uint16).reshape(120, 160), dict(photometric=32803)
    page, thumbnail = dict(photometric="rgb"), dict(photometric="rgb", subfiletype=1)
    digital_negative = tiff_pages((RGB, thumbnail | dict(extratags=[(50706, 1, 4, b"\1\4\0\0")])))
    pyramid = tiff_pages((RGB, page | dict(subifds=1)), (RGB[::2, ::2], thumbnail))
    right = (RGB, None, 4) if find_spec("pillow_heif") else (None, "pip install pillow-heif")
    return [
        add("phone.jpg", saved(large, "JPEG", quality=70), RGB, None, 4, read=small),
        add("upright.jpg", turned, RGB, None, 4, read=small),
        add("cut.jpg", cut, None, "cannot hold"),
        add("large.png", png(RGB, 8, 2, size=(11_200, 8_000)), None, "over the limit"),
        add("photo.NEF", tiff_pages((RGB, thumbnail | dict(subifds=1)), sensor), None, "raw photograph"),
        add("photo.dng", digital_negative, None, "raw photograph"),
        add("photo.CR2", b"II*\0\x10\0\0\0CR\2\0" + bytes(99), None, "raw photograph"),
        add("photo.RW2", b"IIU\0\x18\0\0\0" + bytes(99), None, "raw photograph"),
        add("preview.tif", tiff_pages((RGB, thumbnail), (scene(80, 112), page)), None, "a thumbnail"),
        add("scans.tif", tiff_pages((RGB, page), (scene(80, 112), page)), RGB),
        add("pyramid.tif", pyramid, RGB),
        add("IMG_1.HEIC", HEIC, *right),
        add("IMG_2.jpg", HEIC, *right),
    ]


def packed(path, images):
    """[(caption, shade of grey)] of what a reader of WebDataset finds in the tar that tools.pack makes."""
    from tools import pack

    errors = io.StringIO()
    flags = ["--csv", str(path), "--images", str(images), "--out", f"{path.with_suffix('')}-{{:05}}.tar"]
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = pack.main(flags)
    if code:
        raise ValueError(f"{path}: {errors.getvalue()}")
    samples = defaultdict(dict)
    with tarfile.open(f"{path.with_suffix('')}-00000.tar") as tar:
        for member in tar:
            key, _, ending = member.name.partition(".")
            samples[key][ending.lower()] = tar.extractfile(member).read()
    found = []
    for sample in samples.values():
        text = sample.pop("json", None)
        captions = json.loads(text)["captions"] if text else [sample.pop("txt").decode()]
        (image,) = sample.values()
        grey = round(np.asarray(open_image(io.BytesIO(image))).mean() / 20) * 20
        found += [(caption, grey) for caption in captions]
    return Came(sorted(found), len(found))


def names_packed(folder):
    """Names whose dots, endings and folders are no keys of a tar."""
    formats = "GIF .gif,BMP .bmp,TIFF .tif,AVIF .avif,JPEG2000 .jp2,JPEG .JPG,JPEG ,PNG .png,WEBP .webp"
    kinds = {
        "dates": [(f"2024.06.{day:02} beach.png", "PNG") for day in range(1, 13)],
        "one stem": [("same.jpg", "JPEG"), ("same.png", "PNG"), ("same.bmp", "BMP")],
        "two folders": [("a/x.png", "PNG"), ("b/x.png", "PNG"), ("b.c/x.png", "PNG")],
        "dots first": [("..a.png", "PNG"), (".b.png", "PNG"), ("c..png", "PNG")],
        "formats": [(f"image{kind.split(' ')[1]}", kind.split(" ")[0]) for kind in formats.split(",")],
    }
    for name, files in kinds.items():
        images, rows = folder / "packed" / name, []
        for number, (image, format) in enumerate(files):
            grey = 20 * number
            path = images / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(saved(Image.new("RGB", (16, 16), (grey,) * 3), format))
            rows.append((image, f"grey {grey}"))
        table = HEAD + "".join(f"{image},{caption}\n" for image, caption in rows)
        want = sorted((caption, int(caption[5:])) for _, caption in rows)
        read = partial(packed, images=images)
        yield write(folder, "names that are packed", f"{name}.csv", table, want, read=read, seen=len(rows))


def unpacked(path):
    """The captions read from a tar; counted are its members."""
    from models.features.tars import Tally, samples

    tally = Tally()
    found = list(samples(path, tally))
    read = sum(len(sample.members) for sample in found)
    captions = sorted(caption for sample in found for caption in sample.captions)
    return Came(captions, read + sum(count for count, _ in tally.left_out.values()))


def tar(names):
    """A tar (bytes) of images and of texts that hold their own names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as out:
        for name in names:
            member, data = tarfile.TarInfo(name), JPEG if name.endswith("jpg") else name.encode()
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return file.getvalue()


def tars(folder):
    """Tars whose members a reader might lose."""
    sample = ["0001.jpg", "0001.txt", "0002.jpg", "0002.txt"]
    files = {
        "dotted keys": [*sample, "22.05.jpg", "22.05.txt", "Track 2.0.jpg", "Track 2.0.txt"],
        "other kinds": [*sample, "0003.mp4", "0003.cls", "readme"],
        "half a sample": [*sample, "0003.jpg", "0004.txt"],
        "twice": ["0001.jpg", "0001.png.jpg", *sample],
        "system files": ["._0001.jpg", "__MACOSX/._0001.jpg", *sample],
    }
    captions = ["0001.txt", "0002.txt"]
    for name, names in files.items():
        yield write(
            folder, "members of tars", f"{name}.tar", tar(names), captions, read=unpacked, seen=len(names)
        )
    data = tar(sample) + tar(["0003.jpg", "0003.txt"])
    captions = [*captions, "0003.txt"]
    yield write(folder, "members of tars", "joined.tar", data, captions, read=unpacked, seen=6)


def walked(path, **options):
    """The images in a folder; counted are its files."""
    from models.dataset import walk

    found = walk(path, **options)
    return Came(sorted(found.files), found.seen)


def classes(path):
    """The names of the class folders in a folder."""
    from models.dataset import by_class

    return sorted(by_class(path))


# {name: the images and videos in it, then what else lies there}.
FOLDERS = {
    "nas": (["2019/a.jpg", "b.jpg"], ["2019/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "#recycle/b.jpg"]),
    "finder": (["a.jpg"], [".DS_Store", "._a.jpg", "__MACOSX/._a.jpg", "Icon\r"]),
    "windows": (["a.JPG"], ["Thumbs.db", "desktop.ini", "$RECYCLE.BIN/a.jpg"]),
    "notebook": (["a.jpg"], [".ipynb_checkpoints/a-checkpoint.jpg", "a.ipynb", ".git/a.jpg"]),
    "phone": (["IMG_7.JPG", "IMG_7.MOV"], ["IMG_7.AAE"]),
}
CLASSES = {
    "notebook": [".ipynb_checkpoints/", "boat/a.jpg", "dog/a.jpg"],
    "finder": [".DS_Store", "boat/Thumbs.db", "boat/a.jpg", "dog/.DS_Store", "dog/a.jpg"],
    "empty": ["cat/", "boat/a.jpg", "dog/a.jpg"],
}


def filled(case, names):
    for name in names:
        path = case.path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(JPEG if name.lower().endswith("jpg") else b"\0")
    return case


def folders(folder):
    """Folders as systems and programs leave them."""
    add = partial(write, folder, "folders", data=None)
    for name, (images, others) in FOLDERS.items():
        case = add(name, want=images, read=walked, seen=len(images) + len(others))
        yield filled(case, [*images, *others])
    for name, files in CLASSES.items():
        yield filled(add(f"classes {name}", want=["boat", "dog"], read=classes), files)
    links = add("cache", want=["a.jpg", "b.jpg"], read=partial(walked, follow_links=True), seen=2)
    links.path.mkdir(parents=True)
    for name in links.want:
        (links.path.parent / f"blob {name}").write_bytes(JPEG)
        (links.path / name).symlink_to(f"../blob {name}")
    yield links
    yield filled(links._replace(path=links.path.with_name("plain"), want=["a.jpg"], seen=1), ["a.jpg"])


def labels(path):
    from models.dataset import read_labels

    return read_labels(path)


def class_names(path):
    from models.dataset import read_class_names

    return sorted(read_class_names(path, ["n02084071", "n02858304"]).items())


def columns(path):
    rows = read_rows(path, "file_name", [f"caption_{number}" for number in range(5)])
    return [(row.image_name, row.text) for row in rows]


def found(path, images):
    return VisionTextDataset(path, None, images).image_names


def texts(folder):
    """Lists of labels and class names, and tables, as other programs write them."""
    add = partial(write, folder, "text files")
    lines, named = "a café\na boat\n", [("n02084071", "dog, domestic dog"), ("n02858304", "boat")]
    five = "file_name," + ",".join(f"caption_{number}" for number in range(5)) + "\na.jpg,1,2,3,4,5\n"
    for name, encoding in (("plain", "utf-8"), ("mark", "utf-8-sig")):
        yield add(f"{name}.txt", lines.encode(encoding), ["a café", "a boat"], read=labels)
    for encoding in ("utf-16", "utf-16-le", "utf-32", "cp1252"):
        yield add(f"{encoding}.txt", lines.encode(encoding), None, "line 1.*iconv", read=labels)
    for name, separator in (("space", " "), ("tab", "\t"), ("comma", ",")):
        data = "".join(f"{wordnet}{separator}{text}\n" for wordnet, text in named)
        yield add(f"names by {name}.txt", data, named, read=class_names)
    yield add("no name.txt", "n02084071 dog\n", None, "n02858304", read=class_names)
    yield add("no folder.txt", "n02084071 dog\nn02858304 boat\nn9 x\n", None, "n9", read=class_names)
    excel = "\ufeffsep=;\r\nimage_name;comment\r\na.jpg;a dog\r\n"
    yield add("excel.csv", excel, [("a.jpg", "a dog")], read=pairs, seen=1)
    yield add("five.csv", five, [("a.jpg", text) for text in "12345"], read=columns, seen=5)


def tables(folder):
    """Captions files whose images lie elsewhere, or under slightly other names."""
    add = partial(write, folder, "names that no file has")
    images = folder / "archive"
    images.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (images / name).write_bytes(JPEG)
    many = HEAD + "".join(f"{number:012}.jpg,x\n" for number in range(3000))
    bad = {
        "nowhere": (many, "--images right"),
        "case": (f"{HEAD}a.JPG,x\nb.JPG,y\n", r"a\.jpg"),
        "windows": (f"{HEAD}C:\\photos\\a.jpg,x\n", r"[^\\]a\.jpg"),
        "another ending": (f"{HEAD}a.jpg,x\nb.jpeg,y\n", r"b\.jpg"),
    }
    for name, (data, error) in bad.items():
        yield add(f"{name}.csv", data, None, error, read=partial(found, images=images))
    right = f"{HEAD}a.jpg,x\nb.jpg,y\n"
    yield add("right.csv", right, ["a.jpg", "b.jpg"], read=partial(found, images=images))
    for year, other in (("train2014", "train2017"), ("val2014", "val2017")):
        coco = folder / f"coco {year}"
        entries = [
            dict(filepath=year, filename=f"COCO_{year}_{number:012}.jpg", split="train", cocoid=number)
            | dict(sentences=[dict(raw=f"caption {number}")])
            for number in range(1, 4)
        ]
        (coco / other).mkdir(parents=True)
        for number in range(1, 4):
            (coco / other / f"{number:012}.jpg").write_bytes(JPEG)
        want = [f"caption {number}" for number in range(1, 4)]
        data = json.dumps(dict(images=entries))
        yield add(f"{year}.json", data, want, read=partial(prepared, images=coco), seen=3)


def prepared(path, images):
    """The captions that tools.prepare writes from Karpathy's split over a folder of images that are there."""
    from tools.prepare import __main__ as prepare

    out, errors = path.with_suffix(""), io.StringIO()
    flags = ["karpathy", str(path), "--images", str(images), "--out", str(out)]
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = prepare.main(flags)
    if code:
        raise ValueError(f"{path}: {errors.getvalue()}")
    with open(out / "caption.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(os.path.isfile(images / row["image_name"]) for row in rows)
    return Came([row["comment"] for row in rows], len(rows))


MAKERS = (photographs, names_packed, tars, folders, texts, tables)
KINDS = "large, raw and HEIC photographs|names that are packed|members of tars|folders|text files".split("|")
KINDS += ["names that no file has"]


def make_everyday(folder):
    """Write the files to `folder`, which must be empty, and return their Cases."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    return [case for make in MAKERS for case in make(folder)]
