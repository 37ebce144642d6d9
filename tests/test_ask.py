"""train.py and eval.py with questions, on 24 drawings of four shapes in six colors."""

import csv
import json
import shutil

import pytest
import torch
from PIL import Image

import eval
import train
from apps.attention import __main__ as attention
from models import runs
from models.dataset import read_questions, reworded
from models.features.questions import encode_questions
from models.vljepa import VLJEPA
from tests.conftest import COLORS, ROOT, SHAPES, Letters, Run, make_shapes, write_csv
from tests.models.test_distributed import torchrun
from tools import pack

HEADER = ("image_name", "question", "answer", "type")
FLAGS = ["--recipe", "answer", "--epochs", "8", "--hidden", "16", "--lr", "5e-3"]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """A Run that is not trained yet, whose `csv` is a questions file."""
    folder = tmp_path_factory.mktemp("asked")
    archive = make_shapes(folder / "shapes")
    rows = []
    for color in COLORS:
        for i, shape in enumerate(SHAPES):
            name = f"{color}-{shape}.jpg"
            rows += [(name, "What color is it?", color, "color"), (name, "What shape is it?", shape, "shape")]
            rows += [(name, f"Is it {color}?", "yes", "exists")]
            rows += [(name, f"Is it {COLORS[COLORS.index(color) - 1 - i % 2]}?", "no", "exists")]
    questions = write_csv(folder / "questions.csv", rows, HEADER)
    return Run(folder / "run", questions, archive.images, folder / "f.sqlite", archive.names, set()), archive


def flags_of(shapes, run, *more):
    questions, archive = shapes
    flags = questions.flags(run, *FLAGS, *more)
    flags[1] = str(archive.csv)
    return [*flags, "--questions", str(questions.csv)]


@pytest.fixture(scope="session")
def run(shapes):
    """The folder of a run that learned captions and answers."""
    folder = shapes[0].folder
    assert train.main(flags_of(shapes, folder)) == 0
    return folder


@pytest.fixture
def ask(shapes, run, capsys):
    """The standard output of eval.main for a run, by default the trained one."""

    def ask(*flags, of=run):
        capsys.readouterr()
        own = ["--run", of, "--cache", shapes[0].cache, "--device", "cpu", "--quiet"]
        code = eval.main([str(flag) for flag in (*flags, *own)])
        out, errors = capsys.readouterr()
        return (out, errors) if code else out

    return ask


def same(a, b):
    a, b = (runs.load_last(folder)[0] for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_run_learns_to_answer_beyond_the_wording_of_the_question(run):
    log = [json.loads(line) for line in (run / runs.LOG).read_text().splitlines()]
    assert log[-1]["answer_loss"] < log[0]["answer_loss"]
    assert log[-1]["accuracy"] > log[-1]["question_only_accuracy"]
    assert {"val_loss", "text_retrieval_recall@1"} <= log[-1].keys()


def test_resumed_run_equals_the_undisturbed_one_bit_for_bit(shapes, run, tmp_path):
    assert train.main(flags_of(shapes, tmp_path / "run", "--epochs", "3", "--schedule", "constant")) == 0
    assert train.main(["--run", str(tmp_path / "run"), "--resume", "--epochs", "5", "--quiet"]) == 0
    assert train.main(flags_of(shapes, tmp_path / "whole", "--epochs", "5", "--schedule", "constant")) == 0
    assert same(tmp_path / "run", tmp_path / "whole")


def test_captions_are_learned_as_without_questions(shapes, tmp_path):
    """The predictors share no parameters, and without dropout no random numbers."""
    flags = ["--epochs", "2", "--dropout", "0", "--input-dropout", "0", "--lr", "1e-2", "--warmup", "0"]
    flags += ["--schedule", "constant", "--batch-size", "64"]  # one step per epoch
    assert train.main(flags_of(shapes, tmp_path / "both", *flags)) == 0
    captions_alone = flags_of(shapes, tmp_path / "captions", *flags, "--recipe", "retrieval")[:-2]
    assert train.main(captions_alone) == 0
    both, captions = (runs.load_last(tmp_path / name)[0] for name in ("both", "captions"))
    for name, value in captions.items():
        if name.startswith("predictor."):
            found = both[name.replace("predictor.", "predictor.captions.")]
            assert (found - value).abs().max() < 1e-6


def test_questions_alone_train_too_and_then_know_no_captions(shapes, ask, tmp_path):
    flags = flags_of(shapes, tmp_path / "alone", "--epochs", "1")[2:]  # without --csv
    assert train.main(flags) == 0
    photo = shapes[1].images / "red-line.jpg"
    assert ask(photo, "--ask", "What color is it?", of=tmp_path / "alone").startswith("Answer: ")
    assert "--csv" in ask(photo, of=tmp_path / "alone")[1]


def test_ask_prints_the_answer_and_the_five_best(shapes, ask):
    out = ask(shapes[1].images / "red-line.jpg", "--ask", "What color is it?")
    lines = out.splitlines()
    assert lines[0].startswith("Answer: ") and len(lines) == 6
    scores = [float(line.split()[0]) for line in lines[1:]]
    assert scores == sorted(scores, reverse=True) and lines[1].split()[1] == lines[0].removeprefix("Answer: ")


def test_ask_chooses_from_the_answers_that_are_given(shapes, ask):
    photo = shapes[1].images / "red-line.jpg"
    results = json.loads(
        ask(photo, "--json", "--ask", "What color is it?", "Is it red?", "--answers", "maybe", "so")
    )
    assert [result["question"] for result in results] == ["What color is it?", "Is it red?"]
    assert all(set(result["scores"]) == {"maybe", "so"} for result in results)


def test_question_unlike_all_of_training_gets_a_note(shapes, ask):
    photo = shapes[1].images / "red-line.jpg"
    assert "note:" not in ask(photo, "--ask", "What color is this?")
    assert "note:" in ask(photo, "--ask", "Who won the election in 1932?")


def test_run_without_questions_refuses_to_answer(tiny_run, ask):
    _, errors = ask(tiny_run.images / tiny_run.names[0], "--ask", "What is it?", of=tiny_run.folder)
    assert str(tiny_run.folder) in errors and "--questions" in errors


def test_accuracy_table_has_its_rows_types_and_intervals(shapes, ask):
    result = json.loads(ask("--questions", shapes[0].csv, "--held-out", "--json"))
    names = ["most frequent answer", "question only", "mismatched images", "this model"]
    assert result["task"] == "visual_question_answering" and list(result["rows"]) == names
    assert set(result["metrics"]["accuracy_by_type"]) == {"color", "shape", "exists"}
    low, high = result["interval_95"]["accuracy"]
    assert low <= result["metrics"]["accuracy"] <= high
    log = [json.loads(line) for line in (shapes[0].folder / runs.LOG).read_text().splitlines()]
    assert result["metrics"]["accuracy"] in [entry["accuracy"] for entry in log]


def test_retrieval_of_the_same_run_is_that_of_its_captions(shapes, ask):
    out = ask("--csv", shapes[1].csv)
    assert "untrained predictor" in out and "this model" in out


def test_shared_model_answers_as_the_run_and_names_no_training_image(shapes, run, ask, tmp_path):
    model = VLJEPA.load(run)
    model.save_pretrained(tmp_path / "shared")
    shared = VLJEPA.from_pretrained(str(tmp_path / "shared"))
    photos = [shapes[1].images / name for name in shapes[1].names[:3]]
    asked = ["What color is it?", "Is it pink?"]
    assert shared.answer(photos, asked) == model.answer(photos, asked)
    public = b"".join(path.read_bytes() for path in (tmp_path / "shared").iterdir())
    assert not any(name.encode() in public for name in shapes[1].names)
    flags = ("--questions", shapes[0].csv, "--images", shapes[1].images, "--json")
    rows = json.loads(ask(*flags, of=tmp_path / "shared").partition("{")[2].join(["{", ""]))["rows"]
    assert "most frequent answer" not in rows and "this model" in rows


def test_answer_takes_one_or_many_of_images_and_questions(shapes, run):
    model = VLJEPA.load(run)
    photo = shapes[1].images / "red-line.jpg"
    one = model.answer(photo, "What color is it?")
    assert isinstance(one, str) and one in model.config["answers"]
    assert model.answer([photo], "What color is it?") == [one]
    assert model.answer(photo, ["What color is it?"]) == [one]
    assert model.answer([photo], ["What color is it?"]) == [[one]]
    assert model.answer_scores([photo, photo], ["a?", "b?", "c?"], ["x", "y"]).shape == (2, 3, 2)


def test_recipe_of_answers_without_questions_is_refused(tmp_path, capsys):
    assert train.main(["--recipe", "answer", "--run", str(tmp_path / "run")]) == 1
    assert "--questions" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_run_from_before_questions_is_resumed(tiny_run, tmp_path):
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    tensors, facts = runs.load_last(tmp_path / "run")
    del facts["recipe"]["questions"]
    runs.save_last(tmp_path / "run", tensors, facts)
    assert train.main(["--resume", "--run", str(tmp_path / "run"), "--epochs", "13", "--quiet"]) == 0


def test_captions_and_single_images_among_questions_are_told(shapes, ask, tmp_path):
    name = shapes[1].names[0]
    rows = [(name, "What color is it?", "red", "color"), (name, "", "a caption", "")]
    out = ask("--questions", write_csv(tmp_path / "q.csv", rows, HEADER), "--images", shapes[1].images)
    assert "1 of 2 rows" in out and "mismatched" not in out


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (("image_name", "question"), ("a.jpg", "Is it red?"), "answer"),
        (HEADER, ("a.jpg", "Is it?", "", ""), "answer is empty"),
    ],
)
def test_wrong_questions_file_is_told_in_its_own_words(tmp_path, header, row, said):
    with pytest.raises(ValueError, match=said) as caught:
        read_questions(write_csv(tmp_path / "q.csv", [row], header))
    assert "--caption-column" not in str(caught.value)


def test_missing_questions_file_is_named(shapes, run, ask, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    tensors, facts = runs.load_last(tmp_path / "run")
    facts["recipe"]["questions"] = str(tmp_path / "gone.csv")
    runs.save_last(tmp_path / "run", tensors, facts)
    _, errors = ask("--questions", shapes[0].csv, of=tmp_path / "run")
    assert "gone.csv" in errors


def test_attention_to_a_question_is_a_share_of_every_place(shapes, run):
    model = VLJEPA.load(run)
    photo = shapes[1].images / "red-line.jpg"
    weights = model.attention(photo, ["What color is it?", "Is it pink?"])
    assert weights.shape == (2, 49) and (weights > 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(2), atol=1e-5)


def test_attention_draws_one_panel_per_question(shapes, run, capsys, tmp_path):
    photo, out = shapes[1].images / "red-line.jpg", tmp_path / "map.png"
    asked = ["What color is it?", "Is it pink?"]
    flags = [photo, "--ask", *asked, "--out", out, "--run", run, "--device", "cpu"]
    assert attention.main([str(flag) for flag in flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith(question) for line, question in zip(lines, asked)] == [True, True]
    with Image.open(out) as image:
        assert image.width > 2 * image.height


def test_tars_train_the_model_of_their_csv_bit_for_bit(shapes, run, tmp_path, capsys):
    questions, archive = shapes
    sources = ["--csv", str(archive.csv), "--questions", str(questions.csv), "--images", str(archive.images)]
    assert pack.main([*sources, "--out", str(tmp_path / "t-{}.tar"), "--per-shard", "10"]) == 0
    flags = questions.flags(tmp_path / "run", *FLAGS, "--shards", str(tmp_path / "t-{0..2}.tar"))
    flags += ["--shard-features", str(tmp_path / "features")]
    assert train.main(flags) == 0
    found, expected = (runs.load_last(folder)[0] for folder in (tmp_path / "run", run))
    assert len(found.pop("trained_on")) < len(expected.pop("trained_on"))  # a run from tars keeps no names
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert train.main([*flags, "--resume", "--epochs", "9"]) == 0
    model = VLJEPA.load(tmp_path / "run", device="cpu")
    assert model.answer(archive.images / "red-line.jpg", "What color is it?") in COLORS
    assert train.main([*flags, "--questions", "q.csv"]) == 1
    assert "--questions: " in capsys.readouterr().err


def test_reworded_questions_are_learned_beside_the_originals(shapes):
    assert reworded("What color is it?") != [] and "What color is it?" not in reworded("What color is it?")
    questions = encode_questions(read_questions(shapes[0].csv), shapes[0].names, Letters().encode_tokens)
    for text, own in zip(questions.texts, questions.wordings.tolist()):
        expected = Letters().encode_tokens([text, *reworded(text)])
        for number, states in zip(own, expected):
            (found,) = questions.tokens[torch.tensor([number])]
            assert torch.equal(found, states.half().float())
        assert set(own[len(expected) :]) <= {own[0]}


def test_no_rewording_of_training_is_one_of_the_test():
    with open(ROOT / "tests" / "models" / "rewordings.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["reworded"] not in reworded(row["question"])


def test_model_card_shows_how_to_ask(run, tmp_path):
    VLJEPA.load(run).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "model.answer(" in card and "96 questions" not in card.split("## Data")[0] and "% right" in card


def test_two_processes_learn_the_answers_of_one(shapes, tmp_path):
    flags = ["--dropout", "0", "--epochs", "2", "--lr", "1e-3", "--device", "cpu"]
    assert train.main(flags_of(shapes, tmp_path / "one", *flags)) == 0
    job = torchrun(2, flags_of(shapes, tmp_path / "two", *flags))
    _, errors = job.communicate(timeout=200)
    assert job.returncode == 0, errors
    one, two = (runs.load_last(tmp_path / name)[0] for name in ("one", "two"))
    for name in one:
        if name.startswith("predictor."):
            assert torch.allclose(one[name], two[name], rtol=0, atol=1e-4), name
