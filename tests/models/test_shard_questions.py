"""Questions in tars: read as from a CSV, with the places of their images, or passed over and counted."""

import json
from argparse import Namespace

import pytest
import torch

from models.features import encode_archive, shard_files, tars
from models.features.load import dataset_of
from models.features.questions import encode_questions
from models.features.shards import encode_shards, open_shards
from models.files import packed
from tests.conftest import Letters, make_archive, write_csv
from tests.models.test_features import Joined
from tests.models.test_questions import HEADER, ROWS, Places
from tests.models.test_shards import GOOD, X, make_tar
from tools import pack


@pytest.fixture
def asked(tmp_path):
    """(flags of pack for four images with captions and questions, their data set)."""
    archive = make_archive(tmp_path / "archive", count=4)
    questions = write_csv(tmp_path / "questions.csv", ROWS, HEADER)
    flags = ["--csv", str(archive.csv), "--questions", str(questions), "--images", str(archive.images)]
    columns = dict(
        image_column="image_name", caption_column="comment", caption_lists=False, follow_links=False
    )
    args = Namespace(csv=archive.csv, questions=questions, images=archive.images, **columns)
    return flags, dataset_of(args, skip_bad=False)


def encode(pattern, folder, tower=None, questions=True):
    towers = tower or Places(), Letters()
    names = encode_shards(str(pattern), folder, *towers, workers=1, quiet=True, questions=questions)
    return open_shards(folder, names)


def pairs_of(tmp_path, *members):
    """([(name, question, answer, type), ...] of a tar, its Tally)."""
    found = encode(make_tar(tmp_path / "t.tar", members), tmp_path / "f")
    names = found.names()
    rows = [(names[row.image_name], row.question, row.text, row.type) for row in found.questions]
    return rows, found.tally


@pytest.mark.parametrize("tower", [Places(), Joined(Places("one"), Places("two"))], ids=["one", "joined"])
def test_packed_questions_and_places_equal_those_of_the_csv(asked, tmp_path, capsys, tower):
    flags, dataset = asked
    assert pack.main([*flags, "--out", str(tmp_path / "t-{}.tar"), "--per-shard", "3"]) == 0
    assert "4 images, 8 members" in capsys.readouterr().out
    shards = encode(tmp_path / "t-{0..1}.tar", tmp_path / "f", tower)
    cache = tmp_path / "f.sqlite"
    features = encode_archive(dataset, tower, Letters(), cache, quiet=True, places=True)
    found = encode_questions(shards.questions, range(4), Letters().encode_tokens)
    for name in ("image_of", "question_of", "wordings", "texts", "answers", "types"):
        a, b = getattr(found, name), getattr(features.questions, name)
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    index, mask = torch.tensor([3, 0, 0, 2]), torch.tensor([True, False, False, True])
    assert shards.places.shape == features.places.shape == (4, 4, 3 * len(tower.parts))
    assert torch.equal(shards.places[index], features.places[index])
    assert torch.equal(shards.places[mask][torch.tensor([1])], features.places[torch.tensor([3])])
    assert torch.equal(shards.image[:], features.image)


A, B = ("What is it?", "a dog"), ("Is it red?", "no")
RECORDS = {
    "a list": (
        dict(questions=[dict(question=A[0], answer=A[1], type="what"), dict(question=B[0], answer=B[1])]),
        [(*A, "what"), (*B, "")],
    ),
    "plain": (dict(question=A[0], answer=A[1]), [(*A, "")]),
    "two lists": (dict(question=[A[0], B[0]], answer=[A[1], B[1]]), [(*A, ""), (*B, "")]),
    "several right answers": (
        dict(question=A[0], answer=["a dog", " a pet "], type="what"),
        [(*A, "what"), (A[0], "a pet", "what")],
    ),
    "both": (
        dict(questions=dict(question=A[0], answer=A[1]), question=B[0], answer=B[1]),
        [(*A, ""), (*B, "")],
    ),
}


@pytest.mark.parametrize("case", RECORDS)
def test_questions_are_read_in_each_documented_form(tmp_path, case):
    record, pairs = RECORDS[case]
    content = json.dumps(record).encode()
    rows, tally = pairs_of(tmp_path, *GOOD, X, ("x.json", content))
    assert rows == [("x.jpg", *pair) for pair in pairs]
    assert (tally.seen, tally.read, tally.left_out) == (6, 6, {})
    rows, tally = pairs_of(tmp_path / "txt", X, ("x.json", content), ("x.txt", b"a caption"))
    assert rows == [("x.jpg", *pair) for pair in pairs] and tally.read == 3


ODD = [
    dict(question="What?"),
    dict(answer="a dog"),
    dict(question="", answer="a dog"),
    dict(question="What?", answer=" "),
    dict(question="What?", answer=3),
    dict(question="What?", answer=[]),
    dict(question="What?", answer=["a dog", None]),
    dict(question="What?", answer="a dog", type=7),
    dict(question="\ud800", answer="a dog"),
    "What?",
    None,
]


def test_questions_without_text_are_counted(tmp_path):
    good = dict(question=A[0], answer=A[1])
    content = json.dumps(dict(captions=["a", "", " "], questions=[*ODD, good])).encode()
    rows, tally = pairs_of(tmp_path, X, ("x.json", content))
    assert rows == [("x.jpg", *A, "")]
    assert list(tally.passed_over.values()) == [len(ODD), 2] and "2 empty captions" in str(tally)
    lists = json.dumps(dict(captions=["a"], question=["What?", "Who?"], answer=["a dog"])).encode()
    rows, tally = pairs_of(tmp_path / "lists", X, ("x.json", lists))
    assert rows == [("x.jpg", "What?", "a dog", "")] and list(tally.passed_over.values()) == [1]


def test_run_without_questions_says_how_many_it_passes_over(asked, tmp_path, caplog):
    caplog.set_level("INFO")
    assert pack.main([*asked[0], "--out", str(tmp_path / "t-{}.tar")]) == 0
    shards = encode(tmp_path / "t-0.tar", tmp_path / "f", questions=False)
    assert (shards.questions, shards.places) == ([], None)
    assert shards.tally.passed_over == {tars.QUESTIONS: 6} and "passed over 6 questions" in caplog.text


def test_image_with_questions_alone_is_left_out_without_them(tmp_path):
    content = json.dumps(dict(question=A[0], answer=A[1])).encode()
    tar = make_tar(tmp_path / "t.tar", [*GOOD, X, ("x.json", content)])
    shards = encode(tar, tmp_path / "with")
    assert shards.names() == ["a.jpg", "b.jpg", "x.jpg"] and shards.image_of.tolist() == [0, 1]
    shards = encode(tar, tmp_path / "without", questions=False)
    assert shards.names() == ["a.jpg", "b.jpg"] and shards.tally.left_out[tars.NO_CAPTION][0] == 2


def test_shards_made_with_questions_and_without_are_told_apart(asked, tmp_path):
    assert pack.main([*asked[0], "--out", str(tmp_path / "t-{}.tar")]) == 0
    for first in (True, False):
        folder = tmp_path / f"{first}"
        encode(tmp_path / "t-0.tar", folder, questions=first)
        with pytest.raises(ValueError, match=r"t-0\.safetensors: .*--recipe answer"):
            encode(tmp_path / "t-0.tar", folder, questions=not first)


@pytest.mark.parametrize("name", ["asked_about", "questions", "places-0"])
def test_damaged_questions_are_named(asked, tmp_path, name):
    assert pack.main([*asked[0], "--out", str(tmp_path / "t-{}.tar")]) == 0
    encode(tmp_path / "t-0.tar", tmp_path / "f")
    path = tmp_path / "f" / "t-0.safetensors"
    metadata, tensors, tally = shard_files.read(path)
    wrong = dict(asked_about=tensors["asked_about"] + 2, questions=packed([]))
    tensors[name] = wrong.get(name, tensors["places-0"][1:])
    tensors = {key: value.clone() for key, value in tensors.items()}
    keys = (*shard_files.DIGESTED, "tar_size", "tar_mtime_ns")
    shard_files.write(path, tensors, tally, {key: metadata[key] for key in keys})
    with pytest.raises(ValueError, match=r"t-0\.safetensors: damaged"):
        open_shards(tmp_path / "f")


def test_files_that_a_mac_leaves_beside_feature_shards_are_passed_over(tmp_path):
    (tmp_path / "._a.safetensors").write_bytes(b"\0\5\26\7")
    with pytest.raises(ValueError, match="no features in it"):
        open_shards(tmp_path)
