"""apps/search.py on a folder of real photographs and a run trained on them for a moment."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
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
from apps.search.sheets import grid
from apps.search.store import SEEN, stamp_of, times_of
from models.dataset import open_image
from models.vljepa import VLJEPA

ROOT = Path(__file__).parents[2]
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
    """`photos` (8 photographs in two folders), a `run` trained on them, and the `index` that search.py made."""

    def __init__(self, root):
        self.root, self.photos, self.run, self.index = (
            root,
            root / "photos",
            root / "run",
            root / "index.sqlite",
        )
        (self.photos / "two words").mkdir(parents=True)
        lines = ["image_name,comment"]
        for n, (name, caption) in enumerate(PHOTOS.items()):
            path = ("two words/" if n % 2 else "") + Path(name).stem + ".jpg"
            image = open_image(DATA / name)
            image.thumbnail((320, 320))
            image.save(self.photos / path, quality=90)
            lines.append(f"{path},{caption}")
        (root / "captions.csv").write_text("\n".join(lines) + "\n")
        flags = [
            "--csv",
            root / "captions.csv",
            "--images",
            self.photos,
            "--cache",
            root / "cache.sqlite",
            "--run",
            self.run,
            "--vision",
            "efficientnet-lite0",
            "--hidden",
            "64",
            "--epochs",
            "30",
            "--lr",
            "0.003",
            "--loss",
            "info_nce",
            "--standardise",
            "--device",
            "cpu",
            "--val-fraction",
            "0",
            "--quiet",
        ]
        assert train.main(list(map(str, flags))) == 0
        self.model = VLJEPA.load(self.run)
        assert self.search("index", self.photos) == 0

    def search(self, command, *flags, index=None):
        model = [] if command == "duplicates" else ["--run", self.run, "--device", "cpu"]
        flags = (*flags, *([] if "--run" in flags else model), "--index", index or self.index, "--quiet")
        return search.main([command, *map(str, flags)])

    def copy(self, folder):
        """The photographs and their index in another place; the index is made there."""
        shutil.copytree(self.photos, folder / "photos")
        return folder / "photos", folder / "i.sqlite"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("search"))


@pytest.fixture
def place(world, tmp_path):
    """(photos, index) of this test's own, the index up to date."""
    photos, index = world.copy(tmp_path)
    assert world.search("index", photos, index=index) == 0
    return photos, index


def contents(index):
    """All an index holds, in its own order; of the stamps, the part that doesn't tell when the file was seen."""
    db = sqlite3.connect(index)
    rows = (
        db.execute("SELECT * FROM images").fetchall(),
        db.execute("SELECT * FROM meta ORDER BY key").fetchall(),
    )
    db.close()
    return [(number, path, stamp.partition(SEEN)[0], *rest) for number, path, stamp, *rest in rows[0]], rows[
        1
    ]


def stamps(index):
    db = sqlite3.connect(index)
    found = {os.fsdecode(path): stamp for path, stamp in db.execute("SELECT path, stamp FROM images")}
    db.close()
    return found


def paths(index):
    return [os.fsdecode(row[1]) for row in contents(index)[0]]


def edit(index, statement, *values):
    db = sqlite3.connect(index)
    with db:
        db.execute(statement, values)
    db.close()


def python(code, *argv, **options):
    """A process of its own, in the project's folder."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, **options
    )


# index


def test_index_holds_what_encode_image_gives_in_the_order_of_paths(world):
    """Catches rows that belong to other photographs, folders not entered, and a preprocessing of its own."""
    rows = contents(world.index)[0]
    assert [row[1] for row in rows] == sorted(
        os.fsencode(p.relative_to(world.photos)) for p in world.photos.rglob("*.jpg")
    )
    kept = torch.stack([torch.frombuffer(bytearray(row[4]), dtype=torch.float16).float() for row in rows])
    expected = world.model.encode_image([world.photos / os.fsdecode(row[1]) for row in rows])
    assert (kept * expected).sum(-1).min() > 0.999 and len(rows) == len(PHOTOS)


def test_unchanged_folder_is_indexed_without_torch(world):
    """Catches a tenth re-index that pays seconds for torch and the towers; also --help that does."""
    code = "import sys; from apps.search.__main__ import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    before = contents(world.index)
    done = python(code, "index", world.photos, "--index", world.index, "--run", world.run)
    assert done.returncode == 0 and " 0 new or changed" in done.stdout, done.stderr
    assert contents(world.index) == before
    done = python(
        "import sys; sys.argv = ['x']\ntry: from apps.search.__main__ import main; main(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules and 'PIL' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_index_again_takes_up_what_is_new_changed_renamed_touched_and_gone(world, place, capsys):
    """Catches everything encoded anew, a renamed or touched file encoded again, and a deleted one that still is found."""
    photos, index = place
    old = {row[1]: row[4] for row in contents(index)[0]}
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.jpg"))
    touched, changed, gone, renamed = names[:4]
    os.utime(photos / touched, (1, 1))
    Image.new("RGB", (64, 64), "green").save(photos / changed)
    (photos / gone).unlink()
    (photos / renamed).rename(photos / "renamed.jpg")
    Image.new("RGB", (64, 64), "red").save(photos / "new.PNG")
    capsys.readouterr()
    assert world.search("index", photos, index=index) == 0
    out = capsys.readouterr().out
    assert "(2 encoded, 0 damaged)" in out
    new = {row[1]: row[4] for row in contents(index)[0]}
    assert set(new) == {os.fsencode(p.relative_to(photos)) for p in photos.rglob("*") if p.is_file()}
    assert new[touched.encode()] == old[touched.encode()] and new[b"renamed.jpg"] in old.values()
    assert new[changed.encode()] != old[changed.encode()]


def test_stamp_of_a_young_file_equals_no_other(tmp_path):
    """Catches a file that changes twice within one tick of a coarse clock (2 s on FAT) and keeps its size."""
    young, future, old = (
        tmp_path / "young",
        tmp_path / "future",
        Path(torch.__file__),
    )  # as old as the installation
    young.write_bytes(b"just now")
    os.utime(young, (1, 1))  # its own time says 1970, its change time does not
    future.write_bytes(b"from 2100")
    os.utime(future, (4e9, 4e9))
    for path in (young, future):
        assert stamp_of(path.stat()) != stamp_of(path.stat())
    assert stamp_of(old.stat()) == stamp_of(old.stat()) and SEEN not in stamp_of(old.stat())


def test_file_that_was_young_is_told_by_its_content(world, place, capsys):
    """Catches the first of two contents within one tick of the clock that is found ever after. The stamp here is that of the second
    content and the rest that of the first, as such a tick leaves an index."""
    photos, index = place
    file = photos / "astronaut.jpg"
    shutil.copy(photos / "two words" / "chelsea.jpg", file)
    edit(
        index,
        "UPDATE images SET stamp = ? WHERE path = ?",
        f"{times_of(file.stat())}{SEEN}1",
        os.fsencode(file.name),
    )
    capsys.readouterr()
    assert world.search("index", photos, index=index) == 0
    assert "1 new or changed (0 encoded, 0 damaged)" in capsys.readouterr().out
    rows = {os.fsdecode(row[1]): row[4] for row in contents(index)[0]}
    assert rows["astronaut.jpg"] == rows["two words/chelsea.jpg"]


def test_files_that_were_young_are_written_once(world, place, monkeypatch, capsys):
    """Catches a folder that was copied a moment ago and is read at every look, or passes for changed, or costs the approximate index."""
    photos, index = place
    edit(index, "UPDATE images SET stamp = stamp || ? WHERE NOT instr(stamp, ?)", f"{SEEN}1", SEEN)
    edit(index, "INSERT OR REPLACE INTO meta VALUES ('ann', 'kept')")
    before, later = contents(index), time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    for _ in range(2):
        capsys.readouterr()
        assert world.search("index", photos, index=index) == 0
        assert " 0 new or changed" in capsys.readouterr().out and contents(index) == before
        assert not [stamp for stamp in stamps(index).values() if SEEN in stamp]
        edit(
            index,
            "CREATE TRIGGER IF NOT EXISTS once BEFORE UPDATE ON images BEGIN SELECT RAISE(ABORT, 'written again'); END",
        )


def test_files_from_the_future_are_not_written_again_and_load_no_model(world, place, capsys):
    """Catches a camera whose clock is wrong, all of whose photographs pass for changed at every look; a damaged one is listed once."""
    photos, index = place
    (photos / "broken.jpg").write_bytes(b"no image")
    for name in ("broken.jpg", "astronaut.jpg"):
        os.utime(photos / name, (4e9, 4e9))
    assert world.search("index", photos, index=index) == 0
    before, first = contents(index), stamps(index)
    code = "import sys; from apps.search.__main__ import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    done = python(code, "index", photos, "--index", index, "--run", world.run)
    assert (done.returncode, done.stderr) == (0, "") and " 0 new or changed" in done.stdout
    assert contents(index) == before
    for name in ("broken.jpg", "astronaut.jpg"):
        assert SEEN in first[name] and stamps(index)[name] == first[name]


KILL = """
import os, signal, sys
from apps.search.__main__ import main
from models.vljepa import VLJEPA
predict, calls = VLJEPA.predict, []
def dying(self, features):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(self, features)
VLJEPA.predict = dying
main(sys.argv[1:])
"""


def test_killed_index_can_be_searched_and_ends_as_the_undisturbed_one(world, place, capsys):
    """Catches work lost by a kill, rows in another order after it, and a part that passes for the whole."""
    photos, index = place
    (photos / "broken.jpg").write_bytes(b"no image")
    shutil.copy(photos / "astronaut.jpg", photos / "zz copy.jpg")
    whole, killed = index.with_name("whole.sqlite"), index.with_name("killed.sqlite")
    assert world.search("index", photos, "--batch-size", 2, index=whole) == 0
    done = python(
        KILL, "index", photos, "--index", killed, "--run", world.run, "--device", "cpu", "--batch-size", 2
    )
    assert done.returncode == -signal.SIGKILL
    assert 4 <= len(paths(killed)) < len(paths(whole))
    capsys.readouterr()
    assert world.search("find", "a cat", index=killed) == 0
    assert "not finished" in capsys.readouterr().err
    assert world.search("index", photos, "--batch-size", 2, index=killed) == 0
    assert contents(killed) == contents(whole)


def test_damaged_images_are_listed_once_and_taken_up_when_mended(world, place, capsys):
    """Catches an index that stops at the first damaged file, or reads it again every time, or never again."""
    photos, index = place
    whole = (photos / "astronaut.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").touch()
    capsys.readouterr()
    assert world.search("index", photos, index=index) == 0
    out, err = capsys.readouterr()
    assert "2 more can't be decoded" in out and "half.jpg" in err and "empty.png" in err
    assert world.search("index", photos, index=index) == 0
    out, err = capsys.readouterr()
    assert " 0 new or changed" in out and "2 more can't be decoded" in out and "half.jpg" not in err
    (photos / "half.jpg").write_bytes(whole)
    assert world.search("index", photos, index=index) == 0
    assert (
        "1 new or changed (0 encoded, 0 damaged)" in capsys.readouterr().out
    )  # its content is known: the astronaut's


def test_links_and_hidden_files_are_passed_over(world, place, tmp_path, capsys):
    """Catches photographs from outside the folder, endless walks through a link to a parent, and thumbnails of file managers."""
    photos, index = place
    before = paths(index)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(photos / "astronaut.jpg", tmp_path / "elsewhere" / "secret.jpg")
    (photos / "out").symlink_to(tmp_path / "elsewhere")
    (photos / "out.jpg").symlink_to(tmp_path / "elsewhere" / "secret.jpg")
    (photos / "two words" / "up").symlink_to(photos)
    (photos / ".hidden.jpg").write_bytes((photos / "astronaut.jpg").read_bytes())
    (photos / "notes.txt").write_text("not an image")
    assert world.search("index", photos, index=index) == 0
    assert (
        paths(index) == before and "1 other files and 3 symbolic links passed over" in capsys.readouterr().out
    )


def test_index_of_an_emptied_or_another_folder_is_left_alone(world, place, tmp_path, capsys):
    """Catches an unmounted disk, or a slip of the hand, that costs the index of a hundred thousand photographs."""
    photos, index = place
    before = contents(index)
    other = tmp_path / "other"
    other.mkdir()
    assert world.search("index", other, index=index) == 1
    Image.new("RGB", (9, 9)).save(other / "a.png")
    assert world.search("index", other, index=index) == 1
    assert "is the index of" in capsys.readouterr().err
    photos.rename(tmp_path / "moved")
    photos.mkdir()
    assert world.search("index", photos, index=index) == 1
    assert contents(index) == before
    assert world.search("index", tmp_path / "nowhere", index=index) == 1


def test_index_of_another_model_is_refused_and_made_anew(world, place, tmp_path, capsys):
    """Catches scores between the embeddings of two models, which look like any others."""
    photos, index = place
    other = tmp_path / "other run"
    other.mkdir()
    state = torch.load(world.run / "best.pt", weights_only=True)
    state["predictor"] = {
        name: value + 0.1 if name.endswith("weight") else value for name, value in state["predictor"].items()
    }
    torch.save(state, other / "best.pt")
    before = contents(index)
    assert world.search("find", "a cat", "--run", other, index=index) == 1
    err = capsys.readouterr().err
    assert "another model" in err and f"--run {world.run}" in err and "index again" in err
    assert contents(index) == before
    assert world.search("index", photos, "--run", other, index=index) == 0
    assert world.search("find", "a cat", "--run", other, index=index) == 0
    assert world.search("find", "a cat", index=index) == 1
    assert world.search("index", photos, "--run", tmp_path / "untrained", index=index) == 1
    assert "train first" in capsys.readouterr().err


def test_the_same_model_in_another_file_keeps_the_index(world, place, tmp_path, capsys):
    """Catches everything encoded anew for a checkpoint that was saved again, and an index that is unfinished ever after."""
    photos, index = place
    VLJEPA.load(world.run).save_pretrained(tmp_path / "shared")
    rows = contents(index)[0]
    for _ in range(2):
        assert world.search("index", photos, "--run", tmp_path / "shared", index=index) == 0
        assert " 0 new or changed" in capsys.readouterr().out and contents(index)[0] == rows
    assert world.search("find", "a cat", index=index) == 0
    assert capsys.readouterr().err == ""


# find


@pytest.mark.parametrize("name, text", PHOTOS.items())
def test_find_puts_the_photograph_of_the_text_first(world, name, text):
    """Catches an index whose every part is right and whose answers are worthless (rows and paths out of step)."""
    (first, *_) = search.find([text], file=world.index, run=world.run, device="cpu", top=3)
    assert first[1].stem == Path(name).stem


def test_find_scores_are_cosines_of_the_two_verbs(world, monkeypatch, capsys):
    """Catches scores of a scale of their own, and paths that can't be opened from where the user is."""
    monkeypatch.chdir(world.photos / "two words")
    assert world.search("find", "a cup of coffee") == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    expected = (
        world.model.encode_image([Path(path) for _, path in lines])
        @ world.model.encode_text("a cup of coffee").T
    )
    assert [float(score) for score, _ in lines] == pytest.approx(expected[:, 0].tolist(), abs=2e-3)
    assert [float(score) for score, _ in lines] == sorted((float(score) for score, _ in lines), reverse=True)


def test_find_by_image_finds_that_image_and_takes_text_beside_it(world, capsys):
    """Catches a query image that goes another way than the indexed ones."""
    found = search.find(image=world.photos / "astronaut.jpg", file=world.index, run=world.run, device="cpu")
    assert (
        found[0][1].name == "astronaut.jpg"
        and found[0][0] == pytest.approx(1, abs=2e-3)
        and found[1][0] < 0.99
    )
    assert (
        world.search("find", "--image", world.photos / "astronaut.jpg", "--not", "a woman", "--top", 2) == 0
    )
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert world.search("find", "--image", world.root / "nothing.jpg") == 1


def test_and_adds_and_not_takes_away():
    """Catches a --not that is another --and, a query that is no unit row, and an order that matters."""
    a, b, c = F.normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), dim=-1).split(1)
    assert torch.allclose(search.combine(a, b[:0]), a)
    both, without = search.combine(torch.cat([a, b]), c[:0]), search.combine(a, torch.cat([b, c]))
    assert (
        both @ b.T > a @ b.T and without @ b.T < a @ b.T and without @ c.T < a @ c.T and without @ a.T > 0.5
    )
    torch.testing.assert_close(both, search.combine(torch.cat([b, a]), c[:0]))
    torch.testing.assert_close(both.norm(), torch.tensor(1.0))


def test_approximate_search_agrees_with_exact_and_follows_the_index(world, place, capsys):
    """Catches a graph of yesterday's rows, and one that somebody put there: both would answer without a word."""
    photos, index = place
    exact = search.find(["a cat"], file=index, run=world.run, device="cpu")
    graph = Path(f"{index}.usearch")
    for damage in (None, None, b"\x00" * 5000):
        if damage:
            graph.write_bytes(damage)
        near = search.find(["a cat"], file=index, run=world.run, device="cpu", ann=True, quiet=True)
        assert [path for _, path in near] == [path for _, path in exact]
        assert [score for score, _ in near] == pytest.approx([score for score, _ in exact], abs=1e-4)
        assert "recall@8 1.000" in capsys.readouterr().err
    next(photos.rglob("chelsea.jpg")).unlink()
    assert world.search("index", photos, index=index) == 0
    assert "chelsea.jpg" not in {
        path.name for _, path in search.find(["a cat"], file=index, run=world.run, ann=True, quiet=True)
    }


def test_graph_recalls_most_of_a_larger_index(world, tmp_path, capsys):
    """Catches an approximate search that is right only because eight rows are few."""
    index = tmp_path / "i.sqlite"
    shutil.copy(world.index, index)
    rows = (
        F.normalize(torch.randn(3000, 384, generator=torch.Generator().manual_seed(0)), dim=-1).half().numpy()
    )
    db = sqlite3.connect(index)
    with db:
        db.executemany(
            "INSERT INTO images (path, row) VALUES (?, ?)",
            [(b"%d.jpg" % i, row.tobytes()) for i, row in enumerate(rows)],
        )
    db.close()
    search.find(["a cat"], file=index, run=world.run, device="cpu", ann=True, quiet=True)
    assert float(capsys.readouterr().err.split("recall@12 ")[1].split()[0]) > 0.9


# Sheets


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.images, self.names = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.links += [value for key, value in attributes if key == "href"]
        self.images += [value for key, value in attributes if key == "src"]


STRANGE = [
    "<script>alert(1)<x>.jpg",
    '" onerror="alert(1).jpg',
    "100%20#?&.jpg",
    "javascript:alert(1).jpg",
    "猫 ü.jpg",
]


def test_html_is_inert_and_its_links_open_the_files(world, place, tmp_path, capsys):
    """Catches a file name or query that becomes markup, a link that breaks on % or #, and a sheet that fetches anything."""
    photos, index = place
    for n, name in enumerate(STRANGE):
        Image.new("RGB", (40, 30), (50 * n, 90, 40)).save(photos / name)
    assert world.search("index", photos, index=index) == 0
    sheet = tmp_path / "sub" / "sheet.html"
    sheet.parent.mkdir()
    assert world.search("find", "<b>&{x}", "--top", 50, "--html", sheet, index=index) == 0
    text = sheet.read_text(encoding="utf-8")
    tags = Tags(text)
    assert (
        set(tags.names) == set("html meta title style h1 main figure a img figcaption b".split())
        and "&lt;b&gt;&amp;{x}" in text
    )
    assert tags.names.count("img") == tags.names.count("b") == len(PHOTOS) + len(STRANGE)
    assert (
        all(image.startswith("data:image/jpeg;base64,") for image in tags.images)
        and "http:" not in text
        and "https:" not in text
    )
    opened = {(sheet.parent / unquote(link)).resolve() for link in tags.links}
    assert opened == {path.resolve() for path in photos.rglob("*.jpg")} and not any(
        link.startswith("javascript:") for link in tags.links
    )


def test_grid_shows_every_result_and_spares_the_photographs(world, place, tmp_path, capsys):
    """Catches a sheet with a row missing, one that fails on a file that is gone, and one written over a photograph."""
    photos, index = place
    (photos / "astronaut.jpg").unlink()
    assert world.search("find", "coins " * 60, "--top", 7, "--grid", tmp_path / "sheet.png", index=index) == 0
    assert "index again" in capsys.readouterr().err
    seven = Image.open(tmp_path / "sheet.png")
    three = grid(search.find(["coins"], file=index, run=world.run, device="cpu", top=3), "coins", open_image)
    assert seven.width == three.width and seven.height > three.height
    tile = seven.crop((16, 48, 272, 304)).convert("L")
    assert tile.getextrema()[1] - tile.getextrema()[0] > 50
    Image.new("RGB", (9, 9)).save(photos / "mine.png")
    assert world.search("find", "coins", "--grid", photos / "mine.png", index=index) == 1
    assert Image.open(photos / "mine.png").size == (9, 9)


# duplicates


def test_duplicates_are_told_from_other_photographs(world, place, capsys):
    """Catches identical files listed as alike, copies saved again that are missed, and two photographs taken for one."""
    photos, index = place
    photo = next(photos.rglob("chelsea.jpg"))
    shutil.copy(photo, photos / "same.jpg")
    image = open_image(photo)
    image.save(photos / "again.jpg", quality=75)
    image.crop((6, 4, image.width - 6, image.height - 4)).save(photos / "cropped.png")
    assert world.search("index", photos, index=index) == 0
    identical, near = search.duplicates(index)
    assert [sorted(p.name for p in group) for group in identical] == [["chelsea.jpg", "same.jpg"]]
    ((cosine, group),) = near
    assert {"again.jpg", "cropped.png"} < {p.name for p in group} and len(group) == 3 and 0.9 < cosine < 1
    assert world.search("duplicates", index=index) == 0
    assert (
        capsys.readouterr()
        .out.rstrip()
        .endswith("1 groups of identical files, 1 of near-duplicates (cosine from 0.92 on)")
    )


def test_duplicates_in_blocks_are_the_connected_components(world, tmp_path):
    """Catches a pair lost where two blocks meet, and a group that falls apart, against scipy over the whole matrix."""
    from scipy.sparse.csgraph import connected_components

    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(2500, 16, generator=generator)
    some = centres[torch.randint(2500, (5000,), generator=generator)] + 0.15 * torch.randn(
        5000, 16, generator=generator
    )
    sketches = F.normalize(some, dim=-1).half()
    index = tmp_path / "i.sqlite"
    shutil.copy(world.index, index)
    db = sqlite3.connect(index)
    with db:
        db.execute("DELETE FROM images")
        values = [(b"%04d" % i, os.urandom(32), b"00", s.tobytes()) for i, s in enumerate(sketches.numpy())]
        db.executemany("INSERT INTO images (path, digest, row, sketch) VALUES (?, ?, ?, ?)", values)
    db.close()
    _, near = search.duplicates(index, 0.97)
    count, label = connected_components((sketches.float() @ sketches.float().T >= 0.97).numpy())
    expected = [sorted(f"{i:04d}" for i in (label == n).nonzero()[0]) for n in range(count)]
    assert sorted(sorted(p.name for p in group) for _, group in near) == sorted(
        group for group in expected if len(group) > 1
    )
    assert len(near) > 500


# Strangers' files and wrong usage


@pytest.mark.parametrize(
    "path", [b"../secret.jpg", b"two words/../../secret.jpg", b"/etc/hostname", b"a\0b.jpg"]
)
def test_index_that_points_outside_its_folder_is_refused(world, place, tmp_path, capsys, path):
    """Catches a contact sheet of somebody's private pictures, asked for by an index from somebody else."""
    _, index = place
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.jpg")
    edit(index, "UPDATE images SET path = ? WHERE id = 1", path)
    assert world.search("find", "a cat", "--html", tmp_path / "sheet.html", index=index) == 1
    assert not (tmp_path / "sheet.html").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE images SET row = x'00' WHERE id = 2",
        "UPDATE images SET row = zeroblob(20)",
        "UPDATE images SET row = 5",
        "UPDATE images SET row = CAST(x'007e' || substr(row, 3) AS BLOB) WHERE id = 1",
        "UPDATE images SET path = 7 WHERE id = 1",
        "UPDATE images SET row = x'123456'",
        "DELETE FROM meta WHERE key != 'format'",
        "UPDATE images SET sketch = x'007e' || substr(sketch, 3)",
        "UPDATE meta SET value = x'ff' WHERE key = 'model'",
        "UPDATE meta SET value = 9",
        "DELETE FROM meta",
        "DROP TABLE images",
        "ALTER TABLE images DROP COLUMN sketch",
        "UPDATE images SET path = x'' WHERE id = 1",
        "UPDATE images SET stamp = x'ff'",
    ],
)
def test_index_with_nonsense_in_it_is_refused_or_answered(world, tmp_path, capsys, statement):
    """Catches a traceback out of a damaged index, and a score that is no number at the head of the list."""
    index = tmp_path / "i.sqlite"
    shutil.copy(world.index, index)
    edit(index, statement)
    codes = [world.search("find", "a cat", index=index), world.search("duplicates", index=index)]
    out, err = capsys.readouterr()
    assert set(codes) <= {0, 1} and "nan" not in out and (0 in codes or "search: " in err)


def test_index_cut_or_overwritten_anywhere_raises_nothing_else(world, tmp_path, capsys):
    """Catches errors of SQLite that nobody thought of."""
    whole = world.index.read_bytes()
    index = tmp_path / "i.sqlite"
    for n in range(40):
        at = n * len(whole) // 40
        index.write_bytes(whole[:at] if n % 2 else whole[:at] + bytes(512) + whole[at + 512 :])
        try:
            search.duplicates(index)
        except (OSError, ValueError, sqlite3.Error):  # what main reports in a line
            continue


def test_files_of_another_kind_are_refused_and_left_as_they_are(world, tmp_path, capsys):
    """Catches an index written into somebody's database, or over a photograph, that --index named by mistake."""
    (tmp_path / "photo.jpg").write_bytes((world.photos / "astronaut.jpg").read_bytes())
    edit(tmp_path / "other.sqlite", "CREATE TABLE mine (x)")
    for name in ("photo.jpg", "other.sqlite"):
        before = (tmp_path / name).read_bytes()
        assert world.search("index", world.photos, index=tmp_path / name) == 1
        assert world.search("find", "a cat", index=tmp_path / name) == 1
        assert (
            tmp_path / name
        ).read_bytes() == before and "not an index of this program" in capsys.readouterr().err
    assert world.search("find", "a cat", index=tmp_path / "none.sqlite") == 1
    assert "make one first" in capsys.readouterr().err and not (tmp_path / "none.sqlite").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_no_text_are_found_and_printed_harmlessly(world, place, capsys):
    """Catches a crash on a name that is not UTF-8, and a file name that colours or clears the terminal."""
    photos, index = place
    name = b"\xff\x1b[31m\n.jpg"
    shutil.copy(photos / "astronaut.jpg", os.fsencode(photos) + b"/" + name)
    assert world.search("index", photos, index=index) == 0
    capsys.readouterr()
    assert world.search("find", PHOTOS["astronaut.png"], "--top", 2, index=index) == 0
    out = capsys.readouterr().out
    assert r"\udcff\x1b[31m\n.jpg" in out and "\x1b" not in out and len(out.splitlines()) == 2


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["find"],
        ["find", "--not", "snow"],
        ["find", "a", "--top", "0"],
        ["find", "a", "--html", "photo.jpg"],
        ["find", "a", "--grid", "a.jpg"],
        ["index"],
        ["index", ".", "--batch-size", "0"],
        ["duplicates", "--threshold", "2"],
        ["duplicates", "--run", "x"],
    ],
)
def test_wrong_usage_exits_with_2(flags, capsys):
    """Catches a traceback, or a sheet written over a photograph, for a slip on the command line."""
    with pytest.raises(SystemExit) as stopped:
        search.main(flags)
    assert stopped.value.code == 2
