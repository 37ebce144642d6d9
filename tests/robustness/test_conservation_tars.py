"""Whatever is in a tar comes out or is counted: members seen = members read + members left out, by reason.

The independent source is the standard library: tarfile says how many members there are, Pillow which images
decode, and WebDataset's own expression where a name is split."""

import io
import json
import re
import tarfile
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.features import shard_files
from models.features.shards import encode_shards, open_shards
from models.features.tars import IMAGES, Tally
from tests.conftest import Letters, Pixels, picture, write_csv
from tools import pack

# webdataset 1.0.2, tariterators.py, base_plus_ext
SPLIT = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")


def content_of(form, seed=0):
    """A small picture as the bytes of a file of a format of Pillow."""
    file = io.BytesIO()
    picture(seed).save(file, form)
    return file.getvalue()


PICTURES = {form: content_of(form) for form in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")}
CONTENTS = st.sampled_from(
    [*PICTURES.values(), PICTURES["JPEG"][:300], b"", b"a caption", b"caf\xe9", b" \n"]
    + [b'{"captions": ["a", "b"]}', b'{"captions": []}', b'{"url": "x"}']
)
KEYS = st.sampled_from(
    ["0001", "0002", "22.05", "Track 2.0", "", ".", "a/0001", "b.d/0001", "./0003", "é", "-x", "x" * 150]
)
ENDINGS = st.sampled_from(
    [".jpg", ".jpg", ".JPG", ".txt", ".txt", ".json", ".gif", ".tif", ".seg.png", ".cls", "", ".tar.gz"]
)
TYPES = [tarfile.REGTYPE] * 8
TYPES += [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
MEMBERS = st.lists(st.tuples(KEYS, ENDINGS, CONTENTS, st.sampled_from(TYPES)), max_size=12)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def tar_of(members, form):
    """The bytes of a tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for key, ending, content, kind in members:
            member = tarfile.TarInfo(f"{key}{ending}" or "x")
            member.type, member.linkname = kind, "elsewhere.jpg"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def naive_counts(tar):
    """(members, pairs of an image that decodes and a caption) in a tar by the standard library."""
    with tarfile.open(fileobj=io.BytesIO(tar), ignore_zeros=True) as members:
        seen = len(members.getmembers())
        files = [(m.name.removeprefix("./"), members.extractfile(m).read()) for m in members if m.isreg()]
    parts = [(SPLIT.fullmatch(name), content) for name, content in files]
    parts = [(match[1], match[2].lower(), content) for match, content in parts if match]
    parts = [part for part in parts if part[1] in (*IMAGES, "txt", "json")]
    samples = [[part[1:] for part in own] for _, own in groupby(parts, lambda part: part[0])]
    return seen, sum(map(has_both, samples))


def has_both(parts):
    """Whether the last image of [(ending, content)] decodes and its text is a caption."""
    texts = {ending: content for ending, content in parts if ending in ("txt", "json")}
    images = [content for ending, content in parts if ending in IMAGES]
    try:
        Image.open(io.BytesIO(images[-1])).load()
        if "txt" in texts:
            return bool(texts["txt"].decode().strip())
        return bool(json.loads(texts["json"])["captions"])
    except (OSError, ValueError, LookupError):
        return False


def encode(path, folder):
    """(number of images, Tally) of encoding a tar."""
    (name,) = encode_shards(str(path), folder, Pixels(), Letters(), workers=1, quiet=True)
    _, tensors, tally = shard_files.read(folder / f"{name}.safetensors")
    return len(tensors["image"]), tally


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(MEMBERS, FORMATS), min_size=1, max_size=2))
def test_members_of_any_tar_come_out_or_are_counted(tmp_path_factory, archives):
    """Ordinary readers do not see the second of two tars that were joined by cat."""
    folder = tmp_path_factory.mktemp("tars")
    joined = b"".join(tar_of(*archive) for archive in archives)
    (folder / "t.tar").write_bytes(joined)
    images, tally = encode(folder / "t.tar", folder / "features")
    assert (tally.seen, images) == naive_counts(joined)
    assert tally.seen == tally.read + sum(count for count, _ in tally.left_out.values())
    assert tally.read == 2 * images
    assert all(count and names for count, names in tally.left_out.values()) and not tally.cut_short


def test_names_that_split_oddly_are_named_with_the_reason(tmp_path, caplog):
    keys = ("0001", "0002", "22.05", "0003", "22.06", "Track 2.0")
    pairs = ((".jpg", PICTURES["JPEG"]), (".txt", b"a caption"))
    members = [(key, ending, content, tarfile.REGTYPE) for key in keys for ending, content in pairs]
    (tmp_path / "t.tar").write_bytes(tar_of(members, tarfile.PAX_FORMAT))
    caplog.set_level("INFO")
    assert encode(tmp_path / "t.tar", tmp_path / "f")[0] == 3
    assert "3 images, 3 captions, from 6 of 12 members; left out 6: 6 with a dot" in caplog.text
    assert "(22.05.jpg, 22.05.txt, 22.06.jpg, ...)" in caplog.text


def test_names_of_strangers_are_printed_without_control_characters(tmp_path, caplog):
    member = ("a\x1b[2J\n", ".exe", b"", tarfile.REGTYPE)
    (tmp_path / "t.tar").write_bytes(tar_of([member], tarfile.PAX_FORMAT))
    caplog.set_level("INFO")
    encode(tmp_path / "t.tar", tmp_path / "f")
    assert "a\\x1b[2J\\n.exe" in caplog.text and "\x1b" not in caplog.text


def test_tallies_of_several_tars_add_up():
    one, other = (Tally(5, 3, {"why": [2, ["a", "b"]]}, {"blanks": 1}, ["t.tar after b"]) for _ in range(2))
    one.add(other)
    said = "from 6 of 10 members; left out 4: 4 why (a, b, a, ...); passed over 2 blanks"
    assert str(one) == f"{said}; 2 cut short or damaged (t.tar after b, t.tar after b)"


def test_every_ending_of_the_formats_is_read():
    from models.dataset import FORMATS

    endings = {ending[1:] for ending, form in Image.registered_extensions().items() if form in FORMATS}
    assert endings - set(IMAGES) == set()


NAME = st.lists(
    st.sampled_from(["a", "A", ".", "-", " ", "2024.06.01", "é", "e\u0301", "日", "b/", "x" * 60, "_", "%"]),
    min_size=1,
    max_size=4,
).map(lambda parts: "".join(parts).strip())


def is_file_name(name):
    return not {"", ".", ".."} & set(name.split("/"))


@settings(max_examples=60, deadline=None)
@given(st.lists(NAME.filter(is_file_name), min_size=1, max_size=8, unique=True), st.integers(1, 3))
def test_pack_loses_no_image_whatever_its_name(tmp_path_factory, stems, per_shard):
    folder = tmp_path_factory.mktemp("pack")
    endings = [".jpg", ".png", "", ".JPG", ".tif", ".gif"]
    names = [stem + ending for stem, ending in zip(stems, endings * 2)]
    forms = ["JPEG", "PNG", "JPEG", "JPEG", "TIFF", "GIF"] * 2
    files = {}
    for i, (name, form) in enumerate(zip(names, forms)):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files[name] = content_of(form, i)
        path.write_bytes(files[name])
    csv = write_csv(folder / "c.csv", [(name, f"caption {i}") for i, name in enumerate(files)])
    out = ["--out", str(folder / "t-{:02}.tar"), "--per-shard", str(per_shard)]
    assert pack.main(["--csv", str(csv), "--images", str(folder / "images"), *out]) == 0
    found = {}
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as members:
            contents = {SPLIT.fullmatch(m.name).groups(): members.extractfile(m).read() for m in members}
        for (key, ending), content in contents.items():
            if ending in ("jpg", "jpeg", "png", "tif", "gif"):
                record = json.loads(contents[key, "json"])
                found[record["image_name"]] = (key, content, record["captions"])
    assert {name: content for name, (_, content, _) in found.items()} == files
    assert [own for *_, own in found.values()] == [[f"caption {i}"] for i in range(len(files))]
    assert len({key for key, *_ in found.values()}) == len(files)
    names = encode_shards(str(folder / "*.tar"), folder / "f", Pixels(), Letters(), workers=1, quiet=True)
    assert open_shards(folder / "f", names).names() == list(files)
