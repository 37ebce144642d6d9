"""The cache of tower outputs: equal to the naive loop, and never wrong, whatever happens to its file or to the images."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import Letters, Pixels, load, make_archive, picture, run
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dataset import open_image
from models.features import Features, encode_archive
from models.vision import VisionEncoder

ROOT = Path(__file__).parents[2]


class Refuses:
    """Has a tower's key, and fails when anything is asked of it."""

    def __init__(self, tower):
        self.name, self.key = tower.name, tower.key

    def encode(self, batch):
        raise AssertionError(f"{self.name} was asked to encode {len(batch)} inputs")

    preprocess = encode


def interrupt():
    raise KeyboardInterrupt


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "deep" / "features.sqlite"


# -------------------------------------------------------------------------------------------------------- against the loop


def test_encode_archive_equals_the_naive_loop(archive, cache, lite0, minilm):
    """Catches any shuffle between images, batches, captions and `image_of`; with the real towers, one by one."""
    features = run(archive, lite0, minilm, cache, batch_size=3)
    lines = [line.split(",") for line in archive.csv.read_text().splitlines()[1:]]
    image = torch.cat(
        [lite0.encode(lite0.preprocess(open_image(archive.images / name))[None]) for name in archive.names]
    )
    text = torch.cat([minilm.encode([caption]) for _, caption in lines])
    assert (
        features.image_of.tolist() == [archive.names.index(name) for name, _ in lines]
        and features.image_of.dtype == torch.int64
    )
    assert features.image.dtype == features.text.dtype == torch.float32
    assert (features.image - image).abs().max() < 1e-3 and (features.text - text).abs().max() < 1e-3
    for rows in (features.image, features.text):
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6)
    # A second run of new encoder objects builds neither network.
    again = VisionEncoder("cpu", "efficientnet-lite0"), type(minilm)("cpu")
    assert same(run(archive, *again, cache), features)
    assert "network" not in vars(again[0]) and "network" not in vars(again[1])


def test_cache_on_equals_cache_off(archive, cache):
    """Catches rows rounded only on their way through the disk: results would change with a warm cache."""
    off = run(archive, Pixels(), Letters(), None)
    assert same(run(archive, Pixels(), Letters(), cache), off)
    assert same(run(archive, Pixels(), Letters(), cache), off)


def test_rows_come_in_the_order_asked_whatever_is_cached(archive, cache, tmp_path):
    """Catches cached rows put before new ones: half the archive is cached, and the file lists it backwards."""
    backwards = archive._replace(csv=tmp_path / "backwards.csv")
    header, *lines = archive.csv.read_text().splitlines()
    backwards.csv.write_text("\n".join([header, *lines[7::-1]]) + "\n")
    run(backwards, Pixels(), Letters(), cache)
    assert same(run(archive, Pixels(), Letters(), cache), run(archive, Pixels(), Letters(), None))


@settings(deadline=None, max_examples=50)
@given(
    image_of=st.lists(st.integers(0, 7), min_size=1, max_size=30),
    mask=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_features_of_equals_the_naive_loop(image_of, mask):
    """Catches the renumbering of `image_of` for a part of the images: an off-by-one pairs captions with the next image."""
    features = Features(
        torch.arange(8.0)[:, None], torch.arange(float(len(image_of)))[:, None], torch.tensor(image_of)
    )
    some = features.of(torch.tensor(mask))
    kept = [i for i in range(8) if mask[i]]
    captions = [c for c, i in enumerate(image_of) if mask[i]]
    assert some.image[:, 0].tolist() == kept and some.text[:, 0].tolist() == captions
    assert some.image_of.tolist() == [kept.index(image_of[c]) for c in captions]


# ----------------------------------------------------------------------------------------------------------- only what is new


def test_second_run_asks_no_tower(archive, cache):
    """Catches any input encoded twice: neither `encode` nor `preprocess` may be called."""
    first = run(archive, Pixels(), Letters(), cache)
    assert same(run(archive, Refuses(Pixels()), Refuses(Letters()), cache), first)


def test_equal_content_is_encoded_once(archive, cache):
    """Catches one row an input in place of one a content: copies of an image, and a caption all images share."""
    for name in archive.names[1:4]:
        shutil.copy(archive.images / archive.names[0], archive.images / name)
    vision, text = Pixels(), Letters()
    features = run(archive, vision, text, cache)
    assert (vision.seen, text.seen) == (5, 9) and torch.equal(features.image[0], features.image[3])


def test_two_new_images_are_two_encoded(archive, cache):
    """Catches a cache that is all or nothing."""
    before = run(archive, Pixels(), Letters(), cache)
    for i in (100, 101):
        picture(i).save(archive.images / f"{i}.jpg")
    with open(archive.csv, "a") as file:
        file.write("100.jpg,a new one\n101.jpg,a disc\n")
    vision, text = Pixels(), Letters()
    after = run(archive, vision, text, cache)
    assert (vision.seen, text.seen) == (2, 1)
    assert torch.equal(after.image[:8], before.image) and torch.equal(after.text[:16], before.text)


def test_another_tower_shares_nothing(archive, cache):
    """Catches features of one tower taken for another's: the key has to be in every row's."""
    run(archive, Pixels(), Letters(), cache)
    other = Pixels("other pixels")
    assert (
        same(run(archive, other, Letters(), cache), run(archive, Pixels("other pixels"), Letters(), None))
        and other.seen == 8
    )


def test_changed_content_is_encoded_again(archive, cache):
    """Catches trusting size and time stamp: other content of the same size, with the old time put back."""
    before = run(archive, Pixels(), Letters(), cache)
    path = archive.images / "003.jpg"
    old, new = path.stat(), (archive.images / "005.jpg").read_bytes()
    picture(50).save(path, quality=60)
    new = path.read_bytes()
    assert len(new) <= old.st_size
    path.write_bytes(new + bytes(old.st_size - len(new)))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    vision = Pixels()
    after = run(archive, vision, Refuses(Letters()), cache)
    assert vision.seen == 1 and (after.image[3] - before.image[3]).abs().max() > 1e-3
    assert same(after, run(archive, Pixels(), Letters(), None))


def test_touched_and_renamed_images_are_not_encoded_again(archive, cache):
    """Catches a cache keyed by path or time: moving the archive would cost hours."""
    before = run(archive, Pixels(), Letters(), cache)
    os.utime(archive.images / "000.jpg")
    (archive.images / "001.jpg").rename(archive.images / "new name.jpg")
    archive.csv.write_text(archive.csv.read_text().replace("001.jpg", "new name.jpg"))
    moved = archive._replace(images=archive.images.rename(archive.images.with_name("moved")))
    assert same(run(moved, Refuses(Pixels()), Refuses(Letters()), cache), before)


class Joined:
    """Two towers side by side, as VisionEncoder makes of a name with '+'."""

    def __init__(self, *parts):
        self.parts, self.name, self.key = (
            parts,
            "+".join(p.name for p in parts),
            "+".join(p.key for p in parts),
        )


def test_joined_towers_reuse_each_others_rows(archive, cache, lite0, minilm):
    """Catches joined rows cached as a third tower's; and their columns in the wrong order or scale, with the real towers."""
    run(archive, lite0, minilm, cache)
    both = VisionEncoder("cpu", "efficientnet-lite0+efficientnet-lite2")
    features = run(archive, both, minilm, cache)
    assert "network" not in vars(both.parts[0]) and "network" in vars(both.parts[1])
    rows = both.encode(
        torch.stack([both.preprocess(open_image(archive.images / name)) for name in archive.names])
    )
    assert (features.image - rows).abs().max() < 1e-3 and features.image.shape == (8, 2560)
    run(archive, Joined(Refuses(both.parts[1]), Refuses(lite0)), Refuses(minilm), cache)


# ------------------------------------------------------------------------------------------------------------------- damage


def test_interrupted_run_keeps_what_it_had_done(archive, cache):
    """Catches one write at the end: Ctrl-C after hours would lose them."""
    with pytest.raises(KeyboardInterrupt):
        run(archive, Pixels(stop_at=3, stop=interrupt), Letters(), cache, batch_size=2)
    vision = Pixels()
    features = run(archive, vision, Letters(), cache, batch_size=2)
    assert vision.seen == 8 - 2 * 2 and same(features, run(archive, Pixels(), Letters(), None))


def python(code, *args):
    """A second process, with what it writes; it imports conftest.py alone, which is quick."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


KILLED = """
import os, signal, sys
from pathlib import Path
from conftest import Archive, Letters, Pixels, run
csv, images, cache = map(Path, sys.argv[1:])
run(Archive(csv, images, []), Pixels(stop_at=3, stop=lambda: os.kill(os.getpid(), signal.SIGKILL)), Letters(), cache, batch_size=2)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_run_keeps_what_it_had_done(archive, cache):
    """Catches work held in memory or an open transaction: a killed process writes nothing on its way out."""
    process = python(KILLED, archive.csv, archive.images, cache)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    vision = Pixels()
    assert (
        same(run(archive, vision, Letters(), cache, batch_size=2), run(archive, Pixels(), Letters(), None))
        and vision.seen == 4
    )


AT_ONCE = """
import sys, torch
from pathlib import Path
from conftest import Archive, Letters, Pixels, run
csv, images, cache, out = map(Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
torch.save(tuple(run(Archive(csv, images, []), Pixels(), Letters(), cache, batch_size=1)), out)
"""


def test_two_processes_at_once_share_the_cache(tmp_path, cache):
    """Catches 'database is locked', half-written rows, and a file that both begin at the same time."""
    archive = make_archive(tmp_path / "many", count=60)
    processes = [python(AT_ONCE, archive.csv, archive.images, cache, tmp_path / f"{i}.pt") for i in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    reference = run(archive, Pixels(), Letters(), None)
    assert all(same(torch.load(tmp_path / f"{i}.pt"), reference) for i in range(2))
    with sqlite3.connect(cache) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM rows").fetchone() == (60 + 61,)


def garbage(content):
    return random.Random(0).randbytes(len(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:50],
        lambda content: content[:4096],
        garbage,
        lambda content: garbage(content[:1000]) + content[1000:],
        lambda content: content[:4096] + garbage(content[4096:]),
        lambda content: b"image_name,comment\n" * 100,
    ],
    ids=[
        "half",
        "50 bytes",
        "one page",
        "garbage",
        "garbage first",
        "garbage after the first page",
        "another file",
    ],
)
def test_damaged_cache_is_named_moved_aside_and_rebuilt(archive, cache, capsys, damage):
    """Catches a crash, features read from garbage, and the user's file deleted without a word."""
    before = run(archive, Pixels(), Letters(), cache)
    content = damage(cache.read_bytes())
    cache.write_bytes(content)
    capsys.readouterr()
    assert same(run(archive, Pixels(), Letters(), cache), before)
    aside = [path for path in cache.parent.iterdir() if path.read_bytes() == content]
    said = capsys.readouterr().out
    assert len(aside) == 1 and str(cache) in said and aside[0].name in said
    assert same(run(archive, Refuses(Pixels()), Refuses(Letters()), cache), before)


def test_any_flipped_byte_of_the_cache_leaves_the_features_right(archive, cache):
    """Catches what the hand-picked damage misses: 150 bytes, spread over header, tree pages, keys, paths and rows."""
    before = run(archive, Pixels(), Letters(), cache)
    content, rng = cache.read_bytes(), random.Random(0)
    for place in [*range(0, 100, 3), *(rng.randrange(100, len(content)) for _ in range(100))]:
        flipped = bytearray(content)
        flipped[place] ^= rng.randrange(1, 256)
        cache.write_bytes(flipped)
        assert same(run(archive, Pixels(), Letters(), cache), before), place


@pytest.mark.parametrize("column", ["path", "stat"])
def test_stored_text_that_is_no_longer_utf8_is_taken_for_unknown(archive, cache, column):
    """Catches sqlite3's 'Could not decode to UTF-8', an OperationalError that speaks neither of damage nor of a file."""
    before = run(archive, Pixels(), Letters(), cache)
    with sqlite3.connect(cache) as db:
        text = db.execute(f"SELECT CAST({column} AS BLOB) FROM files LIMIT 1").fetchone()[0]
    content = cache.read_bytes()
    cache.write_bytes(content.replace(text, text[:-1] + b"\xff"))
    assert cache.read_bytes() != content
    assert same(run(archive, Refuses(Pixels()), Refuses(Letters()), cache), before)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are Unicode")
def test_folder_whose_name_is_not_utf8_is_cached_too(archive, cache):
    """Catches a UnicodeEncodeError for an archive on an old disk: its folder is called 'caf\\xe9', in Latin-1."""
    old = archive._replace(
        images=archive.images.rename(os.fsdecode(os.fsencode(archive.images.parent) + b"/caf\xe9"))
    )
    first = run(old, Pixels(), Letters(), cache)
    assert same(run(old, Refuses(Pixels()), Refuses(Letters()), cache), first)


def test_flipped_byte_in_a_row_is_noticed_and_encoded_again(archive, cache, capsys):
    """Catches rows taken as they are: SQLite does not check what is inside a value."""
    before = run(archive, Pixels(), Letters(), cache)
    with sqlite3.connect(cache) as db:
        key, row = db.execute("SELECT key, row FROM rows LIMIT 1").fetchone()
        db.execute("UPDATE rows SET row = ? WHERE key = ?", (bytes([row[0] ^ 4]) + row[1:], key))
    capsys.readouterr()
    vision, text = Pixels(), Letters()
    assert same(run(archive, vision, text, cache), before) and vision.seen + text.seen == 1
    assert "1 damaged rows" in capsys.readouterr().out
    assert same(run(archive, Refuses(vision), Refuses(text), cache), before)


def test_rows_that_changed_places_are_noticed(archive, cache):
    """Catches a checksum of the row alone: a damaged index leads to another image's row, which is sound in itself."""
    before = run(archive, Pixels(), Letters(), cache)
    with sqlite3.connect(cache) as db:
        (a, *row_a), (b, *row_b) = db.execute("SELECT key, row, crc FROM rows LIMIT 2").fetchall()
        db.executemany("UPDATE rows SET row = ?, crc = ? WHERE key = ?", [(*row_a, b), (*row_b, a)])
    assert same(run(archive, Pixels(), Letters(), cache), before)


def test_damaged_images_are_listed_before_any_tower_runs(archive, cache):
    """Catches hours of encoding that end at the last image; all damaged ones have to be in one message."""
    for name, content in (("002.jpg", None), ("005.jpg", b"<html>"), ("007.jpg", b"")):
        path = archive.images / name
        path.write_bytes(path.read_bytes()[:600] if content is None else content)
    with pytest.raises(ValueError, match="3 of 8 images") as error:
        run(archive, Refuses(Pixels()), Refuses(Letters()), cache)
    for line, name in ((6, "002.jpg"), (12, "005.jpg"), (16, "007.jpg")):
        assert f"line {line}: {name}" in str(error.value)


def test_damaged_images_are_left_out_with_skip_bad(archive, cache, capsys):
    """Catches features shifted by one against the captions once an image is dropped."""
    (archive.images / "002.jpg").write_bytes(b"damaged")
    dataset = load(archive, skip_bad=True)
    features = encode_archive(dataset, Pixels(), Letters(), cache=cache, quiet=True)
    assert (
        "left out 1 images" in capsys.readouterr().out
        and features.image.shape[0] == 7
        and len(features.text) == 14
    )
    kept = [name for name in archive.names if name != "002.jpg"]
    assert dataset.image_names == kept and features.image_of.tolist() == [
        i for i in range(7) for _ in range(2)
    ]
    tower = Pixels()
    rows = tower.encode(torch.stack([tower.preprocess(open_image(archive.images / name)) for name in kept]))
    assert (features.image - rows).abs().max() < 1e-3


def test_non_finite_features_are_refused_and_not_kept(archive, cache):
    """Catches NaN rows of a broken tower stored for ever under a good key."""
    broken = Pixels()
    broken.matrix[0, 0] = float("nan")
    with pytest.raises(ValueError, match="non-finite"):
        run(archive, broken, Letters(), cache)
    assert same(run(archive, Pixels(), Letters(), cache), run(archive, Pixels(), Letters(), None))


def test_cache_that_cannot_be_opened_is_named(archive, tmp_path):
    """Catches a bare sqlite3.OperationalError, and a folder moved aside as if it were a damaged cache."""
    with pytest.raises(OSError, match=str(tmp_path)):
        run(archive, Pixels(), Letters(), tmp_path)
    assert tmp_path.is_dir()
