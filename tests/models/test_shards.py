"""Feature shards: equal to features/ bit for bit, each tar encoded once whatever happens, and strangers' tars that do no harm."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Letters, Pixels, make_archive, picture, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from models.dataset import open_image, split_by_image
from models.features import shards
from models.features.shards import Rows, encode_shards, open_shards, tars

ROOT = Path(__file__).parents[2]


class Refuses:
    """Has a tower's key, and fails when anything is asked of it."""

    def __init__(self, tower):
        self.name, self.key = tower.name, tower.key

    def encode(self, batch):
        raise AssertionError(f"{self.name} was asked to encode {len(batch)} inputs")

    preprocess = encode


def jpeg(seed):
    file = io.BytesIO()
    picture(seed).save(file, "JPEG", quality=95)
    return file.getvalue()


def make_tar(path, members, **fields):
    """A tar of members (name, content); `fields` are set on each TarInfo."""
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return path


GOOD = [("a.jpg", jpeg(1)), ("a.txt", b"one"), ("b.jpg", jpeg(2)), ("b.txt", b"two")]


def pack(archive, folder, per_tar=3):
    """The tiny archive as tars, its two captions an image in .json; their pattern."""
    captions = [line.split(",") for line in archive.csv.read_text().splitlines()[1:]]
    folder.mkdir()
    for first in range(0, len(archive.names), per_tar):
        members = []
        for name in archive.names[first : first + per_tar]:
            record = dict(captions=[caption for image, caption in captions if image == name])
            members += [
                (name, (archive.images / name).read_bytes()),
                (name.replace(".jpg", ".json"), json.dumps(record).encode()),
            ]
        make_tar(folder / f"t-{first // per_tar:05}.tar", members)
    return f"{folder}/t-{{00000..{(len(archive.names) - 1) // per_tar:05}}}.tar"


def encode(pattern, folder, vision=None, text=None, **options):
    return encode_shards(
        str(pattern),
        folder,
        vision or Pixels(),
        text or Letters(),
        open_image,
        workers=2,
        quiet=True,
        **options,
    )


def encode_one(folder, members, **fields):
    """(the Shards of one tar of these members or None where it holds nothing of use, {reason: samples left out})"""
    encode(make_tar(folder / "one.tar", members, **fields), folder / "one")
    with safe_open(folder / "one" / "one.safetensors", "pt") as file:
        skipped, images = json.loads(file.metadata()["skipped"]), len(file.get_tensor("image"))
    return open_shards(folder / "one") if images else None, skipped


def same(found, features):
    return all(
        torch.equal(a, b)
        for a, b in zip((found.image[:], found.text[:], found.image_of), features, strict=True)
    )


@pytest.fixture
def pattern(archive, tmp_path):
    return pack(archive, tmp_path / "tars")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "features"


# ------------------------------------------------------------------------------------------------------- the same features


def test_shards_equal_the_features_of_the_csv_bit_for_bit(archive, pattern, out):
    """Catches rows rounded or normalised in another way, and any shuffle between tars, images, captions and `image_of`."""
    found = open_shards(out, encode(pattern, out, batch_size=2))
    assert same(found, run(archive, Pixels(), Letters(), None))
    assert list(found.names()) == archive.names and (found.image.shape, len(found.text)) == ((8, 24), 16)


class Joined:
    """Two towers side by side, as VisionEncoder makes of a name with '+'."""

    def __init__(self, *parts):
        self.parts, self.name, self.key = (
            parts,
            "+".join(p.name for p in parts),
            "+".join(p.key for p in parts),
        )


def test_joined_towers_equal_the_features_of_the_csv(archive, pattern, out):
    """Catches columns in the wrong order, and towers that are rounded after they were joined."""
    towers = Joined(Pixels("one"), Pixels("another"))
    found = open_shards(out, encode(pattern, out, towers))
    assert found.image.shape == (8, 48) and same(found, run(archive, towers, Letters(), None))


def test_real_towers_equal_the_features_of_the_csv(tmp_path, out, lite0, minilm):
    """Catches another order of decoding, preprocessing and batching than encode_archive's; photographs, the packaged towers."""
    skimage = pytest.importorskip("skimage")
    archive = make_archive(tmp_path / "photos", count=3)
    for name, photo in zip(
        archive.names, (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    ):
        Image.fromarray(photo).save(archive.images / name)
    found = open_shards(out, encode(pack(archive, tmp_path / "tars"), out, lite0, minilm))
    assert same(found, run(archive, lite0, minilm, None))


def test_img2dataset_members_are_read_as_it_writes_them(tmp_path):
    """Catches a .json beside a .txt taken for its caption (or minded, when it is huge), a folder in the name, upper case, BOM, line
    ends, and other members."""
    record = json.dumps(dict(caption="not this", url="http://x", exif="x" * (1 << 20))).encode()
    found, skipped = encode_one(
        tmp_path,
        [
            ("./000000000.jpg", jpeg(1)),
            ("./000000000.json", record),
            ("./000000000.txt", b"\xef\xbb\xbf a caption\nin two lines \n"),
            ("deep.er/1.JPEG", jpeg(2)),
            ("deep.er/1.seg.png", b"not an image"),
            ("deep.er/1.cls", b"7"),
            ("deep.er/1.TXT", b"b"),
            ("README", b"no ending"),
        ],
    )
    assert list(found.names()) == ["000000000.jpg", "deep.er/1.JPEG"] and skipped == {}
    assert torch.equal(
        found.text[:], F.normalize(Letters().encode(["a caption\nin two lines", "b"]).half().float(), dim=-1)
    )


def test_equal_captions_are_encoded_once(pattern, out):
    """Catches the text tower run once a caption: 'a disc' stands with all three images of a tar."""
    text = Letters()
    encode(pattern, out, text=text)
    assert text.seen == 8 + 3


# ------------------------------------------------------------------------------------------------- each tar once, or not at all


def test_second_run_asks_no_tower_and_needs_no_tar(pattern, out, capsys):
    """Catches work done twice, and tars of a terabyte that have to be kept for ever."""
    names = encode(pattern, out)
    before = open_shards(out, names)
    shutil.rmtree(Path(pattern).parent)
    assert (
        encode(pattern, out, Refuses(Pixels()), Refuses(Letters())) == names
        and "3 of 3 tars" in capsys.readouterr().out
    )
    assert (
        same(open_shards(out), (before.image[:], before.text[:], before.image_of))
        and open_shards(out).digest == before.digest
    )


KILLED = """
import os, signal, sys
from conftest import Pixels
from test_shards import encode
encode(sys.argv[1], sys.argv[2], Pixels(stop_at=4, stop=lambda: os.kill(os.getpid(), signal.SIGKILL)), batch_size=2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_run_goes_on_with_the_tar_it_was_in(archive, pattern, out):
    """Catches one write at the end, and half a shard taken for a whole one: a killed process writes nothing on its way out."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, pattern, str(out)], env=environment)
    assert killed.returncode == -signal.SIGKILL and [path.name for path in out.iterdir()] == [
        "t-00000.safetensors"
    ]
    vision = Pixels()
    names = encode(pattern, out, vision)
    assert vision.seen == 5 and same(open_shards(out, names), run(archive, Pixels(), Letters(), None))


def test_old_temporary_files_are_removed_and_new_ones_left_alone(pattern, out):
    """Catches a disk that fills with what dead processes left, and the file of a live one taken away."""
    out.mkdir()
    old, new = out / ".t-00001.safetensors.123.tmp", out / ".t-00001.safetensors.124.tmp"
    old.write_bytes(b"half"), new.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    encode(pattern, out)
    assert not old.exists() and new.exists() and len(open_shards(out).image) == 8


def test_ranks_cover_every_tar_exactly_once(archive, pattern, out):
    """Catches a tar that no machine takes, or two take; and training that starts before the others are done."""
    vision = Pixels(), Pixels()
    names = encode(pattern, out, vision[0], rank=0, world=2)
    assert len(names) == 3 and len(list(out.iterdir())) == 2
    with pytest.raises(FileNotFoundError, match=r"t-00001\.safetensors.*every rank"):
        open_shards(out, names)
    encode(pattern, out, vision[1], rank=1, world=2)
    assert (vision[0].seen, vision[1].seen) == (5, 3) and same(
        open_shards(out, names), run(archive, Pixels(), Letters(), None)
    )
    with pytest.raises(ValueError, match="rank 2 of 2"):
        encode(pattern, out, rank=2, world=2)


def test_shards_of_other_towers_are_refused(pattern, out):
    """Catches features of two towers in one training set, when encoding and when opening."""
    encode(pattern, out, rank=0, world=2)
    for other in (dict(vision=Pixels("lite")), dict(text=Refuses(Pixels("bert")))):
        with pytest.raises(ValueError, match=r"t-00000\.safetensors.*(pixels.*lite|letters.*bert)"):
            encode(pattern, out, **other)
    encode(pattern, out, Pixels("lite"), rank=1, world=2)
    with pytest.raises(ValueError, match=r"t-00001\.safetensors.*lite.*pixels"):
        open_shards(out)


def test_changed_tar_is_refused_and_a_touched_one_is_not(pattern, out):
    """Catches features of a tar that was exchanged under its name; and a copy of the archive that has to be encoded again."""
    names = encode(pattern, out)
    tar = Path(pattern).with_name("t-00001.tar")
    os.utime(tar, (1, 1))
    assert encode(pattern, out, Refuses(Pixels()), Refuses(Letters())) == names
    content = bytearray(tar.read_bytes())
    content[600] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"t-00001\.safetensors.*t-00001\.tar is another tar"):
        encode(pattern, out, Refuses(Pixels()), Refuses(Letters()))


NO_TARS = dict(missing=None, empty=b"", html=b"<html>404</html>" * 100, gzip=b"\x1f\x8b" + bytes(600))


@pytest.mark.parametrize("content", NO_TARS.values(), ids=NO_TARS)
def test_what_is_no_tar_is_named_before_any_tower_runs(pattern, out, content):
    """Catches hours of encoding that end at the last tar."""
    tar = Path(pattern).with_name("t-00002.tar")
    tar.unlink() if content is None else tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"t-00002\.tar: no uncompressed tar"):
        encode(pattern, out, Refuses(Pixels()), Refuses(Letters()))


def test_patterns_expand_to_tars_in_order(tmp_path):
    """Catches leading zeros lost, a glob in the order of the disk, and two tars that would write one file."""
    for name in ("b-1", "b-0", "a-10"):
        make_tar(tmp_path / f"{name}.tar", GOOD)
    assert list(tars.expand("x/cc3m-{00098..00101}.tar")) == [f"cc3m-{i:05}" for i in range(98, 102)]
    assert list(tars.expand(f"{tmp_path}/*.tar")) == ["a-10", "b-0", "b-1"]
    with pytest.raises(ValueError, match="x/0.tar and y/0.tar"):
        tars.expand("{x,y}/{0..1}.tar")
    with pytest.raises(ValueError, match="nothing"):
        tars.expand(f"{tmp_path}/nothing*.tar")


# ------------------------------------------------------------------------------------------------------------ strangers' tars


BAD = {
    "damaged image": ([("x.jpg", jpeg(3)[:400]), ("x.txt", b"x")], "decoded"),
    "not an image": ([("x.jpg", b"<html>"), ("x.txt", b"x")], "decoded"),
    "no caption": ([("x.jpg", jpeg(3))], "without .txt"),
    "no captions in .json": ([("x.jpg", jpeg(3)), ("x.json", b'{"caption": "x"}')], "without .txt"),
    ".json of numbers": ([("x.jpg", jpeg(3)), ("x.json", b'{"captions": [1]}')], "without .txt"),
    ".json of one text": ([("x.jpg", jpeg(3)), ("x.json", b'{"captions": "abc"}')], "empty caption"),
    ".json of a list": ([("x.jpg", jpeg(3)), ("x.json", b"[1]")], "without .txt"),
    ".json damaged": ([("x.jpg", jpeg(3)), ("x.json", b'{"captions": [')], "without .txt"),
    ".json too deep": ([("x.jpg", jpeg(3)), ("x.json", b"[" * 100_000)], "without .txt"),
    "half a character": ([("x.jpg", jpeg(3)), ("x.json", b'{"captions": ["\\ud800"]}')], "UTF-8"),
    "Latin-1": ([("x.jpg", jpeg(3)), ("x.txt", b"caf\xe9")], "UTF-8"),
    "empty caption": ([("x.jpg", jpeg(3)), ("x.txt", b" \n ")], "empty caption"),
    "no image": ([("x.txt", b"x")], "without an image"),
    "huge caption": ([("x.jpg", jpeg(3)), ("x.txt", b"x" * (1 << 20) + b"x")], "over the limit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_samples_are_left_out_and_counted(tmp_path, capsys, case):
    """Catches a run that ends at a stranger's sample, one that is dropped without a word, and captions shifted by it."""
    members, reason = BAD[case]
    found, skipped = encode_one(tmp_path, GOOD[:2] + members + GOOD[2:])
    good, _ = encode_one(make_folder(tmp_path / "good"), GOOD)
    assert [count for why, count in skipped.items() if reason in why] == [1] and len(skipped) == 1
    assert same(found, (good.image[:], good.text[:], good.image_of)) and list(found.names()) == [
        "a.jpg",
        "b.jpg",
    ]
    said = capsys.readouterr().out
    assert "one.tar: 2 images, 2 captions; left out 1: 1 " in said and reason in said


def make_folder(path):
    path.mkdir()
    return path


def test_tar_cut_short_anywhere_keeps_what_came_before(tmp_path):
    """Catches a crash, and tarfile's silent end where a tar is cut between two members or loses its end mark."""
    whole = make_tar(tmp_path / "whole.tar", GOOD).read_bytes()
    ends = [i for i in range(0, len(whole), 512) if not any(whole[i:])]
    for cut in [*range(600, ends[0], 700), *range(512, ends[0] + 1, 512)]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        skipped = Counter()
        names = [name for name, _, _ in tars.samples(tmp_path / "cut.tar", skipped)]
        assert (
            names in ([], ["a.jpg"], ["a.jpg", "b.jpg"])
            and skipped["rest of the tar, cut short or damaged"] == 1
        ), cut


def test_damaged_header_is_noticed(tmp_path):
    """Catches tarfile's silent end at a header whose checksum is wrong: the rest of the tar would be missing without a word."""
    tar = make_tar(tmp_path / "t.tar", GOOD)
    content = bytearray(tar.read_bytes())
    content[content.index(b"b.jpg")] ^= 1
    tar.write_bytes(content)
    found, skipped = encode(tar, tmp_path / "f"), Counter()
    assert len(open_shards(tmp_path / "f", found).image) == 1
    assert [name for name, _, _ in tars.samples(tar, skipped)] == ["a.jpg"] and skipped.total() == 1


@pytest.mark.parametrize("size", [-512, -1024, -5000, 2**62])
def test_member_of_an_impossible_size_ends_the_tar(tmp_path, size):
    """Catches a header that sends tarfile back to itself for ever (CVE-2025-8194), or out of the file."""
    tar = make_tar(tmp_path / "t.tar", GOOD)
    content = bytearray(tar.read_bytes())
    at = content.index(b"b.jpg")
    content[at + 124 : at + 136] = (
        (2**96 + size).to_bytes(13, "big")[-12:] if size < 0 else (2**95 + size).to_bytes(12, "big")
    )
    content[at + 148 : at + 156] = b" " * 8
    content[at + 148 : at + 156] = b"%06o\0 " % sum(content[at : at + 512])
    tar.write_bytes(content)
    skipped = Counter()
    assert [name for name, _, _ in tars.samples(tar, skipped)][:1] == ["a.jpg"] and skipped[
        "rest of the tar, cut short or damaged"
    ] == 1


def test_names_that_lead_outside_are_names_and_nothing_more(tmp_path):
    """Catches members unpacked to the disk: '../' and '/' name files of somebody else's."""
    before = sorted(tmp_path.parent.rglob("*"))
    members = [
        ("../../out.jpg", jpeg(1)),
        ("../../out.txt", b"x"),
        ("/etc/y.jpg", jpeg(2)),
        ("/etc/y.txt", b"y"),
    ]
    found, _ = encode_one(make_folder(tmp_path / "in"), members)
    assert list(found.names()) == ["../../out.jpg", "/etc/y.jpg"]
    new = set(tmp_path.parent.rglob("*")) - set(before)
    assert {path.name for path in new if path.is_file()} == {"one.tar", "one.safetensors"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere tars hold Unicode")
def test_names_that_are_not_utf8_can_be_split_and_printed(tmp_path):
    """Catches half characters in names, which fail hours later in split_by_image and in the checkpoint."""
    found, _ = encode_one(
        tmp_path, [(os.fsdecode(b"caf\xe9.jpg"), jpeg(1)), (os.fsdecode(b"caf\xe9.txt"), b"x")]
    )
    assert list(found.names()) == ["caf\\xe9.jpg"] and split_by_image(found.names(), 0.5)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_pickles_are_never_loaded(tmp_path, monkeypatch):
    """Catches webdataset's habit: a member a.pyd or a.pickle is somebody's program."""
    monkeypatch.chdir(tmp_path)
    bombs = [(f"a.{ending}", pickle.dumps(Bomb())) for ending in ("pyd", "pickle", "pth", "npy")]
    found, skipped = encode_one(tmp_path, [*GOOD[:2], *bombs])
    assert len(found.image) == 1 and skipped == {} and not Path("exploded").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_and_devices_are_not_followed(tmp_path, kind):
    """Catches a link to /etc/passwd read as a caption, and a search through the whole tar for a link's target."""
    found, skipped = encode_one(tmp_path, [("a.jpg", b""), ("a.txt", b"")], type=kind, linkname="/etc/passwd")
    assert found is None and skipped == {}


def peak(work):
    tracemalloc.start()
    work()
    top = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return top


def test_huge_member_is_not_read(tmp_path):
    """Catches a member of gigabytes read into memory: the limit is looked at first."""
    path = tmp_path / "t.tar"
    with open(path, "wb") as file:
        for name, size in (("x.jpg", (64 << 20) + 1), ("x.txt", 1)):
            member = tarfile.TarInfo(name)
            member.size = size
            file.write(member.tobuf())
            file.seek(-(-size // 512) * 512, 1)  # a hole, which costs no disk
        file.write(bytes(1024))
    skipped, found = Counter(), []
    assert peak(lambda: found.extend(tars.samples(path, skipped))) < 1 << 20
    assert (
        found == []
        and [count for why, count in skipped.items() if "over the limit" in why] == [1]
        and len(skipped) == 1
    )


def test_thousands_of_members_stream_in_bounded_memory(tmp_path):
    """Catches every member's header or content kept: 2,000 samples of 3 members would be 6 MB of tarfile's headers alone."""
    path = make_tar(
        tmp_path / "t.tar",
        ((f"{i // 3:08}.{('jpg', 'json', 'txt')[i % 3]}", bytes(600)) for i in range(6_000)),
    )
    read = []
    assert peak(lambda: read.append(sum(1 for _ in tars.samples(path, Counter())))) < 1 << 20 and read == [
        2000
    ]


class Watches(Pixels):
    """Notes the most images that were opened and not yet encoded."""

    opened = most = 0

    def open_image(self, file):
        self.opened += 1
        return open_image(file)

    def encode(self, images):
        self.most = max(self.most, self.opened - self.seen)
        return super().encode(images)


def test_decoding_stays_two_batches_ahead(tmp_path, out):
    """Catches a pool that is given the whole tar at once: all its images would be in memory, decoded; and samples it reorders."""
    members = [
        (f"{i:02}.{ending}", jpeg(i) if ending == "jpg" else b"x")
        for i in range(40)
        for ending in ("jpg", "txt")
    ]
    tower = Watches()
    encode_shards(
        str(make_tar(tmp_path / "t.tar", members)),
        out,
        tower,
        Letters(),
        tower.open_image,
        batch_size=4,
        workers=1,
        quiet=True,
    )
    assert 4 <= tower.most <= 3 * 4
    assert list(open_shards(out).names()) == [f"{i:02}.jpg" for i in range(40)]


def test_tar_without_samples_is_done_and_stops_nothing(tmp_path, out):
    """Catches a tar whose downloads all failed: encoded again in every run, or an end to all the others."""
    (
        make_tar(tmp_path / "t-0.tar", []),
        make_tar(tmp_path / "t-1.tar", GOOD),
        make_tar(tmp_path / "t-2.tar", [("x.jpg", b"bad")]),
    )
    names = encode(tmp_path / "t-{0..2}.tar", out)
    assert len(open_shards(out, names).image) == 2
    assert encode(tmp_path / "t-{0..2}.tar", out, Refuses(Pixels()), Refuses(Letters())) == names
    with pytest.raises(ValueError, match="no features in it; a tar holds KEY.jpg"):
        open_shards(out, ["t-0", "t-2"])
    with pytest.raises(ValueError, match="no features in it"):
        open_shards(tmp_path / "nowhere")


def test_broken_tower_is_refused_and_nothing_kept(pattern, out):
    """Catches NaN rows in a shard that then counts as done."""
    broken = Pixels()
    broken.matrix[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"t-00000\.tar: tower pixels gave rows that are not finite"):
        encode(pattern, out, broken)
    assert list(out.iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- rows on disk


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_rows_equal_naive_stacking(sizes, data):
    """Catches a gather that mixes up shards or returns the order of the file; with repeats, masks, masks of masks and slices."""
    parts = [F.normalize(torch.randn(size, 6), dim=-1).half() for size in sizes]
    rows = Rows([(f"part {i}", part) for i, part in enumerate(parts)])
    stacked = F.normalize(torch.cat(parts).float(), dim=-1)
    for _ in range(3):
        if len(stacked):
            index = torch.tensor(
                data.draw(st.lists(st.integers(0, len(stacked) - 1), max_size=12)), dtype=torch.int64
            )
            assert torch.equal(rows[index], stacked[index])
        a, b = data.draw(st.integers(-9, 25)), data.draw(st.integers(-9, 25))
        assert torch.equal(rows[a:b], stacked[a:b]) and torch.equal(rows[:], stacked)
        assert (
            torch.equal(torch.cat([torch.empty(0, 6), *rows.blocks(4)]), stacked)
            and rows.shape == stacked.shape
        )
        mask = torch.tensor(
            data.draw(st.lists(st.booleans(), min_size=len(stacked), max_size=len(stacked))), dtype=torch.bool
        )
        rows, stacked = rows[mask], stacked[mask]


@pytest.mark.parametrize("index", [[0, 5], [-1]])
def test_rows_beyond_the_end_are_refused(index):
    """Catches rows of uninitialised memory."""
    with pytest.raises(IndexError, match="of 5"):
        Rows([("a", torch.eye(2, 3).half()), ("b", torch.eye(3).half())])[torch.tensor(index)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_all_rows_takes_no_private_memory(tmp_path):
    """Catches shards copied into memory: 80 MB are read, and the process may not grow by 30."""

    def private():
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) << 10

    rows = F.normalize(torch.randn(1000, 512), dim=-1).half().repeat(80, 1)
    names = torch.tensor(list(json.dumps([""] * 80_000).encode()), dtype=torch.uint8)
    tensors = dict(image=rows, text=rows[:1].clone(), image_of=torch.zeros(1, dtype=torch.int64), names=names)
    towers = dict.fromkeys(("vision", "text", "vision_key", "text_key", "tar_sha256"), "x")
    save_file(tensors, tmp_path / "t.safetensors", metadata=dict(format=shards.FORMAT, **towers))
    del rows, tensors
    before = private()
    found = open_shards(tmp_path)
    assert sum(len(block) for block in found.image.blocks()) == 80_000
    assert private() - before < 30 << 20


def overwrite(content, start, new):
    return content[:start] + new + content[start + len(new) :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: overwrite(content, 0, b"\xff" * 8),
        lambda content: content.replace(b"vl-jepa features 1", b"vl-jepa features 9"),
        lambda content: content.replace(b'"image"', b'"imago"'),
        lambda content: content.replace(b'"tar_sha256"', b'"tar_sha257"'),
        lambda content: content.replace(b'["000.jpg', b'["000.jpg","'),
    ],
    ids=["empty", "half", "one byte short", "header", "format", "tensor", "metadata", "names"],
)
def test_damaged_shard_is_named(pattern, out, damage):
    """Catches a traceback from safetensors or json, and rows read from half a file."""
    names = encode(pattern, out)
    path = out / "t-00000.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(damage(content))
    for work in (lambda: open_shards(out, names), lambda: encode(pattern, out)):
        with pytest.raises(
            ValueError, match=r"t-00000\.safetensors: damaged, or no feature shard.*delete it"
        ):
            work()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 3.0])
def test_damaged_row_is_refused_naming_its_file(pattern, out, value):
    """Catches NaN in training, an hour in, and zeros of a bad disk taken for features."""
    names = encode(pattern, out)
    found = open_shards(out, names)
    found.image.parts[1][1][2] = value  # row 5 of all; the mapping is private, so the file keeps what it has
    assert len(found.image[torch.tensor([0, 4, 6])]) == 3
    with pytest.raises(ValueError, match=r"t-00001\.safetensors: damaged.*norm"):
        found.image[torch.tensor([7, 5, 0])]
