"""models/report.py: what the tables and the card print, and figures that are written whole."""

import pytest
import torch
from PIL import Image

from models import metrics, report
from models.rejection import threshold

KEYS = [f"{way}_retrieval_recall@{k}" for way in ("text", "image") for k in (1, 5, 10)]
FOUND = metrics.chance(torch.arange(4).repeat_interleave(2), 4)


def test_rows_stand_below_their_header():
    row = report.retrieval_row("chance", FOUND)
    bounds = report.interval_rows({key: (0.1, 0.25) for key in KEYS})
    lines = [report.retrieval_header(), row, *bounds, report.retrieval_row("", None)]
    assert {tuple(i for i, c in enumerate(line) if c == "|") for line in lines} == {(31, 64)}
    cells = [f"{100 * FOUND[key]:.1f}" for key in KEYS]
    medians = [f"{FOUND[f'{way}_retrieval_median_rank']:g}" for way in ("text", "image")]
    assert row.replace("|", "").split() == ["chance", *cells[:3], medians[0], *cells[3:], medians[1]]
    assert bounds[1].split("|")[1].split() == ["25.0"] * 3


def test_curves_fail_without_touching_the_old_file(tmp_path):
    path, chance = tmp_path / "curves.png", FOUND
    entry = dict(epoch=1, train_loss=1.0, val_loss=1.0) | FOUND
    report.curves([dict(epoch=1, train_loss=1.0)], None, path)  # nothing was held out
    report.curves([entry, entry | dict(epoch=2)], chance, path)
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == (1000, 360)
    found = threshold(torch.rand(30), torch.ones(30))
    report.curves([entry, entry | dict(epoch=2)], chance, path, found)
    with Image.open(path) as image:
        assert image.size == (1400, 360)
    before = path.read_bytes()
    with pytest.raises(OSError, match="curves.png"):
        report.curves([entry], chance, path / "curves.png")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_confusion_is_a_square_picture_that_grows_with_its_classes(tmp_path):
    sizes = []
    for count in (2, 12):
        report.confusion(torch.eye(count), [str(i) for i in range(count)], tmp_path / "c.png")
        with Image.open(tmp_path / "c.png") as image:
            sizes.append(image.size)
    assert sizes == [(450, 350), (700, 600)]


def test_card_shows_which_images_chose_the_epoch():
    tower = dict(name="tower", sha256="5" * 64)
    found = dict(
        images=4, captions=8, dataset="dev", metrics=FOUND, interval_95={key: (0.1, 0.2) for key in KEYS}
    )
    config = dict(
        towers=dict(vision=tower, text=tower),
        recipe=dict(csv="a.csv", epochs=9),
        images=40,
        captions=80,
        data="d" * 64,
    )
    own = report.card(config, dict(epoch=3, held_out=found), 918912)
    given = report.card(config, dict(epoch=3, held_out=found), 918912, found | dict(dataset="test"))
    assert "918,912 parameters" in own and "Epoch 3 of 9" in own and "`a.csv`" in own
    assert "of dev" in own and "flatters" in own and "(10.0 to 20.0)" in own
    assert "of test" in given and "flatters" not in given
    assert "no image was held out" in report.card(config, dict(epoch=3), 918912)
