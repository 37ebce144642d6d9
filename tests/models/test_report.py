"""models/report.py: what the tables and the card print, and figures that are written whole."""

import shlex
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import eval as evaluate
from models import metrics, report
from models.dataset import Row
from models.features.load import dataset_of, digest_of
from models.rejection import threshold
from tests.conftest import ROOT

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


def test_card_says_that_the_shipped_images_are_drawn_and_names_the_licence():
    parts = [("unique_caption.csv", ""), ("caption.csv", ""), ("", "questions.csv")]
    parts.append(("caption.csv", "questions.csv"))
    digests = set()
    for captions, questions in parts:
        args = SimpleNamespace(csv=captions and ROOT / captions, questions=questions and ROOT / questions)
        args.image_column, args.caption_column, args.caption_lists = "image_name", ["comment"], False
        args.images, args.follow_links = ROOT / "my_image_archive", False
        digests.add(digest_of(dataset_of(args, False).rows))
    assert digests == report.SHIPPED

    tower = dict(name="tower", sha256="5" * 64)
    config = dict(towers=dict(vision=tower, text=tower), recipe=dict(csv="caption.csv", epochs=9))
    config |= dict(images=40, captions=80)
    drawn = report.card(config | dict(data=digests.pop()), dict(epoch=3), 918912)
    other = report.card(config | dict(data="d" * 64), dict(epoch=3), 918912)
    assert "license: mit" in drawn and "are drawn, not photographed" in drawn
    assert "license" not in other and "drawn" not in other


@pytest.mark.parametrize("names", [("b", "c"), ("it's; $(x).jpg", "-c")], ids=["plain", "quoted"])
def test_try_it_is_a_command_that_eval_parses(names):
    first, second = names
    rows = [Row(first, "", 'a "dog"\n& a cat', 2), Row(second, "", "a $HOME", 3)]
    data = SimpleNamespace(examples=rows, names=[second])
    start, _, command = report.try_it("my runs/1", "my photos", data).partition(": ")
    words = shlex.split(command)
    args = evaluate.parse(words[2:])
    assert start == "Try it on a held-out image" and words[:2] == ["python", "eval.py"]
    assert args.run == "my runs/1"
    assert args.image == [f"my photos/{first}"] and args.labels == ['a "dog" & a cat', "a $HOME"]
    data = SimpleNamespace(examples=[Row(first, "is it $5?", "no", 2)], names=[first])
    asked = report.try_it("r", "i", data)
    assert asked.startswith("Try it on an image it was trained on: ")
    assert evaluate.parse(shlex.split(asked.partition(": ")[2])[2:]).ask == ["is it $5?"]


FEW = "too few to say how good it is"


def held_out(count):
    return SimpleNamespace(image=range(count))


def test_retrieval_recipe_says_what_views_would_bring():
    data = SimpleNamespace(examples=[], names=[], image=range(report.VIEWS_FROM), held_out=held_out(0))
    args = SimpleNamespace(recipe="retrieval", views=0, shards="", run="r", images="i")
    tried, better = report.next_steps(args, data).splitlines()
    assert tried == report.try_it("r", "i", data)
    assert "--recipe views" in better and f"{4 * report.VIEWS_FROM:,} views" in better
    for other in (dict(recipe="views"), dict(views=4), dict(shards="a.tar")):
        assert report.next_steps(SimpleNamespace(**vars(args) | other), data) == tried
    data.image = range(report.VIEWS_FROM - 1)
    assert report.next_steps(args, data) == tried


def test_few_held_out_images_are_said_to_be_few():
    data = SimpleNamespace(examples=[], names=[], image=range(9), held_out=held_out(2))
    args = SimpleNamespace(recipe="classic", run="r", images="i")
    assert report.next_steps(args, data) == f"2 held-out images are {FEW}. {report.try_it('r', 'i', data)}"
