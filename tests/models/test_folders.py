"""Which files of a folder are read and which are left out, and why."""

import os
import sys

import pytest

from models.dataset import expand, image_path, walk
from models.dataset.folders import REPEATED
from tests.conftest import picture

# As macOS, Windows, Synology, QNAP, Jupyter, Git, GNOME and ext4 leave them between images.
LEFT = """.DS_Store ._a.jpg .hidden.png .ipynb_checkpoints/a-checkpoint.jpg .git/objects/a.jpg
.thumbnails/normal/a.png .@__thumb/a.jpg .Trash-1000/files/a.jpg"""
SYSTEM = """__MACOSX/photos/._a.jpg Thumbs.db thumbs.db ehthumbs.db Desktop.ini
@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg #recycle/a.jpg $RECYCLE.BIN/S-1-5/a.jpg lost+found/#12
@Recycle/a.jpg #snapshot/a.jpg"""


def make(root, *paths):
    """Files below `root`: images where the name says so or does not say anything."""
    for path in map(root.joinpath, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".jpg", ".png", ".gif", ""):
            picture(1).save(path, format="JPEG")
        else:
            path.write_bytes(b"no image")


@pytest.mark.parametrize("folder", ["", "2019/", "a/b/"])
def test_files_that_systems_leave_are_counted_and_not_read(tmp_path, folder):
    make(tmp_path, "photo.jpg", *(folder + path for path in (LEFT + " " + SYSTEM).split()))
    walked = walk(tmp_path)
    assert list(walked.files) == ["photo.jpg"]
    assert walked.left_out.total() == len((LEFT + " " + SYSTEM).split())
    assert walked.left_out["hidden"] == len(LEFT.split())
    assert walked.left_out["@eaDir"] == walked.left_out["#recycle"] == 1 and walked.left_out["Thumbs.db"] == 2


def test_images_are_told_by_suffix_and_without_one_by_content(tmp_path):
    make(tmp_path, "a.JPG", "b.png", "0a1b2c", "README.txt", "film.swf", "photo.jpg.xmp")
    (tmp_path / "LICENSE").write_text("Permission is hereby granted")
    (tmp_path / "Pypi").write_text("P6 is no number of pages")
    (tmp_path / "nothing").touch()
    walked = walk(tmp_path)
    assert list(walked.files) == ["0a1b2c", "a.JPG", "b.png"]
    assert walked.suffixes == {"without suffix": 3, ".txt": 1, ".swf": 1, ".xmp": 1}
    assert walked.parts()[-1] == "6 other files (3 without suffix, 1 .txt, 1 .swf, ...)"


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("*.png", ["2019/a.jpg", "2020/raw/a.jpg", "a.jpg"]),
        ("2019", ["2020/raw/a.jpg", "a.jpg", "b.png"]),
        ("2019/", ["2020/raw/a.jpg", "a.jpg", "b.png"]),
        ("raw", ["2019/a.jpg", "2019/b.png", "a.jpg", "b.png"]),
        ("2020/*", ["2019/a.jpg", "2019/b.png", "a.jpg", "b.png"]),
        ("a.jpg", ["2019/b.png", "b.png"]),
        ("2019/a.jpg", ["2019/b.png", "2020/raw/a.jpg", "a.jpg", "b.png"]),
        ("no such name", ["2019/a.jpg", "2019/b.png", "2020/raw/a.jpg", "a.jpg", "b.png"]),
    ],
)
def test_exclude_takes_names_and_paths(tmp_path, pattern, kept):
    make(tmp_path, "a.jpg", "b.png", "2019/a.jpg", "2019/b.png", "2020/raw/a.jpg")
    walked = walk(tmp_path, exclude=[pattern])
    assert list(walked.files) == kept and walked.left_out == {"excluded": 5 - len(kept)}
    assert walk(tmp_path, exclude=["*.jpg", "*.png"]).left_out == {"excluded": 5}


def test_links_are_read_when_asked_for_once_and_in_circles_too(tmp_path):
    """As a download cache lays them: names that lead to files named by their content."""
    make(tmp_path / "blobs", "1", "2")
    make(tmp_path / "snapshot", "own.jpg")
    make(tmp_path / "elsewhere", "x.jpg", ".hidden.jpg", "deep/y.jpg")
    root = tmp_path / "snapshot"
    for name, target in {
        "a.jpg": "../blobs/1",
        "copy of a.jpg": "../blobs/1",  # a second name of the same content
        "b.jpg": tmp_path / "blobs" / "2",
        "again.jpg": "own.jpg",
        "folder": "../elsewhere",
        "twice": "../elsewhere/deep",
        "self": ".",
        "up": "..",
        "gone.jpg": "nowhere",
        "circle": "circle",
        "notes.txt": "../blobs/1",
    }.items():
        (root / name).symlink_to(target)
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    assert list(walk(root).files) == ["own.jpg"] and walk(root).left_out == {"links": 11}
    walked = walk(root, follow_links=True)
    # `up` leads to the two blobs under their own names, to the folder that is read, and to `elsewhere` again.
    names = "a.jpg, b.jpg, copy of a.jpg, folder/deep/y.jpg, folder/x.jpg, own.jpg, up/blobs/1, up/blobs/2"
    assert list(walked.files) == names.split(", ")
    assert walked.left_out[REPEATED] == 6 and walked.left_out["broken links"] == 2
    assert all(image_path(root, name, follow_links=True).is_file() for name in walked.files)


def test_linked_name_is_refused_with_the_way_out_and_others_always(tmp_path):
    make(tmp_path, "out/a.jpg", "in/a.jpg")
    (tmp_path / "in" / "b.jpg").symlink_to("../out/a.jpg")
    (tmp_path / "in" / "c.jpg").symlink_to("a.jpg")
    (tmp_path / "in" / "sub").symlink_to("../out")
    for name in ("b.jpg", "sub/a.jpg"):
        with pytest.raises(ValueError, match="--follow-links"):
            image_path(tmp_path / "in", name)
        assert image_path(tmp_path / "in", name, follow_links=True).is_file()
    assert image_path(tmp_path / "in", "c.jpg") == tmp_path / "in" / "a.jpg"
    for name in ("../out/a.jpg", str(tmp_path / "out" / "a.jpg"), "sub/../../out/a.jpg", "a\0.jpg"):
        for follow_links in (False, True):
            with pytest.raises(ValueError, match="leads out of the image folder"):
                image_path(tmp_path / "in", name, follow_links)


def test_expand_reads_folders_and_takes_files_as_they_are(tmp_path, caplog):
    make(tmp_path, "d/b.jpg", "d/a.png", "d/.DS_Store", "d/sub/c.jpg", "d/notes.txt")
    caplog.set_level("INFO")
    given = [tmp_path / "d" / "notes.txt", tmp_path / "d"]
    assert expand(given) == [given[0], tmp_path / "d" / "a.png", tmp_path / "d" / "b.jpg"]
    assert "5 files seen = 2 images + 1 folders + 1 hidden + 1 other files (1 .txt)" in caplog.text
    with pytest.raises(ValueError, match="2 excluded"):
        expand([tmp_path / "d"], exclude=["[ab].*"])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="root may read everything")
def test_folder_that_cannot_be_read_is_named_and_counted(tmp_path, caplog):
    make(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    walked = walk(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert walked.left_out == {"folders that cannot be read": 1} and "closed" in caplog.text


@pytest.mark.parametrize(
    "folder", ["@Recently-Snapshot", "Network Trash Folder", "Temporary Items", "recycled", "FOUND.000"]
)
def test_older_versions_and_deleted_images_are_passed_over(tmp_path, folder):
    """As QNAP's snapshots, file servers of Macs, and Windows on FAT keep them."""
    make(tmp_path, "a.jpg", f"{folder}/2024/a.jpg", f"2019/{folder}/b.jpg")
    walked = walk(tmp_path)
    assert list(walked.files) == ["a.jpg"] and walked.left_out.total() == 2
