"""Feature shards: equal to encode_archive bit for bit, each tar encoded once, strangers' tars do no harm."""

import io
import json
import os
import pickle
import re
import shutil
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.dataset import split_by_image
from models.features import shard_files, tars
from models.features.rows import Rows
from models.features.shards import encode_shards, open_shards
from models.files import packed
from tests.conftest import Letters, Pixels, make_archive, picture
from tests.conftest import encode as encode_csv
from tests.models.test_features import Joined, Refuses, interrupt, plain

NO_TOWERS = Refuses(Pixels()), Refuses(Letters())


def jpeg(seed):
    file = io.BytesIO()
    picture(seed).save(file, "JPEG", quality=95)
    return file.getvalue()


def make_tar(path, members, **fields):
    """A tar of members (name, content); `fields` are set on each TarInfo."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return path


X = ("x.jpg", jpeg(3))
GOOD = [("a.jpg", jpeg(1)), ("a.txt", b"one"), ("b.jpg", jpeg(2)), ("b.txt", b"two")]


def pack(archive, folder, per_tar=3):
    """The archive as tars, the captions of an image in its .json; returns their pattern."""
    captions = [line.split(",") for line in archive.csv.read_text().splitlines()[1:]]
    starts = range(0, len(archive.names), per_tar)
    for number, first in enumerate(starts):
        members = []
        for name in archive.names[first : first + per_tar]:
            record = json.dumps(dict(captions=[caption for image, caption in captions if image == name]))
            members += [(name, (archive.images / name).read_bytes()), (f"{name[:-4]}.json", record.encode())]
        make_tar(folder / f"t-{number:05}.tar", members)
    return f"{folder}/t-{{00000..{len(starts) - 1:05}}}.tar"


def encode(pattern, folder, vision=None, text=None, **options):
    towers = vision or Pixels(), text or Letters()
    return encode_shards(str(pattern), folder, *towers, workers=2, quiet=True, **options)


def encode_one(folder, members, **fields):
    """(Shards of one tar of these members, or None for an empty one; {reason: members left out})."""
    encode(make_tar(folder / "one.tar", members, **fields), folder / "one")
    _, tensors, tally = shard_files.read(folder / "one" / "one.safetensors")
    left_out = {reason: count for reason, (count, _) in tally.left_out.items()}
    assert tally.seen == len(members) == tally.read + sum(left_out.values())
    return open_shards(folder / "one") if len(tensors["image"]) else None, left_out


def samples(tar):
    """(names of the samples, Tally)."""
    tally = tars.Tally()
    return [sample.name for sample in tars.samples(tar, tally)], tally


def same(shards, features):
    pairs = zip((shards.image[:], shards.text[:], shards.image_of), features)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.fixture
def pattern(archive, tmp_path):
    return pack(archive, tmp_path / "tars")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "features"


@pytest.mark.parametrize(
    "vision", [Pixels(), Joined(Pixels("one"), Pixels("another"))], ids=["one", "joined"]
)
def test_shards_equal_the_features_of_the_csv_bit_for_bit(archive, pattern, out, vision):
    text = Letters()
    found = open_shards(out, encode(pattern, out, vision, text, batch_size=2))
    assert same(found, plain(archive, vision)) and found.image.shape == (8, 24 * len(vision.parts))
    assert found.names() == archive.names and text.seen == 8 + 3  # equal captions once per tar
    lines = archive.csv.read_text().splitlines()[1:]
    assert [f"{found.names()[i]},{text}" for i, text in zip(found.image_of, found.captions())] == lines


def test_real_towers_equal_the_features_of_the_csv(tmp_path, out, lite0, minilm):
    skimage = pytest.importorskip("skimage")
    archive = make_archive(tmp_path / "photos", count=3)
    photos = skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()
    for name, photo in zip(archive.names, photos):
        Image.fromarray(photo).save(archive.images / name)
    found = open_shards(out, encode(pack(archive, tmp_path / "tars"), out, lite0, minilm))
    assert same(found, encode_csv(archive, lite0, minilm, None))


def test_img2dataset_members_are_read_as_it_writes_them(tmp_path):
    """A .json beside a .txt does not count, however large it is."""
    record = json.dumps(dict(caption="not this", exif="x" * (1 << 20))).encode()
    first = [("./0.jpg", jpeg(1)), ("./0.json", record), ("./0.txt", b"\xef\xbb\xbf a\nb \n")]
    second = [("d.r/1.JPEG", jpeg(2)), ("d.r/1.seg.png", b"no"), ("d.r/1.cls", b"7"), ("d.r/1.TXT", b"c")]
    found, left_out = encode_one(tmp_path, [*first, *second, ("README", b"no ending")])
    assert found.names() == ["0.jpg", "d.r/1.JPEG"]
    assert left_out == {tars.BESIDE: 1, tars.DOTTED: 1, tars.OTHER: 1, tars.NO_KEY: 1}
    assert found.captions() == ["a\nb", "c"]


def test_second_run_asks_no_tower_and_needs_no_tar(pattern, out, caplog):
    names = encode(pattern, out)
    before = open_shards(out, names)
    shutil.rmtree(Path(pattern).parent)
    caplog.set_level("INFO")
    assert encode(pattern, out, *NO_TOWERS) == names and "3 of 3" in caplog.text
    assert same(open_shards(out), (before.image[:], before.text[:], before.image_of))
    assert open_shards(out).digest == before.digest


def test_interrupted_run_goes_on_with_the_tar_it_was_in(archive, pattern, out):
    with pytest.raises(KeyboardInterrupt):
        encode(pattern, out, Pixels(stop_at=4, stop=interrupt), batch_size=2)
    assert os.listdir(out) == ["t-00000.safetensors"]
    old, young = out / ".t-00001.safetensors.123.tmp", out / ".t-00001.safetensors.124.tmp"
    for leftover in (old, young):
        leftover.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    vision = Pixels()
    names = encode(pattern, out, vision)
    assert vision.seen == 5 and same(open_shards(out, names), plain(archive))
    assert not old.exists() and young.exists()


def test_ranks_cover_every_tar_exactly_once(archive, pattern, out):
    towers = Pixels(), Pixels()
    names = encode(pattern, out, towers[0], rank=0, world=2)
    assert len(names) == 3 and len(list(out.iterdir())) == 2
    with pytest.raises(FileNotFoundError, match=r"t-00001\.safetensors"):
        open_shards(out, names)
    encode(pattern, out, towers[1], rank=1, world=2)
    assert [tower.seen for tower in towers] == [5, 3] and same(open_shards(out, names), plain(archive))
    with pytest.raises(ValueError, match="rank 2 of 2"):
        encode(pattern, out, rank=2, world=2)


def test_shards_of_other_towers_are_refused(pattern, out):
    encode(pattern, out, rank=0, world=2)
    for other in (dict(vision=Pixels("lite")), dict(text=Refuses(Pixels("bert")))):
        with pytest.raises(ValueError, match=r"t-00000\.safetensors.*(pixels.*lite|letters.*bert)"):
            encode(pattern, out, **other)
    encode(pattern, out, Pixels("lite"), rank=1, world=2)
    with pytest.raises(ValueError, match=r"t-00001\.safetensors.*lite.*pixels"):
        open_shards(out)


def test_changed_tar_is_refused_and_a_touched_one_is_not(pattern, out):
    names = encode(pattern, out)
    tar = Path(pattern).with_name("t-00001.tar")
    os.utime(tar, (1, 1))
    assert encode(pattern, out, *NO_TOWERS) == names
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"t-00001\.safetensors.*t-00001\.tar"):
        encode(pattern, out, *NO_TOWERS)


NO_TARS = dict(missing=None, empty=b"", html=b"<html>404</html>" * 100, gzip=b"\x1f\x8b" + bytes(600))


@pytest.mark.parametrize("content", NO_TARS.values(), ids=NO_TARS)
def test_what_is_no_tar_is_named_before_any_tower_runs(pattern, out, content):
    tar = Path(pattern).with_name("t-00002.tar")
    tar.unlink() if content is None else tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"t-00002\.tar"):
        encode(pattern, out, *NO_TOWERS)


def test_patterns_expand_to_tars_in_order(tmp_path):
    for name in ("b-1", "b-0", "a-10"):
        make_tar(tmp_path / f"{name}.tar", GOOD)
    assert list(tars.expand("x/cc3m-{00098..00101}.tar")) == [f"cc3m-{i:05}" for i in range(98, 102)]
    assert list(tars.expand(f"{tmp_path}/*.tar")) == ["a-10", "b-0", "b-1"]
    for bad, said in (("{x,y}/{0..1}.tar", "x/0.tar and y/0.tar"), (f"{tmp_path}/nothing*.tar", "nothing")):
        with pytest.raises(ValueError, match=said):
            tars.expand(bad)


BAD = {
    "damaged image": ([("x.jpg", jpeg(3)[:400]), ("x.txt", b"x")], "decoded"),
    "not an image": ([("x.jpg", b"<html>"), ("x.txt", b"x")], "decoded"),
    "no image": ([("x.txt", b"x")], "without an image"),
    "no caption": ([X], "without .txt"),
    "no captions in .json": ([X, ("x.json", b'{"caption": "x"}')], "without .txt"),
    ".json of numbers": ([X, ("x.json", b'{"captions": [1]}')], "without .txt"),
    ".json of one text": ([X, ("x.json", b'{"captions": "abc"}')], "empty caption"),
    ".json of a list": ([X, ("x.json", b"[1]")], "without .txt"),
    ".json damaged": ([X, ("x.json", b'{"captions": [')], "without .txt"),
    ".json too deep": ([X, ("x.json", b"[" * 100_000)], "without .txt"),
    "half a character": ([X, ("x.json", b'{"captions": ["\\ud800"]}')], "UTF-8"),
    "Latin-1": ([X, ("x.txt", b"caf\xe9")], "UTF-8"),
    "empty caption": ([X, ("x.txt", b" \n ")], "empty caption"),
    "huge caption": ([X, ("x.txt", b"x" * (1 << 20) + b"x")], "over the limit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_samples_are_left_out_counted_and_logged(tmp_path, caplog, case):
    members, reason = BAD[case]
    caplog.set_level("INFO")
    found, left_out = encode_one(tmp_path / "bad", GOOD[:2] + members + GOOD[2:])
    assert list(left_out.values()) == [len(members)] and reason in str(left_out)
    assert all(words in caplog.text for words in ("one.tar: 2 images, 2 captions", reason))
    good, _ = encode_one(tmp_path / "good", GOOD)
    assert same(found, (good.image[:], good.text[:], good.image_of))
    assert (found.names(), found.captions()) == (["a.jpg", "b.jpg"], ["one", "two"])


def test_tar_cut_short_anywhere_keeps_what_came_before(tmp_path):
    """tarfile ends silently where a tar is cut between two members or loses its end mark."""
    whole = make_tar(tmp_path / "whole.tar", GOOD).read_bytes()
    end = next(i for i in range(0, len(whole), 512) if not any(whole[i:]))
    for cut in [*range(600, end, 700), *range(512, end + 1, 512)]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        names, tally = samples(tmp_path / "cut.tar")
        assert names in ([], ["a.jpg"], ["a.jpg", "b.jpg"]) and len(tally.cut_short) == 1, cut


@pytest.mark.parametrize("size", ["a wrong checksum", -512, -1024, -5000, 2**62])
def test_damaged_header_ends_the_tar(tmp_path, size):
    """A negative size sends older Pythons back to the same header for ever (CVE-2025-8194)."""
    tar = make_tar(tmp_path / "t.tar", GOOD)
    content = bytearray(tar.read_bytes())
    at = content.index(b"b.jpg")
    if isinstance(size, str):
        content[at] ^= 1
    else:
        number = 2**96 + size if size < 0 else 2**95 + size
        content[at + 124 : at + 136] = number.to_bytes(13, "big")[-12:]
        content[at + 148 : at + 156] = b" " * 8
        content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    tar.write_bytes(content)
    names, tally = samples(tar)
    assert names[:1] == ["a.jpg"] and tally.cut_short == ["t.tar after a.txt"]
    assert len(open_shards(tmp_path / "f", encode(tar, tmp_path / "f")).image) == 1


def test_names_that_lead_outside_are_names_and_nothing_more(tmp_path):
    before = set(tmp_path.parent.rglob("*"))
    members = [("../../out.jpg", X[1]), ("../../out.txt", b"x"), ("/etc/y.jpg", X[1]), ("/etc/y.txt", b"y")]
    found, _ = encode_one(tmp_path / "in", members)
    assert found.names() == ["../../out.jpg", "/etc/y.jpg"]
    new = set(tmp_path.parent.rglob("*")) - before
    assert {path.name for path in new if path.is_file()} == {"one.tar", "one.safetensors"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tars hold Unicode")
def test_names_that_are_not_utf8_can_be_split_and_printed(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    found, _ = encode_one(tmp_path, [(f"{name}.jpg", jpeg(1)), (f"{name}.txt", "é".encode())])
    assert found.names() == ["caf\\xe9.jpg"] and split_by_image(found.names(), 0.5)
    assert found.captions() == ["é"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_never_loaded(tmp_path, monkeypatch):
    """The webdataset package loads them."""
    monkeypatch.chdir(tmp_path)
    bombs = [(f"a.{ending}", pickle.dumps(Bomb())) for ending in ("pyd", "pickle", "pth", "npy")]
    found, left_out = encode_one(tmp_path, [*GOOD[:2], *bombs])
    assert len(found.image) == 1 and left_out == {tars.OTHER: 4} and not Path("exploded").exists()


LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]


@pytest.mark.parametrize("kind", LINKS)
def test_links_and_devices_are_not_followed(tmp_path, kind):
    members = [("a.jpg", b""), ("a.txt", b"")]
    reason = tars.LINK if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else tars.NOT_A_FILE
    assert encode_one(tmp_path, members, type=kind, linkname="/etc/passwd") == (None, {reason: 2})


def peak(function, *args):
    """(result, most bytes allocated meanwhile)."""
    tracemalloc.start()
    found = function(*args)
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, top


def test_huge_member_is_not_read(tmp_path):
    path = tmp_path / "t.tar"
    with open(path, "wb") as file:
        for name, size in (("x.jpg", (64 << 20) + 1), ("x.txt", 1)):
            member = tarfile.TarInfo(name)
            member.size = size
            file.write(member.tobuf())
            file.seek(-(-size // 512) * 512, 1)  # a hole, which costs no disk
        file.write(bytes(1024))
    (names, tally), top = peak(samples, path)
    assert names == [] and tally.left_out == {tars.TOO_LARGE: [2, ["x.jpg", "x.txt"]]} and top < 1 << 20


def test_thousands_of_members_stream_in_bounded_memory(tmp_path):
    """tarfile keeps every header it has read: 6 MB here."""
    members = ((f"{i // 3:08}.{('jpg', 'json', 'txt')[i % 3]}", bytes(600)) for i in range(6_000))
    path = make_tar(tmp_path / "t.tar", members)
    count, top = peak(lambda: sum(1 for _ in tars.samples(path, tars.Tally())))
    assert count == 2000 and top < 1 << 20


def test_tar_without_samples_is_done_and_stops_nothing(tmp_path, out):
    for number, members in enumerate(([], GOOD, [("x.jpg", b"bad")])):
        make_tar(tmp_path / f"t-{number}.tar", members)
    pattern = tmp_path / "t-{0..2}.tar"
    names = encode(pattern, out)
    assert len(open_shards(out, names).image) == 2 and encode(pattern, out, *NO_TOWERS) == names
    for folder, names in ((out, ["t-0", "t-2"]), (tmp_path / "nowhere", None)):
        with pytest.raises(ValueError, match=str(folder)):
            open_shards(folder, names)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_broken_tower_is_refused_and_nothing_kept(pattern, out, kind):
    tower = dict(vision=Pixels, text=Letters)[kind]()
    sound = tower.encode
    tower.encode = lambda batch: sound(batch) * float("nan")
    with pytest.raises(ValueError, match=f"tower {tower.name}"):
        encode(pattern, out, **{kind: tower})
    assert list(out.iterdir()) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_rows_equal_naive_stacking(sizes, data):
    """With repeats, slices, masks and masks of masks."""
    parts = [F.normalize(torch.randn(size, 6), dim=-1).half() for size in sizes]
    rows = Rows([(f"part {i}", part) for i, part in enumerate(parts)])
    stacked = F.normalize(torch.cat(parts).float(), dim=-1)
    for _ in range(3):
        n = len(stacked)
        if n:
            index = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), max_size=12)), dtype=torch.int64)
            assert torch.equal(rows[index], stacked[index])
        a, b = data.draw(st.integers(-9, 25)), data.draw(st.integers(-9, 25))
        assert torch.equal(rows[a:b], stacked[a:b]) and torch.equal(rows[:], stacked)
        assert torch.equal(torch.cat([torch.empty(0, 6), *rows.blocks(4)]), stacked)
        assert rows.shape == stacked.shape
        mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), dtype=torch.bool)
        rows, stacked = rows[mask], stacked[mask]


@pytest.mark.parametrize("index", [[0, 5], [-1]])
def test_rows_beyond_the_end_are_refused(index):
    with pytest.raises(IndexError, match="of 5"):
        Rows([("a", torch.eye(2, 3).half()), ("b", torch.eye(3).half())])[torch.tensor(index)]


def private():
    """Bytes of memory that belong to this process and to no file."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_all_rows_takes_no_private_memory(tmp_path):
    rows = F.normalize(torch.randn(1000, 512), dim=-1).half().repeat(80, 1)  # 80 MB
    tensors = dict(image=rows, text=rows[:1].clone(), image_of=torch.zeros(1, dtype=torch.int64))
    tensors |= dict(names=packed([""] * 80_000), captions=packed([""]))
    digested = dict.fromkeys(shard_files.DIGESTED, "x")
    shard_files.write(tmp_path / "t.safetensors", tensors, tars.Tally(), digested)
    del rows, tensors
    before = private()
    assert sum(len(block) for block in open_shards(tmp_path).image.blocks()) == 80_000
    assert private() - before < 30 << 20


DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "header": lambda content: b"\xff" * 8 + content[8:],
    "format": lambda content: content.replace(b"vl-jepa features 3", b"vl-jepa features 2"),
    "tensor": lambda content: content.replace(b'"image"', b'"imago"'),
    "metadata": lambda content: content.replace(b'"tar_sha256"', b'"tar_sha257"'),
    "names": lambda content: content.replace(b'["000.jpg', b'["000.jpg","'),
    "captions": lambda content: content.replace(b'["a disc of', b'["a disc","'),
    "no list": lambda content: re.sub(rb'\["000.*?\]', lambda found: b"7".ljust(len(found[0])), content),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_shard_is_named(pattern, out, damage):
    names = encode(pattern, out)
    path = out / "t-00000.safetensors"
    content = damage(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    for work in (lambda: open_shards(out, names), lambda: encode(pattern, out)):
        with pytest.raises(ValueError, match=r"t-00000\.safetensors: damaged"):
            work()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 3.0])
def test_damaged_row_is_refused_naming_its_file(pattern, out, value):
    found = open_shards(out, encode(pattern, out))
    found.image.parts[1][1][2] = value  # row 5 of all; the mapping is private, so the file stays
    assert len(found.image[torch.tensor([0, 4, 6])]) == 3
    with pytest.raises(ValueError, match=r"t-00001\.safetensors"):
        found.image[torch.tensor([7, 5, 0])]
