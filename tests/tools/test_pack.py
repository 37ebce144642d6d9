"""tools/pack.py: tars that --shards reads back as the CSV they were made of."""

import torch

from models.dataset import open_image
from models.features.shards import encode_shards, open_shards
from tests.conftest import Letters, Pixels, load, run
from tools import pack


def test_packed_archive_gives_the_features_of_its_csv(archive, tmp_path):
    """Catches captions that go to another image, and a last tar that is left out."""
    flags = [
        "--csv",
        archive.csv,
        "--images",
        archive.images,
        "--out",
        tmp_path / "tars" / "t-{:02}.tar",
        "--per-shard",
        3,
    ]
    assert pack.main(list(map(str, flags))) == 0
    assert sorted(p.name for p in (tmp_path / "tars").iterdir()) == ["t-00.tar", "t-01.tar", "t-02.tar"]
    names = encode_shards(
        str(tmp_path / "tars" / "t-{00..02}.tar"),
        tmp_path / "shards",
        Pixels(),
        Letters(),
        open_image,
        quiet=True,
    )
    shards, features = open_shards(tmp_path / "shards", names), run(archive, Pixels(), Letters(), None)
    assert list(shards.names()) == load(archive).image_names and torch.equal(
        shards.image_of, features.image_of
    )
    assert torch.equal(shards.image[:], features.image) and torch.equal(shards.text[:], features.text)


def test_pattern_without_a_place_for_the_number_is_refused(archive, capsys):
    """Catches tars that write over each other."""
    assert pack.main(["--csv", str(archive.csv), "--images", str(archive.images), "--out", "one.tar"]) == 1
    assert "no place for the number" in capsys.readouterr().err
