"""train.py --time: the order of a video's frames, on the ten drawn videos that are shipped."""

import json
from pathlib import Path

import pytest
import torch

import eval as evaluate
import train
from apps.export import graph
from models.vljepa import VLJEPA
from tests.conftest import ROOT
from tools import motion_bench

VIDEOS = ROOT / "tests" / "videos"
PAIR = [str(VIDEOS / name) for name in ("0-00000.mp4", "0-00000-reversed.mp4")]


@pytest.fixture(scope="module")
def fit(tmp_path_factory):
    """A function that trains with some flags, if it has not yet, and returns the run folder."""
    folder = tmp_path_factory.mktemp("time")
    data = [
        "--csv",
        str(VIDEOS / "captions.csv"),
        "--images",
        str(VIDEOS),
        "--cache",
        str(folder / "f.sqlite"),
    ]
    data += ["--vision", "efficientnet-lite0-layout", "--recipe", "retrieval", "--hidden", "64", "--quiet"]
    data += ["--schedule", "constant", "--warmup", "0", "--members", "1"]

    def run(name, *flags):
        where = folder / name
        if where.exists() and "--resume" not in flags:
            return where
        given = [*data, "--val-fraction", "0", "--batch-size", "50", "--run", str(where), *flags]
        assert train.main(given) == 0
        return where

    return run


@pytest.fixture(scope="module")
def changed(fit):
    return fit("change", "--time", "change", "--epochs", "24")


def test_reversed_video_changes_the_prediction_of_change_alone(fit, changed):
    model = VLJEPA.load(changed)
    one, other = model.encode_image(PAIR)
    labels = ["a canoe moves left", "a canoe moves right"]
    assert [int(model.classify(path, labels).argmax()) for path in PAIR] == [0, 1]
    assert (one - other).norm() > 0.1
    one, other = VLJEPA.load(fit("mean", "--epochs", "2")).encode_image(PAIR)
    torch.testing.assert_close(one, other, atol=0.02, rtol=0)  # two files, compressed each for itself


def test_shared_model_and_eval_read_the_order_too(changed, tmp_path):
    model = VLJEPA.load(changed)
    model.save_pretrained(tmp_path / "shared")
    shared = VLJEPA.from_pretrained(tmp_path / "shared")
    assert shared.reads_order and torch.equal(shared.encode_image(PAIR), model.encode_image(PAIR))
    labels = ["a canoe moves left", "a canoe moves right"]
    flags = ["--run", str(changed), "--labels", *labels, "--quiet", "--json", str(tmp_path / "r.json")]
    assert evaluate.main([*PAIR, *flags]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert [entry["prediction"] for entry in found] == labels
    scores = torch.tensor([list(entry["scores"].values()) for entry in found])
    torch.testing.assert_close(scores[0], model.classify(PAIR[0], labels).cpu(), atol=1e-4, rtol=0)


def test_table_of_eval_is_of_the_predictions_from_the_files(changed, tmp_path):
    flags = [
        "--csv",
        VIDEOS / "captions.csv",
        "--run",
        changed,
        "--cache",
        changed.parent / "f.sqlite",
        "--quiet",
    ]
    assert evaluate.main([*map(str, flags), "--json", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["metrics"]["image_retrieval_recall@1"] > 0.6  # turning around is the same in reverse


def test_answers_follow_the_order_too(fit):
    questions = ["--questions", str(VIDEOS / "questions.csv"), "--recipe", "answer"]
    model = VLJEPA.load(fit("ask", *questions, "--time", "change", "--epochs", "8"))
    answers = model.answer(PAIR, "Which way does the canoe go?", ["left", "right"])
    assert answers == ["left", "right"]


def test_an_image_is_a_frame_that_is_repeated(changed):
    from PIL import Image

    model = VLJEPA.load(changed)
    image = Image.new("RGB", (64, 64), "red")
    pixels = model.vision.preprocess(image)[None]
    torch.testing.assert_close(model.encode_image(image), model.encode_image(pixels), atol=1e-6, rtol=0)


def test_motion_bench_is_half_right_without_the_order_and_right_with_it(fit, changed, capsys):
    mean, cache = fit("mean", "--epochs", "2"), str(changed.parent / "f.sqlite")
    assert (
        motion_bench.main([str(VIDEOS), "--runs", str(mean), str(changed), "--cache", cache, "--quiet"]) == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if "one thing" in line]
    without, with_order = ([cell.split()[0] for cell in line.split("|")[1:]] for line in lines)
    assert without == ["50.0"] * 4 + ["0.0"] and with_order == ["100.0"] * 5
    assert motion_bench.main([str(VIDEOS), "--seed", "1", "--quiet"]) == 1
    assert "--seed 1" in capsys.readouterr().err


def test_resumed_run_equals_an_uninterrupted_one(fit, changed):
    fit("part", "--time", "change", "--epochs", "12")
    part = fit("part", "--time", "change", "--epochs", "24", "--resume")
    one, other = (VLJEPA.load(run).predictor.state_dict() for run in (changed, part))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_time_cannot_be_combined_with_is_refused(fit, changed, tmp_path, capsys):
    flags = [
        "--time",
        "change",
        "--views",
        "2",
        "--run",
        str(tmp_path / "run"),
        "--vision",
        "efficientnet-lite0",
    ]
    assert train.main(flags) == 1 and "--views" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--time"):
        graph.write(VLJEPA.load(changed), Path(tmp_path, "m.onnx"))
