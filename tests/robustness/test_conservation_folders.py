"""Files of a folder: read + left out, by reason, = seen. Generated folders, counted by os.walk."""

import os
import random
import re

import pytest

import eval
from apps.search import __main__ as search
from models.dataset import walk
from tests.conftest import draw_shape
from tests.models.test_clips import write

FOLDERS = (
    "2019 raw a.b photos.jpg @home .git .thumbnails @eaDir #recycle lost+found __MACOSX excluded".split()
)
FILES = """a.jpg B.PNG c.jpeg d.webp e.tif IMG_1 ü.gif ._a.jpg .DS_Store .x.png Thumbs.db desktop.ini
THUMBS.DB notes.txt film.mp4 CLIP_1 photo.psd README a.jpg.part skip.bmp app.ts""".split()
VIDEOS = {"film.mp4", "CLIP_1"}
IMAGES = set("a.jpg B.PNG c.jpeg d.webp e.tif IMG_1 ü.gif skip.bmp".split())
NOT_READ = set(".git .thumbnails @eaDir #recycle lost+found __MACOSX excluded skip.bmp".split())
SHAPES = ("a red ellipse", "a blue line")


def generate(root, seed):
    """A folder of 0 to 60 files in folders of folders, with links. Returns the paths that hold images or
    videos."""
    choose = random.Random(seed)
    jpeg = root.parent / "shape.jpg"
    draw_shape("red", "ellipse").save(jpeg)
    clip = write(root.parent / "shape.mkv", [draw_shape("blue", "line")] * 3).read_bytes()
    folders, images = [root], set()
    root.mkdir()
    for _ in range(choose.randrange(12)):
        folder = choose.choice(folders) / choose.choice(FOLDERS)
        folder.mkdir(exist_ok=True)
        folders.append(folder)
    for _ in range(choose.randrange(60)):
        path = choose.choice(folders) / choose.choice(FILES)
        content = jpeg.read_bytes() if path.name in IMAGES else b"no image"
        path.write_bytes(clip if path.name in VIDEOS else content)
        images.add(path.relative_to(root).as_posix())
    for _ in range(choose.randrange(4)):
        link = choose.choice(folders) / f"link{choose.randrange(9)}.jpg"
        if not link.is_symlink():
            link.symlink_to(choose.choice([jpeg, root, "nowhere"]))
    return {path for path in images if is_read(path)}


def is_read(path):
    parts = path.split("/")
    hidden = any(part.startswith(".") or part in NOT_READ for part in parts)
    return not hidden and parts[-1] in IMAGES | VIDEOS


def files_in(root):
    """How many files and links os.walk finds."""
    count = 0
    for folder, folders, files in os.walk(root):
        count += len(files) + sum(os.path.islink(os.path.join(folder, name)) for name in folders)
    return count


def counted(line):
    """(seen, {reason: count}) of a printed line."""
    seen, parts = re.search(r"([\d,]+) files seen = ([^;\n]*)", line).groups()
    found = [part.split(" ", 1) for part in re.sub(r" \(.*?\)", "", parts).split(" + ")]
    return int(seen), {why: int(count) for count, why in found}


@pytest.mark.parametrize("block", range(4))
def test_walk_reads_or_counts_every_file(tmp_path, block):
    for seed in range(50 * block, 50 * block + 50):
        root = tmp_path / str(seed) / "photos"
        root.parent.mkdir()
        images = generate(root, seed)
        walked = walk(root, exclude=["excluded", "skip.*"])
        assert set(walked.files) == images, seed
        assert walked.seen == files_in(root), seed
        assert walked.suffixes.total() == walked.left_out["other files"]
        seen, parts = counted(walked.counted(root))
        assert seen == walked.seen == sum(parts.values())
        videos = sum(path.rpartition("/")[2] in VIDEOS for path in images)
        assert (parts["images"], parts.get("videos", 0)) == (len(images) - videos, videos)
        reached = walk(root, exclude=["excluded", "skip.*"], follow_links=True)
        assert set(walked.files) <= set(reached.files), seed  # a link takes no file's place
        assert all("link" in path for path in reached.files.keys() - images), seed


@pytest.mark.parametrize("seed", [9, 17])
def test_search_and_eval_print_counts_that_add_up(tiny_run, tmp_path, capsys, caplog, seed):
    """Nothing that os.walk finds is missing from the line that each prints."""
    root = tmp_path / "photos"
    images = generate(root, seed)
    (root / "damaged.png").write_bytes(b"no image")
    model = ["--run", str(tiny_run.folder), "--device", "cpu", "--cache", str(tiny_run.cache), "--quiet"]
    flags = ["--exclude", "excluded", "--exclude", "skip.*", *model]
    assert search.main(["index", str(root), "--index", str(tmp_path / "index.sqlite"), *flags]) == 0
    seen, parts = counted(capsys.readouterr().out)
    assert seen == files_in(root) == sum(parts.values())
    assert (parts["indexed"], parts["damaged"]) == (len(images), 1)
    assert eval.main([str(root), *flags, "--labels", *SHAPES]) == 1
    out, err = capsys.readouterr()
    seen, parts = counted(caplog.text)
    assert seen == len(os.listdir(root)) == sum(parts.values())
    assert out.count("Prediction: ") == parts["images"] + parts.get("videos", 0) - 1 and "damaged.png" in err
    caplog.clear()
    assert eval.main(["--classes", str(root), *flags]) == 0
    seen, parts = counted(caplog.text)
    assert seen == files_in(root) == sum(parts.values())
    found = parts["images"] + parts.get("videos", 0)
    assert found == sum("/" in path for path in images)
    assert f"{found} images, " in capsys.readouterr().out
