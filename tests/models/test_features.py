"""The feature cache: equal to the naive loop and never wrong, whatever happens to it or to the images."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dataset import open_image
from models.features import Features, encode_archive, encode_files, encode_texts
from models.features import archive as features_archive
from models.features.cache import KINDS, row_key
from models.files import sha256
from models.vision import VisionEncoder
from tests.conftest import ROOT, Letters, Pixels, encode, load, make_archive, picture


class Refuses:
    """Has a tower's key, and fails when anything is asked of it."""

    clip_frames = 1

    def __init__(self, tower):
        self.name, self.key, self.dim, self.parts = tower.name, tower.key, tower.dim, (self,)

    def encode(self, batch):
        raise AssertionError(f"{self.name} was asked to encode {len(batch)} inputs")

    preprocess = encode


class Joined:
    """Towers side by side, as VisionEncoder makes of a name with '+'."""

    clip_frames = 1

    def __init__(self, *parts):
        self.parts = parts
        self.name, self.key = ("+".join(getattr(p, a) for p in parts) for a in ("name", "key"))


def interrupt():
    raise KeyboardInterrupt


def same(a, b):
    return all(x is y is None or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def plain(archive, vision=None):
    """The features that towers without weights give, without a cache."""
    return encode(archive, vision or Pixels(), Letters(), None)


def cached(archive, cache):
    """The features as the cache alone gives them."""
    return encode(archive, Refuses(Pixels()), Refuses(Letters()), cache)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "deep" / "features.sqlite"


@pytest.fixture
def before(archive, cache):
    """The features of `archive`, which are in `cache` afterwards."""
    return encode(archive, Pixels(), Letters(), cache)


def test_encode_archive_equals_the_naive_loop(archive, cache, lite0, minilm):
    features = encode(archive, lite0, minilm, cache, batch_size=3)
    lines = [line.split(",") for line in archive.csv.read_text().splitlines()[1:]]
    images = [lite0.preprocess(open_image(archive.images / name))[None] for name in archive.names]
    image = torch.cat([lite0.encode(pixels) for pixels in images])
    text = torch.cat([minilm.encode([caption]) for _, caption in lines])
    assert features.image_of.tolist() == [archive.names.index(name) for name, _ in lines]
    assert features.image_of.dtype == torch.int64
    for rows, expected in ((features.image, image), (features.text, text)):
        assert rows.dtype == torch.float32 and (rows - expected).abs().max() < 1e-3
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6)
    again = VisionEncoder("cpu", "efficientnet-lite0"), type(minilm)("cpu")
    assert same(encode(archive, *again, cache), features)
    assert not any("network" in vars(tower) for tower in again)


def test_cache_on_equals_cache_off_and_a_second_run_asks_no_tower(archive, cache, before):
    assert same(before, plain(archive)) and same(cached(archive, cache), before)
    captions = load(archive).captions
    assert torch.equal(
        encode_texts(captions[::-1], Refuses(Letters()), cache, quiet=True), before.text.flip(0)
    )
    assert encode_texts([], Letters(), cache).shape == (0, Letters.dim)


def test_rows_come_in_the_order_asked_whatever_is_cached(archive, cache, tmp_path):
    backwards = archive._replace(csv=tmp_path / "backwards.csv")
    header, *lines = archive.csv.read_text().splitlines()
    backwards.csv.write_text("\n".join([header, *lines[7::-1]]) + "\n")
    encode(backwards, Pixels(), Letters(), cache)
    assert same(encode(archive, Pixels(), Letters(), cache), plain(archive))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=30), st.lists(st.booleans(), min_size=8, max_size=8))
def test_features_of_equals_the_naive_loop(image_of, mask):
    texts = torch.arange(float(len(image_of)))
    features = Features(torch.arange(8.0)[:, None], texts[:, None], torch.tensor(image_of))
    some = features.of(torch.tensor(mask))
    kept = [i for i in range(8) if mask[i]]
    captions = [c for c, i in enumerate(image_of) if mask[i]]
    assert some.image[:, 0].tolist() == kept and some.text[:, 0].tolist() == captions
    assert some.image_of.tolist() == [kept.index(image_of[c]) for c in captions]


def test_row_keys_differ_in_every_axis():
    axes = [dict(view=1), dict(frame=1), dict(kind="places"), dict(view=256), dict(frame=2**40)]
    keys = [row_key(Pixels(), b"content", **axis) for axis in ({}, *axes)]
    keys += [row_key(Pixels("other"), b"content"), row_key(Pixels(), b"other"), row_key(Pixels(), b"")]
    assert len(set(keys)) == len(keys) and {len(key) for key in keys} == {16} and "pooled" in KINDS


def test_equal_content_is_encoded_once(archive, cache):
    for name in archive.names[1:4]:
        shutil.copy(archive.images / archive.names[0], archive.images / name)
    vision, text = Pixels(), Letters()
    features = encode(archive, vision, text, cache)
    assert (vision.seen, text.seen) == (5, 9) and torch.equal(features.image[0], features.image[3])


def test_only_new_images_and_texts_are_encoded(archive, cache, before):
    for name in ("100.jpg", "caf\xe9 \U0001f600.jpg"):
        picture(len(name)).save(archive.images / name)
    with open(archive.csv, "a", encoding="utf-8") as file:
        file.write("100.jpg,a new one\ncaf\xe9 \U0001f600.jpg,a disc\n")
    vision, text = Pixels(), Letters()
    after = encode(archive, vision, text, cache)
    assert (vision.seen, text.seen) == (2, 1)
    assert torch.equal(after.image[:8], before.image) and torch.equal(after.text[:16], before.text)
    assert same(encode(archive, other := Pixels("other"), Letters(), cache), plain(archive, Pixels("other")))
    assert other.seen == 10


def test_changed_content_is_encoded_again(archive, cache, before):
    """Even when the size is the same and the old time is put back."""
    path = archive.images / "003.jpg"
    old = path.stat()
    picture(50).save(path, quality=60)
    path.write_bytes(path.read_bytes().ljust(old.st_size, b"\0"))
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    vision = Pixels()
    after = encode(archive, vision, Refuses(Letters()), cache)
    assert vision.seen == 1 and (after.image[3] - before.image[3]).abs().max() > 1e-3
    assert same(after, plain(archive))


def test_touched_renamed_and_moved_images_are_not_encoded_again(archive, cache, before):
    os.utime(archive.images / "000.jpg")
    (archive.images / "001.jpg").rename(archive.images / "new name.jpg")
    archive.csv.write_text(archive.csv.read_text().replace("001.jpg", "new name.jpg"))
    folder = archive.images.with_name("moved")
    if sys.platform == "linux":  # elsewhere file names are Unicode
        folder = os.fsdecode(os.fsencode(archive.csv.parent) + b"/caf\xe9")
    moved = archive._replace(images=archive.images.rename(folder))
    assert same(cached(moved, cache), before) and same(cached(moved, cache), before)


def test_joined_towers_reuse_each_others_rows(archive, cache, lite0, minilm):
    encode(archive, lite0, minilm, cache)
    both = VisionEncoder("cpu", "efficientnet-lite0+efficientnet-lite2")
    features = encode(archive, both, minilm, cache)
    assert "network" not in vars(both.parts[0]) and "network" in vars(both.parts[1])
    pixels = [both.preprocess(open_image(archive.images / name)) for name in archive.names]
    assert (features.image - both.encode(torch.stack(pixels))).abs().max() < 1e-3
    assert features.image.shape == (8, 2560)
    encode(archive, Joined(Refuses(both.parts[1]), Refuses(lite0)), Refuses(minilm), cache)


def file_list(archive):
    return [archive.images / name for name in archive.names]


def test_encode_files_gives_the_rows_of_the_cache_in_order(archive, cache, before):
    paths = file_list(archive)[::-1] * 2
    for size in (1, 3, 512):
        found = list(encode_files(paths, Refuses(Pixels()), cache, at_once=size))
        assert [file.path for file in found] == paths and {file.error for file in found} == {None}
        assert torch.equal(torch.stack([file.row for file in found]), before.image.flip(0).repeat(2, 1))
        assert [file.digest for file in found] == [sha256(path) for path in paths]
    assert list(encode_files([], Pixels(), cache)) == []
    rows = [file.row for file in encode_files(paths[:1], Joined(Pixels(), Pixels("other")), None)]
    assert rows[0].shape == (48,) and rows[0].norm().item() == pytest.approx(1)


def test_encode_files_reports_errors_per_file(archive, cache):
    good, damaged, copy, missing, folder, pipe, *_ = paths = file_list(archive)[:6]
    damaged.write_bytes(damaged.read_bytes()[:600])
    shutil.copy(damaged, copy)
    for path in (missing, folder, pipe):
        path.unlink()
    folder.mkdir()
    os.mkfifo(pipe)
    for _ in range(2):  # the second time from the cache
        found = list(encode_files([*paths, "nul\0.jpg"], Pixels(), cache))
        assert [file.row is not None for file in found] == [True] + [False] * 6
        assert found[1].digest == found[2].digest == sha256(damaged)
        assert [file.digest for file in found[3:]] == [None] * 4
        assert all(str(path) in file.error for path, file in zip(paths[1:], found[1:]))


@pytest.mark.parametrize("what", ["changes", "vanishes"])
@pytest.mark.parametrize("when", ["hashed", "opened", "read"])
def test_file_that_changes_or_vanishes_meanwhile_keeps_no_row(archive, cache, monkeypatch, what, when):
    """Its copy is whole, and encoded."""
    path, copy, other, *_ = file_list(archive)
    shutil.copy(path, copy)

    def disturb(place, function):
        def disturbed(source, *more):
            if place == "read":
                found = function(source, *more)
            if source == path and path.exists() and path.read_bytes() == copy.read_bytes():
                path.unlink() if what == "vanishes" else shutil.copy(other, path)
            return found if place == "read" else function(source, *more)

        return disturbed

    module, name = {"hashed": ("cache", "sha256")}.get(when, ("archive", "open_frames"))
    module = sys.modules[f"models.features.{module}"]
    monkeypatch.setattr(module, name, disturb(when, getattr(module, name)))
    found = list(encode_files([path, copy, other], Pixels(), cache))
    monkeypatch.undo()
    expected = list(encode_files([copy, other], Pixels(), None))
    assert [torch.equal(a.row, b.row) for a, b in zip(found[1:], expected, strict=True)] == [True, True]
    if what == "changes" and when == "hashed":  # before it is read at all, so this is what it holds
        assert torch.equal(found[0].row, found[2].row)
    else:
        assert found[0][1:3] == (None, None) and str(path) in found[0].error
    again = list(encode_files([copy, other], Refuses(Pixels()), cache))
    assert [file.digest for file in again] == [sha256(copy), sha256(other)]


def test_image_that_changes_while_it_is_encoded_ends_encode_archive(archive, cache, monkeypatch):
    path = archive.images / "003.jpg"
    read = features_archive.open_frames

    def reads_later(source, *more):
        if source == path:
            shutil.copy(archive.images / "005.jpg", path)
        return read(source, *more)

    monkeypatch.setattr(features_archive, "open_frames", reads_later)
    with pytest.raises(ValueError, match=r"captions\.csv, line 8: .*003\.jpg"):
        encode(archive, Pixels(), Letters(), cache)
    assert same(encode(archive, Pixels(), Letters(), cache), plain(archive))


def test_interrupted_run_keeps_what_it_had_done(archive, cache):
    with pytest.raises(KeyboardInterrupt):
        encode(archive, Pixels(stop_at=3, stop=interrupt), Letters(), cache, batch_size=2)
    vision = Pixels()
    assert same(encode(archive, vision, Letters(), cache, batch_size=2), plain(archive))
    assert vision.seen == 8 - 2 * 2


def python(code, *args):
    """A second process that runs `code` after the imports."""
    imports = "import os, signal, sys, torch; from pathlib import Path; from tests.conftest import *\n"
    paths = "csv, images, cache, *more = map(Path, sys.argv[1:]); archive = Archive(csv, images, [])\n"
    return subprocess.Popen(
        [sys.executable, "-c", imports + paths + code, *map(str, args)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


KILLED = """
vision = Pixels(stop_at=3, stop=lambda: os.kill(os.getpid(), signal.SIGKILL))
encode(archive, vision, Letters(), cache, batch_size=2)
"""
AT_ONCE = """
print("ready", flush=True)
sys.stdin.readline()
torch.save(tuple(encode(archive, Pixels(), Letters(), cache, batch_size=1)), more[0])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_run_keeps_what_it_had_done(archive, cache):
    process = python(KILLED, archive.csv, archive.images, cache)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    vision = Pixels()
    assert same(encode(archive, vision, Letters(), cache, batch_size=2), plain(archive)) and vision.seen == 4


def test_two_processes_at_once_share_the_cache(tmp_path, cache):
    archive = make_archive(tmp_path / "many", count=30)
    outputs = [tmp_path / "0.pt", tmp_path / "1.pt"]
    processes = [python(AT_ONCE, archive.csv, archive.images, cache, path) for path in outputs]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert all(same(torch.load(path), plain(archive)) for path in outputs)
    with sqlite3.connect(cache) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM rows").fetchone() == (30 + 31,)


def garbage(content):
    return random.Random(0).randbytes(len(content))


DAMAGE = {
    "half": lambda content: content[: len(content) // 2],
    "50 bytes": lambda content: content[:50],
    "one page": lambda content: content[:4096],
    "garbage": garbage,
    "garbage first": lambda content: garbage(content[:1000]) + content[1000:],
    "garbage after the first page": lambda content: content[:4096] + garbage(content[4096:]),
    "another file": lambda content: b"image_name,comment\n" * 100,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_cache_is_named_moved_aside_and_rebuilt(archive, cache, before, caplog, damage):
    content = damage(cache.read_bytes())
    cache.write_bytes(content)
    assert same(encode(archive, Pixels(), Letters(), cache), before)
    (aside,) = (path for path in cache.parent.iterdir() if path.read_bytes() == content)
    assert str(cache) in caplog.text and aside.name in caplog.text
    assert same(cached(archive, cache), before)


def test_any_flipped_byte_of_the_cache_leaves_the_features_right(archive, cache, before):
    content, rng = cache.read_bytes(), random.Random(0)
    for place in [*range(0, 100, 3), *(rng.randrange(100, len(content)) for _ in range(100))]:
        flipped = bytearray(content)
        flipped[place] ^= rng.randrange(1, 256)
        cache.write_bytes(flipped)
        assert same(encode(archive, Pixels(), Letters(), cache), before), place


@pytest.mark.parametrize("column", ["path", "stat"])
def test_stored_text_that_is_no_longer_utf8_is_taken_for_unknown(archive, cache, before, column):
    with sqlite3.connect(cache) as db:
        text = db.execute(f"SELECT CAST({column} AS BLOB) FROM files LIMIT 1").fetchone()[0]
    content = cache.read_bytes()
    cache.write_bytes(content.replace(text, text[:-1] + b"\xff"))
    assert cache.read_bytes() != content and same(cached(archive, cache), before)


def test_flipped_byte_in_a_row_is_noticed_and_encoded_again(archive, cache, before, caplog):
    with sqlite3.connect(cache) as db:
        key, row = db.execute("SELECT key, row FROM rows LIMIT 1").fetchone()
        db.execute("UPDATE rows SET row = ? WHERE key = ?", (bytes([row[0] ^ 4]) + row[1:], key))
    vision, text = Pixels(), Letters()
    assert same(encode(archive, vision, text, cache), before) and vision.seen + text.seen == 1
    assert f"{cache}: 1 damaged rows" in caplog.text and same(cached(archive, cache), before)


def test_rows_that_changed_places_are_noticed(archive, cache, before):
    """As a damaged index does: each row is sound in itself."""
    with sqlite3.connect(cache) as db:
        (a, *row_a), (b, *row_b) = db.execute("SELECT key, row, crc FROM rows LIMIT 2").fetchall()
        db.executemany("UPDATE rows SET row = ?, crc = ? WHERE key = ?", [(*row_a, b), (*row_b, a)])
    assert same(encode(archive, Pixels(), Letters(), cache), before)


def test_damaged_images_are_listed_before_any_tower_runs(archive, cache):
    for name, content in (("002.jpg", None), ("005.jpg", b"<html>"), ("007.jpg", b"")):
        path = archive.images / name
        path.write_bytes(path.read_bytes()[:600] if content is None else content)
    with pytest.raises(ValueError, match="3 of 8") as error:
        cached(archive, cache)
    assert all(f"line {line}: 00{line // 2 - 1}.jpg" in str(error.value) for line in (6, 12, 16))


def test_damaged_images_are_left_out_with_skip_bad(archive, cache, caplog):
    (archive.images / "002.jpg").write_bytes(b"damaged")
    dataset = load(archive, skip_bad=True)
    features = encode_archive(dataset, Pixels(), Letters(), cache=cache, quiet=True)
    assert "1 images" in caplog.text and len(features.text) == 14
    kept = [name for name in archive.names if name != "002.jpg"]
    assert dataset.image_names == kept and features.image_of.tolist() == [i // 2 for i in range(14)]
    tower = Pixels()
    rows = tower.encode([tower.preprocess(open_image(archive.images / name)) for name in kept])
    assert features.image.shape == rows.shape and (features.image - rows).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_non_finite_features_are_refused_and_not_kept(archive, cache, kind):
    towers = dict(vision=Pixels(), text=Letters())
    broken = towers[kind].encode
    towers[kind].encode = lambda batch: broken(batch) * float("nan")
    with pytest.raises(ValueError, match="pixels|non-finite"):
        encode(archive, cache=cache, **towers)
    assert same(encode(archive, Pixels(), Letters(), cache), plain(archive))


def test_cache_that_cannot_be_opened_is_named(archive, tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        encode(archive, Pixels(), Letters(), tmp_path)
    assert tmp_path.is_dir()
