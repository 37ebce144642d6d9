"""models/heat.py and apps/attention.py: the arithmetic on every kind of tower, and a small model that learned four things, asked where
they are."""

import csv
import json
import math
import subprocess
import sys

import pytest
import torch
from PIL import Image

import train
from apps.attention import __main__ as attention
from apps.attention.heat import METHODS, _places, explain, shares
from models.predictor import Predictor
from models.vision import VisionEncoder
from models.vljepa import VLJEPA
from tools.draw_archive import __main__ as draw_archive

THINGS = {"a cat": "chelsea", "a cup of coffee": "coffee", "an astronaut": "astronaut", "a rocket": "rocket"}
SIDE, TOWERS = (
    88,
    (
        "efficientnet-lite0",
        "efficientnet-lite0-stages",
        "efficientnet-lite0-stages+efficientnet-lite2",
        "clip",
    ),
)


def thing(text):
    """The middle of a public-domain photograph of scikit-image, SIDE pixels wide."""
    from skimage import data

    image = Image.fromarray(getattr(data, THINGS[text])())
    short, (x, y) = min(image.size), (image.width // 2, image.height // 2)
    return image.crop((x - short // 2, y - short // 2, x + short // 2, y + short // 2)).resize((SIDE, SIDE))


def scene(places, size=(224, 224)):
    """A grey picture with things {text: (x, y) of the left upper corner}, and their boxes."""
    image = Image.new("RGB", size, (120, 130, 120))
    for text, place in places.items():
        image.paste(thing(text), place)
    return image, {text: [[x, y, x + SIDE, y + SIDE]] for text, (x, y) in places.items()}


class World:
    """Pictures of one thing each, a run trained on three quarters of them, and held-out pictures of two things with their boxes."""

    def __init__(self, root):
        self.images, self.run, self.boxes, rows = root / "images", root / "run", {}, []
        self.images.mkdir()
        spots = [(x, y) for x in (0, 68, 136) for y in (0, 68, 136)]
        for i in range(36):
            text, place = list(THINGS)[i % 4], spots[i // 4]
            scene({text: place})[0].save(self.images / f"{i}.png")
            rows.append((f"{i}.png", text))
        with open(root / "captions.csv", "w", newline="") as file:
            csv.writer(file).writerows([("image_name", "comment"), *rows])
        for i in range(12):
            a, b = [list(THINGS)[k] for k in (i % 4, (i + 1 + i // 4) % 4)]
            left, right = (8, 20 * (i % 7)), (128, 15 * (i % 5))
            image, boxes = scene({a: left, b: right})
            image.save(self.images / f"pair{i}.png")
            self.boxes[f"pair{i}.png"] = boxes
        self.json = root / "boxes.json"
        self.json.write_text(json.dumps(self.boxes | {"0.png": {"a cat": [[0, 0, SIDE, SIDE]]}}))
        flags = [
            "--csv",
            root / "captions.csv",
            "--images",
            self.images,
            "--cache",
            root / "cache.sqlite",
            "--run",
            self.run,
            "--vision",
            "efficientnet-lite0-stages",
            "--hidden",
            "64",
            "--epochs",
            "30",
            "--lr",
            "3e-3",
            "--device",
            "cpu",
            "--val-fraction",
            "0",
            "--quiet",
        ]
        assert train.main(list(map(str, flags))) == 0
        self.model = VLJEPA.load(self.run)

    def main(self, *flags):
        return attention.main([*map(str, flags), "--run", str(self.run), "--device", "cpu", "--quiet"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("attention"))


@pytest.fixture(scope="module", params=TOWERS, ids=lambda name: name.replace("efficientnet-", ""))
def untrained(request, minilm):
    """A model of each kind of tower with a random predictor that standardises."""
    name = (
        request.param
        if request.param != "clip"
        else f"open_clip:ViT-B-16-quickgelu/{request.getfixturevalue('clip_file')}"
    )
    vision = VisionEncoder("cpu", name)
    torch.manual_seed(0)
    predictor = Predictor(vision.dim, 384, 32)
    predictor.standardise(torch.nn.functional.normalize(torch.randn(50, vision.dim).abs(), dim=1))
    return VLJEPA(predictor, vision, minilm)


PICTURE, BOXES = scene({"a cat": (10, 20), "a rocket": (130, 100)})


def test_pooled_places_are_the_towers_features(untrained):
    """Catches shares of something that is not what encode() gives: another scale, order, block or class token."""
    for tower in untrained.vision.parts or [untrained.vision]:
        pixels = tower.preprocess(PICTURE)[None]
        maps, baselines, pool = _places(tower, pixels, torch.zeros(tower.dim))
        assert [m.shape for m in baselines] == [m.shape for m in maps]
        torch.testing.assert_close(pool(*maps), tower.encode(pixels), rtol=1e-4, atol=1e-5)


def test_shares_add_up_to_the_score_above_the_baseline(untrained, monkeypatch):
    """Catches a part of the score that no place is given, and joined towers or stages counted twice."""
    monkeypatch.setattr("apps.attention.heat.STEPS", 8)  # enough for a predictor of small random weights
    text = untrained.encode_text(["a cat", "a rocket"])
    found = shares(untrained, PICTURE, text)
    if untrained.vision.name.startswith("open_clip"):
        maps, baselines, pool = _places(untrained.vision, untrained.vision.preprocess(PICTURE)[None], None)
        baseline = untrained.predict(pool(*baselines)) @ text.T
    else:
        baseline = untrained.predict(untrained.predictor.mean[None]) @ text.T
    gained = (untrained.encode_image(PICTURE) @ text.T - baseline)[0]
    torch.testing.assert_close(sum(share.sum((1, 2)) for _, share in found), gained, rtol=1e-3, atol=1e-3)
    assert gained.abs().min() > 1e-3


def test_shares_are_the_naive_integral(world):
    """Catches a gradient taken at one point, a wrong baseline, or places read by columns: the loop goes place by place."""
    model, tower = world.model, world.model.vision
    text = model.encode_text(["a cat"])
    pixels, stages = (
        tower.preprocess(PICTURE)[None],
        tower.network.feature_maps(tower.preprocess(PICTURE)[None]),
    )
    features, slope, steps = tower.encode(pixels), 0, 400
    for i in range(steps):
        point = ((i + 0.5) / steps * features).requires_grad_()  # mean is zero: this run does not standardise
        slope = slope + torch.autograd.grad((model.predictor(point) @ text.T).sum(), point)[0][0] / steps
    start = 0
    for (_, share), stage in zip(shares(model, PICTURE, text), [stages[-1], *stages[-4:-1]], strict=True):
        channels, h, w = stage.shape[1:]
        mine = slope[start : start + channels] / stage.mean((2, 3)).norm() / 2 / (h * w)
        naive = torch.tensor([[float(stage[0, :, y, x] @ mine) for x in range(w)] for y in range(h)])
        torch.testing.assert_close(share[0], naive, rtol=1e-2, atol=1e-4)
        start += channels


@pytest.mark.parametrize("method", METHODS)
def test_explain_finds_each_of_two_things(world, method):
    """Catches maps that are transposed, mirrored, shifted, or the same for every text."""
    scores, maps = explain(world.model, PICTURE, list(BOXES), method)
    assert scores.shape == (2,) and maps.shape == (2, 224, 224)
    torch.testing.assert_close(
        scores, (world.model.encode_image(PICTURE) @ world.model.encode_text(list(BOXES)).T)[0]
    )
    assert [attention.judge(heat, BOXES, text) for heat, text in zip(maps, BOXES)] == [(True, True)] * 2


def test_explain_is_in_the_pictures_own_places(world):
    """Catches the coordinates of the cropped and resized pixels given out as the picture's, and a guess about what was cut off."""
    image, boxes = scene({"a cat": (260, 70)}, (560, 224))  # the tower sees 168 to 392
    (heat,) = explain(world.model, image, ["a cat"])[1]
    assert heat.shape == (205, 512)  # scaled by 512 / 560
    seen = ~heat.isnan()
    assert torch.equal(seen, seen[:1].expand_as(seen)) and seen[0].nonzero().flatten()[[0, -1]].tolist() == [
        153,
        357,
    ]
    scaled = {"a cat": [[side * 512 / 560 for side in boxes["a cat"][0]]]}
    assert attention.judge(heat, scaled, "a cat")[0]
    assert explain(world.model, image.rotate(90, expand=True), ["a cat"])[1].shape == (1, 512, 205)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (3, 900), (700, 2)])
def test_explain_takes_pictures_of_any_shape(world, size, method):
    """Catches a window or crop of no pixels."""
    _, maps = explain(world.model, Image.new("RGB", size, "red"), ["a cat"], method)
    assert maps.isfinite().any()


@pytest.mark.parametrize("image", ["photo.jpg", Image.new("L", (9, 9))], ids=["path", "grey"])
def test_explain_says_how_to_open_a_picture(world, image):
    """Catches a traceback out of the tower for what is no RGB picture."""
    with pytest.raises(ValueError, match="not an RGB picture; open it with models.dataset.open_image"):
        explain(world.model, image, ["a cat"])


def test_unknown_method_is_refused(world):
    """Catches a misspelt method answered quietly by the other one."""
    with pytest.raises(ValueError, match="guess: no such method; take gradients or occlusion"):
        explain(world.model, PICTURE, ["a cat"], "guess")


def test_pointing_tells_this_model_from_those_that_must_lose(world):
    """Catches a score that a model of shuffled weights, the middle of the picture or any text gets as well (Adebayo et al. 2018)."""
    broken = VLJEPA.load(world.run)
    attention.shuffle(broken.vision.network)
    attention.shuffle(broken.predictor)
    rows = attention.pointing(
        {"shuffled": broken, attention.THIS: world.model}, world.boxes, world.images, quiet=True
    )
    assert list(rows) == ["random point", "centre", "shuffled", "another text", "this model"]
    (pointed, *_), (found, low, high), alike = rows.pop("this model")
    assert pointed >= 75 and found >= 90 and low <= found <= high and alike > 0.9999
    for row, ((other, *_), (other_found, *_), other_alike) in rows.items():
        assert other < pointed - 20 and other_found < found - 20 and abs(other_alike) < 0.6, row


def test_shuffle_keeps_the_numbers_and_their_layout():
    """Catches weights drawn anew at another scale, and a shuffle that leaves things in place."""
    layer = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last).requires_grad_(False)
    before = layer.weight.clone()
    attention.shuffle(layer)
    assert torch.equal(layer.weight.flatten().sort()[0], before.flatten().sort()[0]) and not torch.equal(
        layer.weight, before
    )
    assert layer.weight.stride() == before.stride()


def test_unknown_tower_is_sent_to_occlusion(lite0, minilm, monkeypatch):
    """Catches a map made up for a tower whose places nobody knows."""
    monkeypatch.setitem(vars(lite0), "network", torch.nn.Identity())
    with pytest.raises(ValueError, match="efficientnet-lite0: .*Identity.*--method occlusion"):
        shares(VLJEPA(Predictor(1280), lite0, minilm), PICTURE, torch.ones(1, 384))


def test_judge_by_hand():
    """Catches x and y exchanged, an end of a box counted in, a place that was not seen taken for the highest, and ties won."""
    heat = torch.zeros(4, 6)
    heat[1, 3], heat[0, 0] = 5, math.nan
    boxes = {"a": [[3, 1, 4, 2], [0, 0, 1, 1]], "b": [[0, 3, 3, 4]], "c": [[4, 2, 6, 4]]}
    assert attention.judge(heat, boxes, "a") == (True, True)
    assert attention.judge(heat, boxes, "b") == (False, False)
    assert attention.judge(torch.zeros(4, 6), boxes, "b") == (False, False)
    assert attention.judge(heat, {"a": boxes["a"]}, "a") == (True, None)
    heat[:, 4:] = math.nan  # cut off: no rival, and no winner either
    assert attention.judge(heat, boxes, "b") == (False, False) and attention.judge(heat, boxes, "c") == (
        False,
        False,
    )
    assert attention.judge(heat, {"a": boxes["a"], "c": boxes["c"]}, "a") == (True, True)


def test_interval_is_over_images():
    """Catches texts of one image drawn as if they were independent, and images without a question counted as misses."""
    assert attention.interval([[True, True], [True], []]) == (100.0, 100.0, 100.0)
    alike = attention.interval([[True] * 4, [False] * 4] * 10)
    single = attention.interval([[True], [False]] * 40)
    assert alike[0] == single[0] == 50 and alike[2] - alike[1] > 1.5 * (single[2] - single[1])
    assert all(map(math.isnan, attention.interval([[]])))


def test_rank_correlation_is_spearmans():
    """Catches a plain correlation, and places that one map has and the other has not."""
    from scipy.stats import spearmanr

    a, b = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(0)).exp()
    assert attention.rank_correlation(a, b) == pytest.approx(
        spearmanr(a.flatten(), b.flatten()).statistic, abs=1e-5
    )
    expected = spearmanr(a[:, 1:].flatten(), b[:, 1:].flatten()).statistic
    b[:, 0] = math.nan
    assert attention.rank_correlation(a, b) == pytest.approx(expected, abs=1e-5)


def test_main_writes_panels(world, tmp_path, capsys):
    """Catches scores in another order than the texts, a dollar sign read as mathematics, and a name that is no ASCII."""
    PICTURE.save(tmp_path / "größe 猫.png")
    out = tmp_path / "karte_é.png"
    assert world.main(tmp_path / "größe 猫.png", "a cat", "a $rocket", "--out", out) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1] for line in said[:2]] == ["a cat", "a $rocket"] and str(out) in said[2]
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 2 * image.height


def test_main_plays_the_game_on_held_out_images(world, tmp_path, capsys):
    """Catches images that were trained on in the score, and a table with a row lost."""
    few = {name: world.boxes[name] for name in list(world.boxes)[:3]} | {
        "0.png": {"a cat": [[0, 0, SIDE, SIDE]]}
    }
    (tmp_path / "few.json").write_text(json.dumps(few))
    assert world.main("--pointing", tmp_path / "few.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 held-out images, 6 texts" in lines[0]
    assert [line.split(" |")[0].strip() for line in lines[2:]] == [
        "random point",
        "centre",
        "predictor shuffled",
        "predictor and tower shuffled",
        "another text",
        "this model",
    ]


BAD = [
    "{",
    "[]",
    '{"a.png": {}}',
    '{"a.png": {"a cat": []}}',
    '{"a.png": {"a cat": [[1, 2, 3]]}}',
    '{"a.png": {"a cat": [[5, 0, 2, 9]]}}',
    '{"a.png": {"a cat": [[-1, 0, 2, 9]]}}',
    '{"a.png": {"a cat": {"x": 1}}}',
]


@pytest.mark.parametrize("text", BAD)
def test_read_boxes_names_what_is_wrong(tmp_path, text):
    """Catches a traceback, or a box that is quietly empty, from a file written by hand."""
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(ValueError, match=r"boxes\.json: .*"):
        attention.read_boxes(tmp_path / "boxes.json")


def test_main_says_what_is_wrong(world, tmp_path, capsys):
    """Catches tracebacks, and a score over nothing."""
    (tmp_path / "seen.json").write_text('{"0.png": {"a cat": [[0, 0, 9, 9]]}}')
    (tmp_path / "no.png").write_text("no image")
    PICTURE.save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    for flags, said in [
        (["--pointing", tmp_path / "seen.json"], "none of its images is held out"),
        (["--pointing", tmp_path / "none.json"], "none.json"),
        (
            ["--pointing", world.json, "--images", tmp_path / "none"],
            "none: no such folder of images; name yours with --images",
        ),
        ([tmp_path / "no.png", "a cat", "--out", out], "no.png: "),
        ([tmp_path / "none.png", "a cat", "--out", out], "none.png"),
        ([tmp_path / "a.png", "a cat", "--out", tmp_path / "none" / "out.png"], "none/out.png"),
    ]:
        assert world.main(*flags) == 1
        assert said in capsys.readouterr().err
    assert attention.main([str(tmp_path / "a.png"), "a cat", "--run", str(tmp_path)]) == 1
    assert "train first" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["a.png"],
        ["a.png", "text", "--pointing", "b.json"],
        ["a.png", "text", "--out", "map.jpg"],
        ["train.py", "text", "--method", "guess"],
    ],
    ids=str,
)
def test_wrong_usage_leaves_with_2(flags):
    """Catches flags that contradict each other and one of them quietly ignored."""
    with pytest.raises(SystemExit) as stop:
        attention.main(flags)
    assert stop.value.code == 2


def test_out_over_the_image_is_refused(tmp_path):
    """Catches somebody's photograph replaced by its heat map."""
    PICTURE.save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        attention.main([str(tmp_path / "a.png"), "a cat", "--out", str(tmp_path / "." / "a.png")])


def test_import_is_light():
    """Catches a --help that waits for torch, captum or matplotlib."""
    code = "import sys, apps.attention; print({'torch', 'captum', 'matplotlib', 'PIL'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    )


def test_draw_archive_writes_the_boxes(tmp_path, capsys):
    """Catches boxes of another layout than the pictures', a second thing of a name lost, and a file of somebody's written over."""
    path = tmp_path / "boxes.json"
    assert not draw_archive.main(["--boxes", str(path), "--count", "40"])
    boxes = attention.read_boxes(path)
    assert len(boxes) == 40 and len(list(tmp_path.iterdir())) == 1
    for index in range(40):
        layout = draw_archive.layout(index)
        said = sorted((text, tuple(box)) for text, places in boxes[layout.name].items() for box in places)
        assert said == sorted((draw_archive.article(thing.name), thing.box) for thing in layout.things)
    with pytest.raises(SystemExit, match="--overwrite"):
        draw_archive.main(["--boxes", str(path)])
