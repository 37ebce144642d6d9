"""tools/pack.py: --shards reads the tars back as the CSV they were made from."""

import pytest
import torch

from models.features.shards import encode_shards, open_shards
from tests.conftest import Letters, Pixels, encode, load
from tools import pack


def flags(archive, out):
    return ["--csv", str(archive.csv), "--images", str(archive.images), "--out", str(out)]


def test_packed_archive_gives_the_features_of_its_csv(archive, tmp_path):
    assert pack.main(flags(archive, tmp_path / "tars" / "t-{:02}.tar") + ["--per-shard", "3"]) == 0
    assert sorted(p.name for p in (tmp_path / "tars").iterdir()) == ["t-00.tar", "t-01.tar", "t-02.tar"]
    tars, folder = str(tmp_path / "tars" / "t-{00..02}.tar"), tmp_path / "shards"
    shards = open_shards(folder, encode_shards(tars, folder, Pixels(), Letters(), quiet=True))
    features = encode(archive, Pixels(), Letters(), None)
    assert list(shards.names()) == load(archive).image_names
    assert torch.equal(shards.image_of, features.image_of)
    assert torch.equal(shards.image[:], features.image) and torch.equal(shards.text[:], features.text)


@pytest.mark.parametrize("out", ["one.tar", "{name}.tar", "{}-{}.tar"])
def test_pattern_without_one_place_is_refused(archive, out, capsys):
    assert pack.main(flags(archive, out)) == 1
    assert f"--out {out}" in capsys.readouterr().err
