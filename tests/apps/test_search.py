"""apps.search on a folder of real photographs and a run trained on them for a moment."""

import json
import ntpath
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import train
from apps.search import __main__ as search
from apps.search.duplicates import duplicates, near_groups
from apps.search.find import combine, find
from apps.search.index import update
from apps.search.sheets import grid, link_to
from apps.search.store import opened
from models.dataset import frame_at, open_image
from models.files import YOUNG, relative, stamp, times_of
from models.vljepa import VLJEPA
from tests.conftest import ROOT, write_csv
from tests.models.test_clips import write

DATA = Path(find_spec("skimage").submodule_search_locations[0], "data")
PHOTOS = {
    "astronaut.png": "a smiling woman in an orange space suit",
    "chelsea.png": "the face of a cat",
    "coffee.png": "a cup of coffee",
    "rocket.jpg": "a rocket on its launch pad",
    "coins.png": "old coins in rows",
    "hubble_deep_field.jpg": "galaxies in black space",
    "camera.png": "a man with a camera on a tripod",
    "motorcycle_left.png": "a motorcycle in a garage",
}


class World:
    """8 photographs in two folders, the index of them, the feature cache, and a run trained on them."""

    def __init__(self, root, run):
        self.root, self.run = root, run
        self.photos, self.index, self.cache = root / "photos", root / "index.sqlite", root / "cache.sqlite"

    def search(self, command, *flags, index=None):
        model = [] if command == "duplicates" or "--run" in flags else ["--run", self.run, "--device", "cpu"]
        cache = ["--cache", self.cache] if command == "index" else []
        flags = (command, *flags, *model, *cache, "--index", index or self.index, "--quiet")
        return search.main(list(map(str, flags)))

    def update(self):
        """(indexed, damaged, changed, moved, gone) of an Update that counts every file."""
        done = update(self.photos, self.index, self.run, "cpu", self.cache)
        left_out = sum(done.walked.left_out.values())
        assert done.walked.seen == done.indexed + done.damaged + left_out and done.waiting == 0
        return done[1:6]

    def find(self, *texts, **options):
        with opened(self.index) as store:
            return find(store, texts, run=self.run, device="cpu", **options)

    def copy(self, folder):
        """The same in another folder, the run excepted: its index is up to date."""
        shutil.copytree(self.photos, folder / "photos")
        shutil.copy(self.index, folder)
        shutil.copy(self.cache, folder)
        world = World(folder, self.run)
        world.model = self.model
        edit(world.index, "UPDATE meta SET value = ? WHERE key = 'root'", os.fsencode(world.photos))
        for path in column(world.index, "path"):
            mark = stamp(world.photos / path)
            edit(world.index, "UPDATE images SET stamp = ? WHERE path = ?", mark, path.encode())
        return world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("search")
    world = World(root, root / "run")
    (world.photos / "two words").mkdir(parents=True)
    rows = []
    for n, (name, caption) in enumerate(PHOTOS.items()):
        path = ("two words/" if n % 2 else "") + Path(name).stem + ".jpg"
        image = open_image(DATA / name)
        image.thumbnail((320, 320))
        image.save(world.photos / path, quality=90)
        rows.append((path, caption))
    captions = write_csv(root / "captions.csv", rows)
    flags = ["--csv", captions, "--images", world.photos, "--cache", world.cache, "--run", world.run]
    recipe = "--vision efficientnet-lite0 --hidden 64 --epochs 30 --lr 0.003 --loss info_nce --standardise"
    flags += [*recipe.split(), "--device", "cpu", "--val-fraction", "0", "--quiet"]
    assert train.main(list(map(str, flags))) == 0
    world.encoded = cached(world.cache)  # what train.py encoded
    assert world.search("index", world.photos) == 0
    world.model = VLJEPA.load(world.run)
    return world


@pytest.fixture
def place(world, tmp_path):
    """A copy of `world` that a test may change."""
    return world.copy(tmp_path)


@pytest.fixture
def loaded(world, monkeypatch):
    """Spares a test the time to load the model once more."""
    monkeypatch.setattr(VLJEPA, "load", lambda run, device: world.model)


def select(file, query):
    with closing(sqlite3.connect(file)) as db:
        return db.execute(query).fetchall()


def edit(file, statement, *values):
    with closing(sqlite3.connect(file)) as db, db:
        db.execute(statement, values)


def contents(index):
    """All that an index holds, in its order; of the stamps, the part that is the file's."""
    images = select(index, "SELECT path, stamp, id, digest, row, sketch FROM images ORDER BY id")
    meta = select(index, "SELECT * FROM meta ORDER BY key")
    return [(path, mark.partition(YOUNG)[0], *rest) for path, mark, *rest in images], meta


def column(index, name):
    """{path: value} of the images, in the order of the index."""
    values = select(index, f"SELECT path, {name} FROM images ORDER BY id")
    return {os.fsdecode(path): value for path, value in values}


def close(a, b):
    """Whether two rows differ in rounding alone."""
    a, b = (torch.frombuffer(bytearray(row), dtype=torch.float16).float() for row in (a, b))
    return torch.allclose(a, b, atol=1e-3)


def cached(cache):
    """How many images and texts the feature cache holds."""
    return select(cache, "SELECT count(*) FROM rows")[0][0]


def test_index_holds_what_encode_image_gives_and_encodes_nothing_that_train_has_encoded(world):
    rows = column(world.index, "row")
    assert list(rows) == sorted(p.relative_to(world.photos).as_posix() for p in world.photos.rglob("*.jpg"))
    expected = world.model.encode_image([world.photos / path for path in rows]).half().numpy()
    assert all(close(row, other.tobytes()) for row, other in zip(rows.values(), expected))
    assert len(rows) == len(PHOTOS) and cached(world.cache) == world.encoded


def test_help_and_index_of_an_unchanged_folder_do_not_import_torch(world):
    code = (
        "import sys; from apps.search.__main__ import main\n"
        "try: main(['--help'])\nexcept SystemExit: assert not {'torch', 'PIL'} & {*sys.modules}\n"
        "assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    )
    before = contents(world.index)
    flags = ["index", world.photos, "--index", world.index, "--run", world.run]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and " 0 new or changed" in done.stdout, done.stderr
    assert contents(world.index) == before


def test_index_takes_up_what_is_new_changed_renamed_touched_and_gone(place):
    old, before = column(place.index, "row"), cached(place.cache)
    touched, changed, gone, renamed = sorted(old)[:4]
    os.utime(place.photos / touched, (1, 1))
    Image.new("RGB", (64, 64), "green").save(place.photos / changed)
    (place.photos / gone).unlink()
    (place.photos / renamed).rename(place.photos / "renamed.jpg")
    Image.new("RGB", (64, 64), "red").save(place.photos / "new.PNG")
    assert place.update() == (8, 0, 2, 1, 1) and cached(place.cache) == before + 2
    new = column(place.index, "row")
    files = [p.relative_to(place.photos).as_posix() for p in place.photos.rglob("*") if p.is_file()]
    assert sorted(new) == sorted(files)
    assert close(new[touched], old[touched]) and close(new["renamed.jpg"], old[renamed])
    assert not close(new[changed], old[changed])


def test_moved_folder_and_renamed_images_are_recognised_by_content(place, monkeypatch, caplog, capsys):
    """Neither the model nor the cache is needed: nothing is encoded."""
    (place.photos / "half.jpg").write_bytes(b"damaged")
    assert place.update() == (8, 1, 1, 0, 0)
    before = column(place.index, "row")
    shutil.copytree(place.photos, place.root / "disk" / "new")  # other inodes and times
    shutil.rmtree(place.photos)
    assert place.search("find", "a cat") == place.search("duplicates") == 1
    assert "photos is gone" in capsys.readouterr().err
    place.photos, place.cache = place.root / "disk" / "new", place.root / "empty.sqlite"
    (place.photos / "two words").rename(place.photos / "2019")
    (place.photos / "coffee.jpg").rename(place.photos / "tea.jpg")
    (place.photos / "astronaut.jpg").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(VLJEPA, "load", None)
        assert place.update() == (7, 1, 0, 5, 1)
        assert place.update() == (7, 1, 0, 0, 0)
    names = {path: path.replace("two words", "2019") for path in before}
    names |= {"coffee.jpg": "tea.jpg"}
    del names["astronaut.jpg"]
    assert column(place.index, "row") == {new: before[old] for old, new in names.items()}
    assert "8 of its 9 images" in caplog.text
    assert place.search("find", "a cat", "--top", 1) == 0
    assert "new/2019/chelsea.jpg" in capsys.readouterr().out


def test_index_follows_a_parent_and_a_rename_on_the_same_disk(place, monkeypatch):
    monkeypatch.setattr(VLJEPA, "load", None)
    place.photos = place.photos.rename(place.root / "renamed")
    assert place.update() == (8, 0, 0, 0, 0)
    (place.root / "all").mkdir()
    place.photos.rename(place.root / "all" / "deeper")
    place.photos = place.root / "all"
    assert place.update() == (8, 0, 0, 8, 0)
    assert all(path.startswith("deeper/") for path in column(place.index, "path"))


def test_index_whose_disk_is_away_does_not_become_that_of_a_folder_with_few_of_its_images(place, capsys):
    before = contents(place.index)
    (place.root / "other").mkdir()
    for n, photo in enumerate(sorted(place.photos.rglob("*.jpg"))[:3]):
        shutil.copy(photo, place.root / "other" / f"{n}.jpg")
    place.photos.rename(place.root / "away")
    for _ in ("gone", "an empty mount point"):
        assert place.search("index", place.root / "other") == 1
        assert "3 of its 8 images" in capsys.readouterr().err and contents(place.index) == before
        place.photos.mkdir(exist_ok=True)


def test_images_that_are_gone_are_said_and_not_shown(place, loaded, caplog, capsys):
    ranked = [path for _, path in place.find("a cat").results]
    copies = [place.photos / f"copy {n}.jpg" for n in range(3)]
    for copy in copies:
        shutil.copy(ranked[0], copy)
    place.update()
    for path in (ranked[0], copies[0], ranked[2]):
        path.unlink()
    assert [path for _, path in place.find("a cat", top=2).results] == copies[1:]
    assert place.search("find", "a cat", "--top", 3) == 0
    assert "2 images that match are gone" in caplog.text and "index again" in caplog.text
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and out[2].endswith(ranked[1].name)
    assert place.search("duplicates") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "identical, 2 files",
        *(f"  {os.path.relpath(copy)}" for copy in copies[1:]),
    ]
    for path in place.photos.rglob("*.jpg"):
        path.unlink()
    assert place.search("find", "a cat") == place.search("duplicates") == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("path", "folder", "shown", "link"),
    [
        ("D:\\photos\\a b.jpg", "C:\\runs", "D:\\photos\\a b.jpg", "file:///D:/photos/a%20b.jpg"),
        ("\\\\nas\\photos\\a.jpg", "C:\\runs", "\\\\nas\\photos\\a.jpg", "file://nas/photos/a.jpg"),
        ("d:\\photos\\a.jpg", "D:\\runs", "..\\photos\\a.jpg", "../photos/a.jpg"),
    ],
)
def test_path_on_another_drive_of_windows_is_absolute(path, folder, shown, link):
    """As ntpath has them, which is os.path on Windows."""
    assert relative(path, folder, ntpath) == shown
    assert link_to(path, folder, ntpath) == link
    assert relative("/a/b.jpg", "/c") == "../a/b.jpg" == link_to("/a/b.jpg", "/c")


def test_file_that_was_young_is_compared_by_content(place):
    """A tick of a coarse clock (2 s on FAT) can leave a second content under the first's row."""
    file = place.photos / "astronaut.jpg"
    shutil.copy(place.photos / "two words" / "chelsea.jpg", file)
    mark = f"{times_of(file.stat())}{YOUNG}1"
    edit(place.index, "UPDATE images SET stamp = ? WHERE path = ?", mark, b"astronaut.jpg")
    assert place.update() == (8, 0, 1, 0, 0)
    rows = column(place.index, "row")
    assert close(rows["astronaut.jpg"], rows["two words/chelsea.jpg"])


def test_files_that_were_young_get_their_lasting_stamp_once(place, monkeypatch):
    edit(place.index, "UPDATE images SET stamp = stamp || ? WHERE NOT instr(stamp, ?)", f"{YOUNG}1", YOUNG)
    edit(place.index, "INSERT OR REPLACE INTO meta VALUES ('ann', 'kept')")
    before, later = contents(place.index), time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    monkeypatch.setattr(VLJEPA, "load", None)
    for _ in range(2):
        assert place.update() == (8, 0, 0, 0, 0) and contents(place.index) == before
        assert not [mark for mark in column(place.index, "stamp").values() if YOUNG in mark]
        again = "BEFORE UPDATE ON images BEGIN SELECT RAISE(ABORT, 'written again'); END"
        edit(place.index, f"CREATE TRIGGER IF NOT EXISTS once {again}")


def test_interrupted_index_can_be_searched_and_ends_as_the_undisturbed_one(place, world, monkeypatch, capsys):
    """tests/robustness/test_kill.py does the same with SIGKILL."""
    (place.photos / "broken.jpg").write_bytes(b"no image")
    shutil.copy(place.photos / "astronaut.jpg", place.photos / "zz copy.jpg")
    whole, stopped = place.root / "whole.sqlite", place.root / "stopped.sqlite"
    flags = ("index", place.photos, "--batch-size", 2)
    assert place.search(*flags, index=whole) == 0
    batches = [VLJEPA.predict] * 2

    def interrupted(self, features):
        if not batches:
            raise KeyboardInterrupt
        return batches.pop()(self, features)

    with monkeypatch.context() as patch:
        patch.setattr(VLJEPA, "predict", interrupted)
        assert place.search(*flags, index=stopped) == 130
    assert 4 <= len(column(stopped, "id")) < len(column(whole, "id"))
    capsys.readouterr()
    assert place.search("find", "a cat", index=stopped) == 0 and "not finished" in capsys.readouterr().err
    assert place.search(*flags, index=stopped) == 0 and contents(stopped) == contents(whole)


def test_damaged_images_are_listed_once_even_from_the_future_and_taken_up_when_mended(
    place, monkeypatch, caplog
):
    whole = (place.photos / "astronaut.jpg").read_bytes()
    (place.photos / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (place.photos / "empty.png").touch()
    for name in ("half.jpg", "astronaut.jpg"):
        os.utime(place.photos / name, (4e9, 4e9))  # a camera with a wrong clock
    encoded = cached(place.cache)
    assert place.update() == (8, 2, 2, 0, 0) and "half.jpg" in caplog.text and "empty.png" in caplog.text
    before, marks = contents(place.index), column(place.index, "stamp")
    caplog.clear()
    with monkeypatch.context() as patch:
        patch.setattr(VLJEPA, "load", None)
        assert place.update() == (8, 2, 0, 0, 0) and not caplog.text
    assert contents(place.index) == before and column(place.index, "stamp") == marks
    assert YOUNG in marks["half.jpg"] and YOUNG in marks["astronaut.jpg"]
    (place.photos / "half.jpg").write_bytes(whole)
    assert place.update() == (9, 1, 1, 0, 0) and cached(place.cache) == encoded


def test_index_counts_all_files_and_passes_over_links_and_hidden_ones(place, capsys):
    before = list(column(place.index, "id"))
    (place.root / "elsewhere").mkdir()
    shutil.copy(place.photos / "astronaut.jpg", place.root / "elsewhere" / "secret.jpg")
    (place.photos / "out").symlink_to(place.root / "elsewhere")
    (place.photos / "out.jpg").symlink_to(place.root / "elsewhere" / "secret.jpg")
    (place.photos / "two words" / "up").symlink_to(place.photos)
    shutil.copy(place.photos / "astronaut.jpg", place.photos / ".hidden.jpg")
    (place.photos / ".thumbnails").mkdir()
    (place.photos / ".thumbnails" / "small.jpg").touch()
    (place.photos / "notes.txt").write_text("not an image")
    (place.photos / "broken.jpg").write_bytes(b"no image")
    assert place.search("index", place.photos) == 0
    parts = "15 files seen = 8 indexed + 1 damaged + 2 hidden + 3 links (--follow-links reads them)"
    assert f"{parts} + 1 other files (1 .txt); 1 new or changed, 0 moved, 0 gone" in capsys.readouterr().out
    assert list(column(place.index, "id")) == [*before, "broken.jpg"]


def test_index_names_heic_that_it_cannot_read(place, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("IMG_0001.HEIC", "IMG_0002.heif", "two words/IMG_0003.HEIC", "IMG_0004.jpg"):
        (place.photos / name).write_bytes(b"\0\0\0\x18ftypheic")
    assert place.search("index", place.photos) == 0
    kinds = "1 damaged + 3 HEIC files (pip install pillow-heif)"
    assert f"12 files seen = 8 indexed + {kinds}" in capsys.readouterr().out
    shutil.rmtree(place.photos / "two words")
    for path in place.photos.glob("*.jpg"):
        path.unlink()
    assert place.search("index", place.photos) == 1
    assert "2 HEIC files (pip install pillow-heif)" in capsys.readouterr().err


def test_index_reads_heic_once_pillow_heif_is_installed(place, capsys, monkeypatch):
    pillow_heif = pytest.importorskip(
        "pillow_heif", reason="pillow-heif, an optional extra, is not installed"
    )
    image = pillow_heif.from_pillow(Image.linear_gradient("L").convert("RGB"))
    image.save(place.photos / "IMG_0001.HEIC")
    shutil.copy(place.photos / "IMG_0001.HEIC", place.photos / "IMG_0002.jpg")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pillow_heif", None)
        assert place.search("index", place.photos) == 0
    assert "10 files seen = 8 indexed + 1 damaged + 1 HEIC files" in capsys.readouterr().out
    assert place.search("index", place.photos) == 0
    assert "10 files seen = 10 indexed + 0 damaged" in capsys.readouterr().out


def test_thumbnails_of_a_nas_and_what_is_excluded_are_left_out_and_counted(place, capsys):
    for folder in ("@eaDir/astronaut.jpg", "#recycle", "two words/__MACOSX", "two words/raw"):
        (place.photos / folder).mkdir(parents=True)
        shutil.copy(place.photos / "astronaut.jpg", place.photos / folder / "copy.jpg")
    (place.photos / "two words" / "Thumbs.db").touch()
    before = column(place.index, "id")
    assert place.search("index", place.photos, "--exclude", "raw", "--exclude", "*.gif") == 0
    left_out = "1 #recycle + 1 @eaDir + 1 Thumbs.db + 1 __MACOSX + 1 excluded; 0 new or changed"
    assert f"13 files seen = 8 indexed + 0 damaged + {left_out}" in capsys.readouterr().out
    assert column(place.index, "id") == before


def test_linked_images_are_indexed_and_found_with_follow_links(place, capsys):
    """As download caches lay files: names that lead to files named by their content."""
    cache = place.root / "cache"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshot").mkdir()
    for n, photo in enumerate(place.photos.rglob("*.jpg")):
        shutil.copy(photo, cache / "blobs" / f"{n:040x}")
        (cache / "snapshot" / photo.name).symlink_to(f"../blobs/{n:040x}")
    (cache / "snapshot" / "circle").symlink_to(".")
    index = cache / "index.sqlite"
    assert place.search("index", cache / "snapshot", index=index) == 1
    assert "9 links (--follow-links reads them)" in capsys.readouterr().err
    assert place.search("index", cache / "snapshot", "--follow-links", index=index) == 0
    parts = "9 files seen = 8 indexed + 0 damaged + 1 links to what is read anyway"
    assert parts in capsys.readouterr().out
    assert place.search("find", PHOTOS["coffee.png"], "--top", 1, index=index) == 0
    assert capsys.readouterr().out.strip().endswith("snapshot/coffee.jpg")


def test_index_of_an_emptied_or_another_folder_is_left_alone(place, capsys):
    """An unmounted disk is an empty folder."""
    before = contents(place.index)
    other = place.root / "other"
    other.mkdir()
    assert place.search("index", other) == 1
    Image.new("RGB", (9, 9)).save(other / "a.png")
    assert place.search("index", other) == 1
    assert "is the index of" in capsys.readouterr().err
    place.photos.rename(place.root / "moved")
    assert place.search("index", place.photos) == 1
    place.photos.mkdir()
    assert place.search("index", place.photos) == 1
    assert contents(place.index) == before


def test_index_belongs_to_a_model_and_is_made_again_for_another_without_encoding(place, world, capsys):
    other, images = place.root / "other run", contents(place.index)[0]
    world.model.save_pretrained(place.root / "saved")
    shutil.copytree(world.run, other)
    for run in (place.root / "saved", world.run, other):  # the same model in three folders
        assert place.search("index", place.photos, "--run", run) == 0
        assert " 0 new or changed" in capsys.readouterr().out and contents(place.index)[0] == images
    assert place.search("find", "a cat") == 0 and "not finished" not in capsys.readouterr().err
    model = VLJEPA.load(other)
    model.predictor.load_state_dict({k: v * 1.1 for k, v in model.predictor.state_dict().items()})
    model.save_pretrained(other)
    assert place.search("find", "a cat", "--run", other) == 1
    assert f"{other} was retrained since the index was made" in capsys.readouterr().err
    assert contents(place.index)[0] == images
    assert place.search("index", place.photos, "--run", other) == 0
    new, old = column(place.index, "row"), column(world.index, "row")
    assert not any(close(new[path], old[path]) for path in old) and cached(place.cache) == world.encoded
    assert place.search("find", "a cat", "--run", other) == 0
    assert place.search("find", "a cat") == 1
    err = capsys.readouterr().err
    assert "another run" in err and f"--run {os.path.relpath(other)}" in err and "index again" in err
    assert place.search("index", place.photos, "--run", place.root / "untrained") == 1


def test_find_puts_the_photograph_of_the_text_first(world, loaded):
    for name, text in PHOTOS.items():
        assert world.find(text, top=3).results[0][1].stem == Path(name).stem


def test_find_prints_cosines_and_paths_from_the_current_folder(world, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.chdir(world.photos / "two words")
    assert world.search("find", "a cup of coffee") == 0
    scores, paths = zip(*[line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()])
    scores = list(map(float, scores))
    expected = world.model.encode_image(list(map(Path, paths))) @ world.model.encode_text("a cup of coffee").T
    assert scores == pytest.approx(expected[:, 0].tolist(), abs=2e-3)
    assert scores == sorted(scores, reverse=True) and len(scores) == len(PHOTOS)


def test_find_gives_paths_to_a_pipe_nul_or_json(place, loaded, capsysbinary, monkeypatch):
    """What xargs -0, a shell loop and json.loads make of it are the files."""
    odd = place.photos / "a\nb.jpg"
    shutil.copy(place.photos / "two words" / "chelsea.jpg", odd)
    place.update()
    monkeypatch.chdir(place.photos)
    best = [path.relative_to(place.photos) for _, path in place.find("a cat", top=3).results]
    assert {best[0], best[1]} == {Path("a\nb.jpg"), Path("two words/chelsea.jpg")}
    flags = ("find", "a cat", "--top", 3)
    assert place.search(*flags, "--null") == 0
    assert capsysbinary.readouterr().out.split(b"\0") == [*map(os.fsencode, best), b""]
    assert place.search(*flags, "--json") == 0
    found = json.loads(capsysbinary.readouterr().out)
    assert [Path(entry["path"]) for entry in found] == best
    assert [entry["score"] for entry in found] == [score for score, _ in place.find("a cat", top=3).results]
    assert place.search(*flags) == 0
    out, err = capsysbinary.readouterr()
    assert out == b"".join(os.fsencode(path) + b"\n" for path in best) and b"--null" in err


def test_find_shows_nothing_below_the_threshold_and_says_so(world, loaded, capsys):
    scores = [score for score, _ in world.find("a cat").results]
    middle = (scores[1] + scores[2]) / 2
    assert world.search("find", "a cat", "--threshold", middle) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert world.search("find", "a cat", "--threshold", 0.99, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [] and f"the best {scores[0]:.4f}" in err
    assert world.search("find", "a cat", "--threshold") == 1  # the tiny run held out too few images
    assert "give a score yourself" in capsys.readouterr().err


def test_find_by_image_finds_that_image_and_takes_text_beside_it(world, loaded, capsys):
    photo = world.photos / "astronaut.jpg"
    (score, first), (second, _), *_ = world.find(image=photo).results
    assert first == photo and score == pytest.approx(1, abs=2e-3) and second < 0.99
    assert world.search("find", "--image", photo, "--not", "a woman", "--top", 2) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert world.search("find", "--image", world.root / "nothing.jpg") == 1


def test_and_adds_and_not_takes_away():
    a, b, c = F.normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), dim=-1).split(1)
    assert torch.allclose(combine(a, b[:0]), a)
    both, without = combine(torch.cat([a, b]), c[:0]), combine(a, torch.cat([b, c]))
    assert both @ b.T > a @ b.T and without @ b.T < a @ b.T and without @ c.T < a @ c.T
    assert without @ a.T > 0.5
    torch.testing.assert_close(both, combine(torch.cat([b, a]), c[:0]))
    torch.testing.assert_close(both.norm(), torch.tensor(1.0))


def test_approximate_search_agrees_with_exact_follows_the_index_and_scales(place, loaded):
    exact = place.find("a cat").results
    graph = Path(f"{place.index}.usearch")
    for damage in (None, None, b"\x00" * 5000):  # built, mapped, never mapped when somebody else wrote it
        if damage:
            graph.write_bytes(damage)
        near, recall, _ = place.find("a cat", ann=True)
        assert [path for _, path in near] == [path for _, path in exact] and recall == "recall@8 1.000"
        assert [score for score, _ in near] == pytest.approx([score for score, _ in exact], abs=1e-4)
    next(place.photos.rglob("chelsea.jpg")).rename(place.photos / "moved.jpg")
    place.update()
    found = {path.name for _, path in place.find("a cat", ann=True).results}
    assert "moved.jpg" in found and "chelsea.jpg" not in found
    rows = F.normalize(torch.randn(3000, 384, generator=torch.Generator().manual_seed(0)), dim=-1).half()
    with closing(sqlite3.connect(place.index)) as db, db:
        images = [(b"%d.jpg" % i, row.tobytes()) for i, row in enumerate(rows.numpy())]
        db.executemany("INSERT INTO images (path, row) VALUES (?, ?)", images)
    graph.unlink()
    recall = place.find("a cat", ann=True).recall
    assert recall.startswith("recall@12 ") and float(recall.split()[1]) > 0.9


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.links, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.links += [value for key, value in attributes if key == "href"]
        self.images += [value for key, value in attributes if key == "src"]


MARKUP = ["<script>alert(1)<x>.jpg", '" onerror="alert(1).jpg', "javascript:alert(1).jpg"]
STRANGE = [*MARKUP, "100%20#?&.jpg", "猫 ü.jpg"]


def test_html_is_inert_and_its_links_open_the_files(place, capsys):
    for n, name in enumerate(STRANGE):
        Image.new("RGB", (40, 30), (50 * n, 90, 40)).save(place.photos / name)
    place.update()
    sheet = place.root / "sub" / "sheet.html"
    assert place.search("find", "<b>&{x}", "--top", 50, "--html", sheet) == 0
    assert f"wrote {sheet}" in capsys.readouterr().err
    text = sheet.read_text(encoding="utf-8")
    tags = Tags(text)
    assert set(tags.names) == set("html meta title style h1 main figure a img figcaption b".split())
    assert "&lt;b&gt;&amp;{x}" in text and "http:" not in text and "https:" not in text
    assert tags.names.count("img") == tags.names.count("b") == len(PHOTOS) + len(STRANGE)
    assert all(image.startswith("data:image/jpeg;base64,") for image in tags.images)
    assert not any(link.startswith("javascript:") for link in tags.links)
    opened = {(sheet.parent / unquote(link)).resolve() for link in tags.links}
    assert opened == {path.resolve() for path in place.photos.rglob("*.jpg")}


def test_grid_shows_every_result_and_never_replaces_a_photograph(place, loaded, caplog, capsys):
    (place.photos / "astronaut.jpg").write_bytes(b"damaged since")
    assert place.search("find", "coins " * 60, "--top", 7, "--grid", place.root / "sheet.png") == 0
    assert "astronaut.jpg" in caplog.text and "index again" in caplog.text
    assert f"wrote {place.root / 'sheet.png'}" in capsys.readouterr().err.splitlines()
    seven = Image.open(place.root / "sheet.png")
    three = grid(place.find("coins", top=3).results, "coins")
    assert seven.width == three.width and seven.height > three.height
    low, high = seven.crop((16, 48, 272, 304)).convert("L").getextrema()
    assert high - low > 50
    Image.new("RGB", (9, 9)).save(place.photos / "mine.png")
    assert place.search("find", "coins", "--grid", place.photos / "mine.png") == 1
    assert Image.open(place.photos / "mine.png").size == (9, 9)


def test_find_looks_only_at_images_taken_then_and_counts_those_dated_by_their_file(
    place, loaded, capsys, caplog, monkeypatch
):
    """EXIF tags by their numbers, as Exif 2.32 has them: 36867 taken, 36868 digitized, 306 changed."""
    dates = [
        ("astronaut", {36867: "2024:05:31 23:59:59", 36868: "2020:01:01 00:00:00"}, {}),
        ("two words/chelsea", {36868: "2024:06:01 00:00:00"}, {306: "2020:01:01 00:00:00"}),
        ("coffee", {36867: "0000:00:00 00:00:00"}, {306: "2023:12:31 23:59:59"}),
        ("two words/rocket", {36867: "    :  :     :  :  "}, {}),
    ]
    for name, taken, changed in dates:
        exif = Image.Exif()
        exif.update(changed)
        exif[34665] = taken
        image = open_image(place.photos / f"{name}.jpg")
        image.save(place.photos / f"{name}.jpg", quality=90, exif=exif)
    image.save(place.photos / "picture.png", exif=exif)
    for path in place.photos.rglob("*"):
        os.utime(path, (1e9, time.mktime((2024, 5, 1, 0, 0, 0, 0, 0, -1))))
    place.update()

    def found(*flags):
        assert place.search("find", "a photograph", "--null", *flags) == 0
        return {Path(path).stem for path in capsys.readouterr().out.split("\0")[:-1]}

    by_file = {path.stem for path in place.photos.rglob("*.*")} - {"astronaut", "chelsea", "coffee"}
    assert found("--after", "2024-05", "--before", "2024-06") == by_file | {"astronaut"}
    assert f"7 of 9 images were taken then, {len(by_file)} of them by the time of the file" in caplog.text
    assert found("--after", "2024-05-31") == {"astronaut", "chelsea"}
    assert found("--before", "2024") == {"coffee"} and found("--before", "2023-12-31") == set()
    assert "0 of 9 images" in caplog.text
    moved = place.photos / "2023.jpg"
    (place.photos / "coffee.jpg").rename(moved)
    monkeypatch.setattr(VLJEPA, "load", lambda run, device: pytest.fail("a moved image is not encoded"))
    place.update()
    assert column(place.index, "taken")["2023.jpg"] == "2023-12-31 23:59:59"


@pytest.mark.parametrize("date", ["24", "2024-5", "2024-13", "2024-05-32", "2024-W05-1", "yesterday", ""])
def test_find_refuses_what_is_no_date(date, capsys):
    with pytest.raises(SystemExit, match="2"):
        search.parse(["find", "a cat", "--after", date])
    assert f"invalid date value: {date!r}" in capsys.readouterr().err


def test_watch_takes_up_changes_until_it_is_interrupted_and_no_file_half_written(place, monkeypatch, capsys):
    """The clock is moved on in place of sleeping; `complete` is what a finished index holds."""
    offset, steps = [0], []
    now, photo = time.time_ns, next(place.photos.rglob("chelsea.jpg"))
    whole, growing = photo.read_bytes(), place.photos / "growing.jpg"
    monkeypatch.setattr(time, "time_ns", lambda: now() + offset[0])

    def half_written():
        growing.write_bytes(whole[: len(whole) // 2])

    def settled():
        growing.write_bytes(whole + b"a comment")

    def wait():
        offset[0] += 3 * 10**9

    def changed():
        Image.new("RGB", (64, 64), "green").save(place.photos / "coffee.jpg")
        wait()

    def gone():
        photo.unlink()

    def interrupt():
        os.kill(os.getpid(), signal.SIGINT)

    todo = iter([half_written, settled, wait, changed, gone, interrupt])

    def sleep(seconds):
        steps.append((seconds, set(column(place.index, "row")), column(place.index, "digest")["coffee.jpg"]))
        next(todo)()

    monkeypatch.setattr(time, "sleep", sleep)
    assert place.search("index", place.photos, "--watch", 0.5) == 130
    first, half, still, taken, other, last = steps
    assert {seconds for seconds, *_ in steps} == {0.5} and len(first[1]) == len(PHOTOS)
    assert first == half == still and taken[1] == first[1] | {"growing.jpg"}
    assert other[1] == taken[1] and other[2] != taken[2]
    assert last[1] == taken[1] - {"two words/chelsea.jpg"}
    assert select(place.index, "SELECT CAST(value AS TEXT) FROM meta WHERE key = 'complete'") == [("1",)]
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and "8 indexed + 0 damaged" in out[-1] and "1 gone" in out[-1]


def test_duplicates_are_copies_and_not_other_photographs(place, capsys):
    photo = next(place.photos.rglob("chelsea.jpg"))
    for n in range(25):
        shutil.copy(photo, place.photos / f"same {n}.jpg")
    image = open_image(photo)
    image.save(place.photos / "again.jpg", quality=75)
    image.crop((6, 4, image.width - 6, image.height - 4)).save(place.photos / "cropped.png")
    place.update()
    with opened(place.index) as store:
        identical, near = duplicates(store)
    assert [len(group) for group in identical] == [26] and photo in identical[0]
    ((cosine, group),) = near
    assert {"again.jpg", "cropped.png"} < {p.name for p in group} and len(group) == 3 and 0.9 < cosine < 1
    assert place.search("duplicates") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 groups of identical files, 1 of near-duplicates")
    assert lines[1] == "identical, 26 files" and lines[22] == "  ... and 6 more" and len(lines) == 27


@pytest.mark.parametrize("pairs", [1 << 22, 1000])
def test_near_groups_are_complete_linkage_over_the_whole_matrix(pairs, monkeypatch):
    from scipy.cluster.hierarchy import fcluster, linkage

    monkeypatch.setattr("apps.search.duplicates.PAIRS", pairs)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, 16, generator=generator)
    some = centres[torch.randint(1000, (3000,), generator=generator)]
    some = F.normalize(some + 0.15 * torch.randn(3000, 16, generator=generator), dim=-1)
    cosines = (some @ some.T).double().numpy()
    distances = 1 - cosines[tuple(torch.triu_indices(3000, 3000, 1).numpy())]
    label = fcluster(linkage(distances, "complete"), 0.03, "distance")
    expected = [(label == number).nonzero()[0].tolist() for number in range(1, label.max() + 1)]
    groups = near_groups(some, 0.97)
    assert [group for _, group in groups] == sorted(group for group in expected if len(group) > 1)
    assert all(cosines[group][:, group].min() == pytest.approx(lowest) for lowest, group in groups)
    assert len(groups) > 300


def test_chain_of_near_images_is_no_group(monkeypatch):
    """89 kitchens, each like the next, are not one image."""
    angles = torch.linspace(0, 3, 90)  # neighbours have a cosine of 0.9994
    chain = torch.stack([angles.cos(), angles.sin()], dim=1)
    for at_once in (4096, 40):
        monkeypatch.setattr("apps.search.duplicates.AT_ONCE", at_once)
        groups = near_groups(chain, 0.95)
        assert len(groups) > 4 and min(cosine for cosine, _ in groups) >= 0.95
        assert sorted(sum((group for _, group in groups), [])) == list(range(90))


@pytest.mark.parametrize("path", [b"../secret.jpg", b"two words/../../x.jpg", b"/etc/hostname", b"a\0b.jpg"])
def test_index_that_points_outside_its_folder_is_refused(place, loaded, path):
    Image.new("RGB", (9, 9)).save(place.root / "secret.jpg")
    edit(place.index, "UPDATE images SET path = ? WHERE id = 1", path)
    assert place.search("find", "a cat", "--html", place.root / "sheet.html") == 1
    assert not (place.root / "sheet.html").exists()


DATED = ("find", "a cat", "--before", "2024")
NONSENSE = """
UPDATE images SET row = x'00' WHERE id = 2; UPDATE images SET row = zeroblob(20); UPDATE images SET row = 5;
UPDATE images SET row = CAST(x'007e' || substr(row, 3) AS BLOB) WHERE id = 1;
UPDATE images SET path = 7 WHERE id = 1; UPDATE images SET path = x'' WHERE id = 1;
UPDATE images SET sketch = CAST(x'007e' || substr(sketch, 3) AS BLOB); UPDATE images SET stamp = x'ff';
UPDATE images SET taken = x'ff';
UPDATE images SET sketch = CAST(x'007c' || substr(sketch, 3) AS BLOB); UPDATE images SET digest = x'ff' || id;
UPDATE meta SET value = x'ff' WHERE key = 'model'; UPDATE meta SET value = NULL WHERE key = 'root';
UPDATE meta SET value = 9; DELETE FROM meta WHERE key != 'format'; DELETE FROM meta;
UPDATE images SET row = x'123456'; DROP TABLE images; ALTER TABLE images DROP COLUMN sketch"""


@pytest.mark.parametrize("statement", NONSENSE.split(";"))
def test_index_with_nonsense_in_it_is_refused_or_answered(place, loaded, capsys, statement):
    edit(place.index, statement)
    codes = [
        place.search(*words) for words in (("find", "a cat"), DATED, ("duplicates",), ("index", place.photos))
    ]
    out, err = capsys.readouterr()
    assert set(codes) <= {0, 1} and "nan" not in out and (1 not in codes or "search: " in err)


def test_index_cut_or_overwritten_anywhere_raises_nothing_else(place):
    whole = place.index.read_bytes()
    for n in range(40):
        at = n * len(whole) // 40
        place.index.write_bytes(whole[:at] if n % 2 else whole[:at] + bytes(512) + whole[at + 512 :])
        with suppress(OSError, ValueError), opened(place.index) as store:
            duplicates(store)


def test_files_of_another_kind_are_refused_and_left_as_they_are(world, loaded, tmp_path, capsys):
    shutil.copy(world.photos / "astronaut.jpg", tmp_path / "photo.jpg")
    edit(tmp_path / "other.sqlite", "CREATE TABLE mine (x)")
    shutil.copy(world.index, tmp_path / "old.sqlite")
    edit(tmp_path / "old.sqlite", "UPDATE meta SET value = 'vl-jepa search 1' WHERE key = 'format'")
    for file in tmp_path.iterdir():
        before = file.read_bytes()
        for words in (("index", world.photos), ("find", "a cat")):
            assert world.search(*words, index=file) == 1
            err = capsys.readouterr().err
            assert str(file) in err and "delete it and index again" in err and file.read_bytes() == before
    assert world.search("find", "a cat", index=tmp_path / "none.sqlite") == 1
    assert "none.sqlite: no index" in capsys.readouterr().err and not (tmp_path / "none.sqlite").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_no_text_are_found_and_printed_harmlessly(place, loaded, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    name = b"\xff\x1b[31m\n.jpg"
    shutil.copy(place.photos / "astronaut.jpg", os.fsencode(place.photos) + b"/" + name)
    place.update()
    assert place.search("find", PHOTOS["astronaut.png"], "--top", 2) == 0
    out = capsys.readouterr().out
    assert r"\udcff\x1b[31m\n.jpg" in out and "\x1b" not in out and len(out.splitlines()) == 2


WRONG = """
find; find --not snow; find a --top 0; find a --threshold 2; find a --json --null;
find a --html photo.jpg; find a --grid a.jpg; index;
index . --batch-size 0; index . --watch 0;
find a --after 2024 --ann; duplicates --threshold 2; duplicates --run x"""


@pytest.mark.parametrize("flags", ["", *WRONG.split(";")])
def test_wrong_usage_exits_with_2(flags):
    with pytest.raises(SystemExit) as stopped:
        search.main(flags.split())
    assert stopped.value.code == 2


# Videos


FILMED = ("coffee", "coins", "two words/chelsea")


@pytest.fixture
def filmed(place, loaded):
    """`place` with two videos in place of three photographs: of all three, for two seconds each, and of a
    cat."""
    photos = [open_image(place.photos / f"{name}.jpg").resize((224, 224)) for name in FILMED]
    write(place.photos / "cuts.mkv", [photo for photo in photos for _ in range(20)])
    write(place.photos / "cat.mkv", [photos[2]] * 10)
    for name in FILMED:
        (place.photos / f"{name}.jpg").unlink()
    assert place.update() == (7, 0, 2, 0, 3)
    return place


@pytest.mark.parametrize(("name", "first"), [("coffee.png", 0), ("coins.png", 2)])
def test_video_is_found_once_at_its_best_frame(filmed, name, first):
    results, _, times = filmed.find(PHOTOS[name])
    (score, path), *_ = results
    assert path.name == "cuts.mkv" and first <= times[path] < first + 2
    assert len({path for _, path in results}) == len(results) == 7
    row = filmed.model.encode_image(frame_at(path, times[path]))
    assert score == pytest.approx((row @ filmed.model.encode_text(PHOTOS[name]).T).item(), abs=2e-3)
    assert {path.name for _, path in filmed.find("a cat", top=2).results} == {"cuts.mkv", "cat.mkv"}


def test_time_of_a_video_is_told_and_the_sheets_show_its_frame(filmed, capsys):
    page, sheet = filmed.root / "a.html", filmed.root / "a.png"
    flags = (PHOTOS["coins.png"], "--top", 1, "--json", "--html", page, "--grid", sheet)
    assert filmed.search("find", *flags) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["path"].endswith("cuts.mkv") and 2 <= entry["time"] < 4
    assert f"cuts.mkv at {entry['time']:.1f} s" in page.read_text()
    frame = frame_at(filmed.photos / "cuts.mkv", 3)  # of the coins
    tile = Image.open(sheet).crop((16 + 16, 48 + 16, 16 + 240, 48 + 240))
    assert tile.tobytes() == frame.tobytes()


def test_another_number_of_frames_indexes_videos_alone_again(filmed):
    options = (filmed.photos, filmed.index, filmed.run, "cpu", filmed.cache)
    assert update(*options)[1:6] == (7, 0, 0, 0, 0)
    assert update(*options, frames=3)[1:6] == (7, 0, 2, 0, 0)
    with opened(filmed.index) as store:
        assert store.frames() == (5 + 2 * 3, 3) and len(store.rows()[0]) == 11 and store.count() == 7


def test_approximate_search_gives_each_video_once(filmed):
    pytest.importorskip("usearch")
    exact, near = filmed.find("a cat"), filmed.find("a cat", ann=True)
    assert exact.results == near.results and exact.times == near.times and near.recall.endswith("1.000")


def test_damaged_video_is_named_and_counted(filmed, caplog):
    cut = filmed.photos / "cuts.mkv"
    cut.write_bytes(cut.read_bytes()[:300])
    assert filmed.update() == (6, 1, 1, 0, 0) and str(cut) in caplog.text
