"""tools/pack.py: --shards reads the tars back as the CSV they were made from."""

import os
import tarfile
from collections import Counter

import pytest
import torch

from models.features.shards import encode_shards, open_shards
from tests.conftest import Archive, Letters, Pixels, encode, load, picture, write_csv
from tests.models.test_clips import clip_archive
from tools import pack


def flags(archive, out):
    return ["--csv", str(archive.csv), "--images", str(archive.images), "--out", str(out)]


def archive_of(folder, files, captions=("a disc", "a gradient")):
    """An archive of pictures, {name: format of Pillow}, with two captions each."""
    for i, (name, form) in enumerate(files.items()):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path, form)
    rows = [(name, caption) for name in files for caption in captions]
    return Archive(write_csv(folder / "captions.csv", rows), folder / "images", list(files))


def assert_equal_to_csv(archive, pattern, folder):
    """The tars of a pattern give the names, captions and features of the CSV, bit for bit."""
    shards = open_shards(folder, encode_shards(str(pattern), folder, Pixels(), Letters(), quiet=True))
    features = encode(archive, Pixels(), Letters(), None)
    assert shards.names() == load(archive).image_names and shards.captions() == load(archive).captions
    assert torch.equal(shards.image_of, features.image_of)
    assert torch.equal(shards.image[:], features.image) and torch.equal(shards.text[:], features.text)


def test_packed_archive_gives_the_features_of_its_csv(archive, tmp_path, capsys):
    assert pack.main(flags(archive, tmp_path / "tars" / "t-{:02}.tar") + ["--per-shard", "3"]) == 0
    assert sorted(p.name for p in (tmp_path / "tars").iterdir()) == ["t-00.tar", "t-01.tar", "t-02.tar"]
    out = capsys.readouterr().out
    assert "16 rows = 16 used" in out and "8 images, 16 members" in out
    assert_equal_to_csv(archive, tmp_path / "tars" / "t-{00..02}.tar", tmp_path / "shards")


KINDS = {"gif": "GIF", "bmp": "BMP", "tif": "TIFF", "avif": "AVIF", "jp2": "JPEG2000", "JPG": "JPEG"}
KINDS |= {"png": "PNG", "webp": "WEBP", "ppm": "PPM", "dat": "PNG", "json": "JPEG", "TIFF": "TIFF"}


def test_every_kind_of_image_that_a_csv_may_name_survives(tmp_path):
    files = {f"photo {ending}.{ending}": form for ending, form in KINDS.items()}
    files |= {f"no ending {form}": form for form in ("JPEG", "PNG", "TIFF", "JPEG2000", "AVIF")}
    files |= {"same.jpg": "JPEG", "same.png": "PNG", "a.b/same.jpg": "JPEG", "Same.jpg": "JPEG"}
    archive = archive_of(tmp_path, files)
    assert pack.main(flags(archive, tmp_path / "t-{}.tar")) == 0
    assert_equal_to_csv(archive, tmp_path / "t-0.tar", tmp_path / "shards")


def test_videos_survive_whatever_their_names(tmp_path, capsys):
    archive = clip_archive(tmp_path)
    os.rename(archive.images / "0", archive.images / "0.MKV")
    archive.csv.write_text(archive.csv.read_text().replace("\n0,", "\n0.MKV,"))
    assert pack.main(flags(archive, tmp_path / "t-{}.tar")) == 0
    assert "11 images, 22 members" in capsys.readouterr().out
    with tarfile.open(tmp_path / "t-0.tar") as tar:
        endings = [name.partition(".")[2] for name in tar.getnames()]
    assert Counter(endings) == {"jpg": 8, "json": 11, "mkv": 1, "mp4": 2}
    assert_equal_to_csv(archive, tmp_path / "t-0.tar", tmp_path / "shards")
    with pytest.raises(ValueError, match="--frames 8, not 4"):
        encode_shards(str(tmp_path / "t-0.tar"), tmp_path / "shards", Pixels(), Letters(), frames=4)


def test_links_to_one_file_are_packed_as_files(tmp_path):
    archive = archive_of(tmp_path, {"a.jpg": "JPEG", "b.jpg": "JPEG", "c.jpg": "JPEG"})
    for name, link in (("b.jpg", os.link), ("c.jpg", os.symlink)):
        (archive.images / name).unlink()
        link(archive.images / "a.jpg", archive.images / name)
    assert pack.main(flags(archive, tmp_path / "t-{}.tar")) == 0
    with tarfile.open(tmp_path / "t-0.tar") as members:
        assert all(member.isreg() for member in members)
    assert_equal_to_csv(archive, tmp_path / "t-0.tar", tmp_path / "shards")


def damage(archive):
    path = archive.images / "b.jpg"
    path.write_bytes(path.read_bytes()[:300])


def enlarge(archive):
    os.truncate(archive.images / "b.jpg", (64 << 20) + 1)  # a hole behind the picture, which still decodes


def caption_at_length(archive):
    with open(archive.csv, "a", encoding="utf-8") as file:
        file.writelines(f"b.jpg,{'x' * 100_000}\n" for _ in range(12))


@pytest.mark.parametrize("spoil", [damage, enlarge, caption_at_length])
def test_what_could_not_be_read_back_is_refused_before_anything_is_written(tmp_path, capsys, spoil):
    archive = archive_of(tmp_path, {"a.jpg": "JPEG", "b.jpg": "JPEG", "c.jpg": "JPEG"})
    spoil(archive)
    options = flags(archive, tmp_path / "tars" / "t-{}.tar") + ["--per-shard", "1"]
    assert pack.main(options) == 1 and not (tmp_path / "tars").exists()
    error = capsys.readouterr().err
    assert f"{archive.csv}: 1 of 3 images" in error and "line 4: b.jpg: " in error and "--skip-bad" in error
    assert pack.main([*options, "--skip-bad"]) == 0
    assert "2 images, 4 members" in capsys.readouterr().out
    shards = open_shards(
        tmp_path / "f", encode_shards(f"{tmp_path}/tars/*.tar", tmp_path / "f", Pixels(), Letters())
    )
    assert shards.names() == ["a.jpg", "c.jpg"]


def test_tars_of_a_longer_archive_are_not_left_beside_new_ones(archive, tmp_path, capsys):
    options = flags(archive, tmp_path / "t-{}.tar")
    assert pack.main([*options, "--per-shard", "3"]) == 0
    before = (tmp_path / "t-0.tar").read_bytes()
    assert pack.main([*options, "--per-shard", "4"]) == 1
    assert f"{tmp_path / 't-2.tar'}: " in capsys.readouterr().err
    assert (tmp_path / "t-0.tar").read_bytes() == before
    assert pack.main([*options, "--per-shard", "3"]) == 0  # as many as before: all are replaced


def test_columns_are_named_as_for_training(tmp_path):
    archive = archive_of(tmp_path, {"a.jpg": "JPEG"})
    archive.csv.write_text("file,text\na.jpg,a disc\n")
    columns = ["--image-column", "file", "--caption-column", "text"]
    assert pack.main([*flags(archive, tmp_path / "t-{}.tar"), *columns]) == 0


@pytest.mark.parametrize("out", ["one.tar", "{name}.tar", "{}-{}.tar", "{.tar", "{:z}.tar", "{0.x}.tar"])
def test_pattern_without_one_place_is_refused(archive, out, capsys):
    assert pack.main(flags(archive, out)) == 1
    assert f"--out {out}" in capsys.readouterr().err
