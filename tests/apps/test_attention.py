"""Heat maps: the arithmetic on single and joined towers, and a small model that learned four things, asked
where they are."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from skimage import data

import train
from apps.attention import __main__ as attention
from apps.attention.heat import METHODS, explain, shares
from apps.attention.pointing import correlation, judge, percent, read_boxes, shuffle
from models.predictor import Predictor
from models.vision import VisionEncoder
from models.vision.tower import Tower
from models.vljepa import VLJEPA
from tools.draw_archive import __main__ as draw_archive

THINGS = {
    "a cat": data.chelsea,
    "a cup": data.coffee,
    "an astronaut": data.astronaut,
    "a rocket": data.rocket,
}
SIDE = 88


def scene(places, size=(224, 224)):
    """A grey image with the things {text: (left, top)}, the centres of photographs, and their boxes."""
    image = Image.new("RGB", size, (120, 130, 120))
    for text, place in places.items():
        thing = Image.fromarray(THINGS[text]())
        x, y, half = thing.width // 2, thing.height // 2, min(thing.size) // 2
        image.paste(thing.crop((x - half, y - half, x + half, y + half)).resize((SIDE, SIDE)), place)
    return image, {text: [[x, y, x + SIDE, y + SIDE]] for text, (x, y) in places.items()}


IMAGE, BOXES = scene({"a cat": (10, 20), "a rocket": (130, 100)})


class World:
    """A run trained on images of one thing each, and held-out images of two things with their boxes."""

    def __init__(self, root):
        self.images, self.run, self.boxes = root / "images", root / "run", {}
        self.images.mkdir()
        rows = ["image_name,comment"]
        spots = [(0, 0), (0, 136), (68, 68), (136, 0), (136, 136)]
        for i in range(20):
            text = list(THINGS)[i % 4]
            scene({text: spots[i // 4]})[0].save(self.images / f"{i}.png")
            rows.append(f"{i}.png,{text}")
        (root / "captions.csv").write_text("\n".join(rows))
        for i in range(5):
            a, b = list(THINGS)[i % 4], list(THINGS)[(i + 1 + i // 4) % 4]
            image, self.boxes[f"pair{i}.png"] = scene({a: (8, 20 * (i % 7)), b: (128, 15 * (i % 5))})
            image.save(self.images / f"pair{i}.png")
        flags = (
            "--vision efficientnet-lite0-stages --hidden 64 --epochs 30 --lr 3e-3 --val-fraction 0 --quiet"
        )
        files = [
            "--csv",
            root / "captions.csv",
            "--images",
            self.images,
            "--cache",
            root / "c",
            "--run",
            self.run,
        ]
        assert train.main([*flags.split(), "--device", "cpu", *map(str, files)]) == 0
        self.model = VLJEPA.load(self.run)

    def main(self, *flags):
        return attention.main([*map(str, flags), "--run", str(self.run), "--device", "cpu", "--quiet"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("attention"))


@pytest.mark.parametrize("name", ["efficientnet-lite2-stages", "clip-vit-b-16"])
def test_explain_of_a_tower_pools_its_places_to_its_row(name, request):
    vision = VisionEncoder("cpu", name, path=request.getfixturevalue("clip_file") if "clip" in name else None)
    pixels = vision.preprocess(IMAGE)[None]
    maps, baselines, pool = vision.explain(pixels, torch.zeros(vision.dim))
    assert [m.shape for m in baselines] == [m.shape for m in maps]
    torch.testing.assert_close(pool(*maps), vision.encode(pixels), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"{name}.*--method occlusion"):  # families without known places
        Tower.explain(vision, pixels, None)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-stages+efficientnet-lite2"])
def test_shares_add_up_to_the_score_above_the_baseline(name, monkeypatch):
    """No part of the score is lost, no tower or stage is counted twice."""
    monkeypatch.setattr("apps.attention.heat.STEPS", 8)  # enough for a predictor of small random weights
    vision = VisionEncoder("cpu", name)
    torch.manual_seed(0)
    predictor = Predictor(vision.dim, 384, 32).requires_grad_(False)
    predictor.standardise(torch.nn.functional.normalize(torch.randn(50, vision.dim).abs(), dim=1))
    text = torch.nn.functional.normalize(torch.randn(2, 384), dim=1)
    found = shares(SimpleNamespace(vision=vision, predictor=predictor), IMAGE, text)
    score = predictor(vision.encode(vision.preprocess(IMAGE)[None])) @ text.T
    gained = (score - predictor(predictor.mean[None]) @ text.T)[0]
    torch.testing.assert_close(sum(share.sum((1, 2)) for _, share in found), gained, rtol=1e-3, atol=1e-3)
    assert gained.abs().min() > 1e-3


def test_printed_parts_of_a_score_add_up_to_it(world, tmp_path, capsys):
    """What is left without the places is the score of the baseline, features of zeros in this run."""
    IMAGE.save(tmp_path / "image.png")
    out = tmp_path / "map.png"
    assert world.main(tmp_path / "image.png", "a cat", "a cup", "--out", out) == 0
    text = world.model.encode_text(["a cat", "a cup"])
    bare = (world.model.predictor(torch.zeros(1, world.model.vision.dim)) @ text.T)[0]
    for line, expected in zip(capsys.readouterr().out.splitlines(), bare.tolist()):
        score, total, rest = map(float, re.findall(r"-?\d+\.\d{4}", line))
        assert abs(score - total - rest) < 2e-4 and abs(rest - expected) < 5e-3


def test_shares_are_the_naive_integral(world):
    """The loop goes point by point along the path and place by place over the maps."""
    model, tower = world.model, world.model.vision
    text = model.encode_text(["a cat"])
    pixels = tower.preprocess(IMAGE)[None]
    mean = torch.zeros(tower.dim)  # this run does not standardise
    maps, _, _ = tower.explain(pixels, mean)
    features, slope, steps = tower.encode(pixels), 0, 400
    for i in range(steps):
        point = ((i + 0.5) / steps * features).requires_grad_()
        slope = slope + torch.autograd.grad((model.predictor(point) @ text.T).sum(), point)[0][0] / steps
    slopes = slope.split([m.shape[1] for m in maps])
    for (_, share), m, mine in zip(shares(model, IMAGE, text), maps, slopes, strict=True):
        h, w = m.shape[2:]
        naive = torch.tensor([[float(m[0, :, y, x] @ mine) / (h * w) for x in range(w)] for y in range(h)])
        torch.testing.assert_close(share[0], naive, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_explain_finds_each_of_two_things(world, method):
    scores, maps = explain(world.model, IMAGE, list(BOXES), method)
    assert scores.shape == (2,) and maps.shape == (2, 224, 224)
    expected = (world.model.encode_image(IMAGE) @ world.model.encode_text(list(BOXES)).T)[0]
    torch.testing.assert_close(scores, expected)
    assert [judge(heat, BOXES, text) for heat, text in zip(maps, BOXES)] == [(True, True)] * 2


def test_explain_is_in_the_coordinates_of_the_image(world):
    """Not in those of the cropped pixels; NaN outside the crop."""
    image, boxes = scene({"a cat": (260, 70)}, (560, 224))  # the crop is 168 to 392
    (heat,) = explain(world.model, image, ["a cat"])[1]
    assert heat.shape == (205, 512)  # scaled by 512 / 560
    seen = ~heat.isnan()
    assert torch.equal(seen, seen[:1].expand_as(seen))
    assert seen[0].nonzero().flatten()[[0, -1]].tolist() == [153, 357]
    scaled = {"a cat": [[side * 512 / 560 for side in boxes["a cat"][0]]]}
    assert judge(heat, scaled, "a cat")[0]
    assert explain(world.model, image.rotate(90, expand=True), ["a cat"])[1].shape == (1, 512, 205)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(1, 1), (3, 900), (700, 2)])
def test_explain_takes_images_of_any_shape(world, size, method):
    _, maps = explain(world.model, Image.new("RGB", size, "red"), ["a cat"], method)
    assert maps.isfinite().any()


@pytest.mark.parametrize(
    "image, method, message",
    [
        ("photo.jpg", "gradients", "photo.jpg.*open_image"),
        (Image.new("L", (9, 9)), "gradients", "mode=L.*open_image"),
        (IMAGE, "guess", "guess.*gradients or occlusion"),
    ],
    ids=["path", "grey", "method"],
)
def test_explain_refuses_what_it_cannot_explain(world, image, method, message):
    with pytest.raises(ValueError, match=message):
        explain(world.model, image, ["a cat"], method)


def test_shuffle_keeps_the_numbers_and_their_layout():
    layer = torch.nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    before = layer.weight.detach().clone()
    shuffle(layer)
    assert torch.equal(layer.weight.flatten().sort()[0], before.flatten().sort()[0])
    assert not torch.equal(layer.weight, before) and layer.weight.stride() == before.stride()


def test_judge_by_hand():
    heat = torch.zeros(4, 6)
    heat[1, 3], heat[0, 0] = 5, math.nan
    boxes = {"a": [[3, 1, 4, 2], [0, 0, 1, 1]], "b": [[0, 3, 3, 4]], "c": [[4, 2, 6, 4]]}
    assert judge(heat, boxes, "a") == (True, True)
    assert judge(heat, boxes, "b") == (False, False)
    assert judge(torch.zeros(4, 6), boxes, "b") == (False, False)  # a tie is no win
    assert judge(heat, {"a": boxes["a"]}, "a") == (True, None)
    heat[:, 4:] = math.nan  # outside the crop: no rival, and no winner either
    assert judge(heat, boxes, "b") == judge(heat, boxes, "c") == (False, False)
    assert judge(heat, {"a": boxes["a"], "c": boxes["c"]}, "a") == (True, True)


def test_percent_draws_images_not_texts():
    assert percent([[True, True], [True], []]) == (100.0, 100.0, 100.0)
    alike = percent([[True] * 4, [False] * 4] * 10)
    single = percent([[True], [False]] * 40)
    assert alike[0] == single[0] == 50 and alike[2] - alike[1] > 1.5 * (single[2] - single[1])
    assert all(map(math.isnan, percent([[]])))


def test_correlation_ranks_the_places_that_both_maps_have():
    a = torch.tensor([[1.0, 2, 3, 4, math.nan]])
    b = torch.tensor([[1.0, 4, 9, 16, 0]])
    assert correlation(a, b) == pytest.approx(1) and correlation(a, 1 / b) == pytest.approx(-1)
    assert correlation(a, torch.tensor([[2.0, 1, 4, 3, 9]])) == pytest.approx(0.6)  # 1 - 6 * 4 / (4 * 15)


def test_main_writes_panels(world, tmp_path, capsys):
    IMAGE.save(tmp_path / "größe 猫.png")
    out = tmp_path / "karte_é.png"
    assert world.main(tmp_path / "größe 猫.png", "a cat", "a $rocket", "--out", out) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1].split("   = ")[0] for line in said[:2]] == [
        "a cat",
        "a $rocket",
    ] and str(out) in said[2]
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 2 * image.height


def test_game_tells_this_model_from_those_that_must_lose(world, tmp_path, capsys):
    """Adebayo et al. 2018: a score that shuffled weights reach as well means nothing. Only held-out images
    count."""
    (tmp_path / "boxes.json").write_text(json.dumps(world.boxes | {"0.png": {"a cat": [[0, 0, SIDE, SIDE]]}}))
    assert world.main("--pointing", tmp_path / "boxes.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "5 held-out images, 10 texts" in lines[0]
    rows = {}
    for name, pointed, found, alike in (line.split("|") for line in lines[2:]):
        rows[name.strip()] = float(pointed.split("(")[0]), float(found.split("(")[0]), float(alike)
    shuffled = ["predictor shuffled", "predictor and tower shuffled"]
    assert list(rows) == ["random point", "centre", *shuffled, "another text", "this model"]
    pointed, found, alike = rows.pop("this model")
    assert pointed >= 75 and found >= 90 and alike == 1
    for name, (other_pointed, other_found, other_alike) in rows.items():
        assert other_pointed < pointed - 20 and other_found < found - 20 and abs(other_alike) < 0.6, name


WRONG = ["[]", "[[1, 2, 3]]", "[[5, 0, 2, 9]]", "[[-1, 0, 2, 9]]", '{"x": 1}']


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"a.png": {}}', *(f'{{"a": {{"a cat": {box}}}}}' for box in WRONG)]
)
def test_read_boxes_names_the_file(tmp_path, text):
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(ValueError, match=r"boxes\.json: .*"):
        read_boxes(tmp_path / "boxes.json")


def test_main_ends_with_one_line_that_names_the_place(world, tmp_path, capsys):
    (tmp_path / "seen.json").write_text('{"0.png": {"a cat": [[0, 0, 9, 9]]}}')
    (tmp_path / "pairs.json").write_text(json.dumps(world.boxes))
    (tmp_path / "broken.png").write_text("no image")
    for flags, place in [
        (["--pointing", tmp_path / "seen.json"], "seen.json"),
        (["--pointing", tmp_path / "none.json"], "none.json"),
        (["--pointing", tmp_path / "pairs.json", "--images", tmp_path / "none"], "--images"),
        ([tmp_path / "broken.png", "a cat"], "broken.png"),
        ([tmp_path / "none.png", "a cat"], "none.png"),
        ([tmp_path / "none.png", "a cat", "--run", tmp_path / "no run"], "no run"),
    ]:
        flags = [*map(str, flags), *([] if "--run" in flags else ["--run", str(world.run)])]
        assert attention.main([*flags, "--out", str(tmp_path / "out.png"), "--quiet"]) == 1
        error = capsys.readouterr().err
        assert place in error and error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


USAGE = "|a.png|a.png text --pointing b.json|a.png text --out map.jpg|train.py text --method guess"


@pytest.mark.parametrize("flags", USAGE.split("|"))
def test_wrong_usage_exits_with_2(flags):
    with pytest.raises(SystemExit) as stop:
        attention.main(flags.split())
    assert stop.value.code == 2


def test_out_over_the_image_is_refused(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        attention.main([str(tmp_path / "a.png"), "a cat", "--out", str(tmp_path / "." / "a.png")])


def test_draw_archive_writes_boxes_that_read_boxes_takes(tmp_path):
    path = tmp_path / "boxes.json"
    assert not draw_archive.main(["--boxes", str(path), "--count", "40"])
    boxes = read_boxes(path)
    assert len(boxes) == 40
    assert [file.name for file in tmp_path.iterdir()] == ["boxes.json"]
