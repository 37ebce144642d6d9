"""A run with a text head and one augmented view: every command works in the space that the head leads to."""

import json
import shutil

import pytest
import torch

import eval as evaluate
import train
from apps.decode import __main__ as decode
from apps.export import __main__ as export
from models import metrics, runs
from models.features import encode_archive
from models.metrics import FEW
from models.onnx_file import Exported
from models.rejection import NONE
from models.vljepa import VLJEPA

HEAD = "--text-head residual --views 1 --loss info_nce --epochs 4 --lr 3e-3 --hidden 16".split()
LABELS = ["a red line", "a green ellipse", "a pink rectangle"]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("head") / "run"
    assert train.main(tiny_run.flags(folder, *HEAD, "--device", "cpu")) == 0
    return tiny_run._replace(folder=folder)


@pytest.fixture(scope="module")
def model(run):
    return VLJEPA.load(run.folder)


def call(command, run, *flags):
    where = ("--run", run.folder, "--cache", run.cache, "--quiet")
    return command.main([*map(str, flags), *map(str, where)])


def scores_of(capsys, *flags):
    capsys.readouterr()
    assert call(evaluate, *flags, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_text_head_moves_captions_but_no_questions(model):
    plain = model.text.encode(LABELS)
    assert not torch.allclose(model.encode_text(LABELS), plain, atol=1e-2)
    assert torch.equal(model.encode_text(LABELS), model.project_text(plain))
    assert model.text_space != model.text.sha256


def test_eval_tables_are_in_the_space_of_the_head(run, model, capsys):
    found = scores_of(capsys, run, "--csv", run.csv, "--held-out")
    features = encode_archive(model.held_out(), model.vision, model.text, run.cache, quiet=True)
    predicted, text = model.predict(features.image), model.project_text(features.text)
    expected = metrics.retrieval(predicted, text, features.image_of)
    assert found["metrics"] == pytest.approx(expected)
    photo = run.images / run.names[0]
    (answer,) = scores_of(capsys, run, photo, "--labels", *LABELS)
    by_hand = model.classify(photo, LABELS).tolist()
    assert list(answer["scores"].values()) == pytest.approx(by_hand, abs=1e-5)


def test_shared_model_with_a_text_head_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "shared")
    shared = VLJEPA.from_pretrained(tmp_path / "shared")
    assert torch.equal(shared.encode_text(LABELS), model.encode_text(LABELS))
    assert shared.identity == model.identity and shared.text_space == model.text_space


def test_captions_of_the_run_are_what_encode_text_gives(run, model):
    texts, rows = model.captions(run.cache)
    torch.testing.assert_close(rows, model.encode_text(texts), rtol=0, atol=2e-3)  # the cache is float16


def test_exported_model_has_the_text_head(run, model, tmp_path):
    out = tmp_path / "model.onnx"
    assert call(export, run, "--out", out, "--repeats", "1") == 0
    exported = Exported(out)
    assert torch.equal(exported.encode_text(LABELS), model.encode_text(LABELS))
    photo = run.images / run.names[0]
    torch.testing.assert_close(exported.classify(photo, LABELS), model.classify(photo, LABELS))


def test_decoder_of_another_text_head_is_refused(run, tiny_run, tmp_path, capsys):
    copy = run._replace(folder=shutil.copytree(run.folder, tmp_path / "run"))
    smallest = ("--epochs", 0, "--width", 16, "--layers", 1, "--vocab", 257)
    assert call(decode, copy, "train", *smallest) == 0
    for name in (runs.WEIGHTS, runs.CONFIG):
        shutil.copy(tiny_run.folder / name, copy.folder / name)
    capsys.readouterr()
    assert call(decode, copy, "caption", run.images / run.names[0]) == 1
    assert "decoder" in capsys.readouterr().err


def test_reject_says_none_of_these_below_the_score(run, capsys):
    photo = run.images / run.names[0]
    (plain,) = scores_of(capsys, run, photo, "--labels", *LABELS)
    best = max(plain["scores"].values())
    (kept,) = scores_of(capsys, run, photo, "--labels", *LABELS, "--reject", best - 0.001)
    (rejected,) = scores_of(capsys, run, photo, "--labels", *LABELS, "--reject", best + 0.001)
    assert kept == plain and rejected == plain | dict(prediction=NONE)


def test_reject_takes_the_score_of_the_run_or_says_that_it_has_none(run, tmp_path, capsys):
    photo = run.images / run.names[0]
    assert call(evaluate, run, photo, "--labels", *LABELS, "--reject") == 1
    assert f"{FEW} or more" in capsys.readouterr().err
    folder = shutil.copytree(run.folder, tmp_path / "run")
    weights, _, record = runs.load_model(folder)
    record["held_out"]["reject"] |= dict(threshold=0.9999, kept=30)
    runs.save_model(folder, weights, record)
    assert call(evaluate, run._replace(folder=folder), photo, "--labels", *LABELS, "--reject") == 0
    out = capsys.readouterr().out
    assert "below 1.00" in out and f"Prediction: {NONE}" in out
