"""Whatever goes into a captions file, a list of names or an official data set comes out or is counted:
used + left out by reason = seen. The right counts are those of what was put in."""

import io
import json
import logging
import re
from collections import Counter
from contextlib import contextmanager, redirect_stdout

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eval as evaluate
import train
from models.dataset import VisionTextDataset, read_class_names, read_labels, read_rows
from models.features import encode_archive
from tests.conftest import Letters, Pixels, make_archive, write_csv
from tools.prepare.__main__ import main as prepare

TALLY = re.compile(r"(\d+) (\w+) = (\d+) used \+ (\d+) left out(?: \((.*)\))?$", re.M)
FEW = dict(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))


def tallies(text):
    """[(unit, used, {reason: count})] of each tally in a text, which must add up."""
    found = []
    for seen, unit, used, left_out, reasons in TALLY.findall(text):
        counts = dict(reversed(reason.split(" ", 1)) for reason in reasons.split(", ")) if reasons else {}
        counts = {reason: int(count) for reason, count in counts.items()}
        assert int(seen) == int(used) + int(left_out) and sum(counts.values()) == int(left_out)
        found.append((unit, int(used), counts))
    return found


@contextmanager
def logged():
    """Yield a list to which the messages of models.* are added."""
    messages, handler, logger = [], logging.Handler(), logging.getLogger("models")
    handler.emit = lambda record: messages.append(record.getMessage())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images 000.jpg to 007.jpg, cut.jpg, which does not decode, and a file outside their folder."""
    archive = make_archive(tmp_path_factory.mktemp("place"))
    whole = (archive.images / "000.jpg").read_bytes()
    (archive.images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (archive.images.parent / "outside.jpg").write_bytes(whole)
    return archive


WORDS = st.text(st.characters(codec="utf-8", exclude_characters='\0\r"[]'), min_size=1, max_size=9)
WORDS = WORDS.map(str.strip).filter(bool)
# kind of a row: (its fields, why it is left out or None, its captions)
ROWS = {
    "good": lambda words: (["000.jpg", *words], None, 2),
    "one empty": lambda words: (["001.jpg", words[0], " "], None, 1),
    "list": lambda words: (["002.jpg", json.dumps(words), words[0]], None, 3),
    "empty list": lambda words: (["002.jpg", "[]", ""], "empty caption", 0),
    "bad list": lambda words: (["002.jpg", json.dumps([words[0], 1]), ""], "list of no texts", 0),
    "empty": lambda words: (["003.jpg", "", "\u3000"], "empty caption", 0),
    "no name": lambda words: ([" ", *words], "empty image name", 0),
    "short": lambda words: (["004.jpg", words[0]], "wrong number of fields", 0),
    "long": lambda words: (["004.jpg", *words, "more"], "wrong number of fields", 0),
    "blank": lambda words: (["", " ", ""], "blank", 0),
    "missing": lambda words: (["gone.jpg", *words], "no such file", 0),
    "outside": lambda words: (["../outside.jpg", *words], "leads out of the image folder", 0),
    "damaged": lambda words: (["cut.jpg", *words], "unusable image", 0),
}
MADE = st.lists(st.tuples(st.sampled_from(list(ROWS)), st.tuples(WORDS, WORDS)), max_size=12)


@settings(**FEW)
@given(made=MADE, separator=st.sampled_from(",;\t|"), declared=st.booleans(), bom=st.booleans())
def test_rows_of_a_captions_file_come_out_or_are_counted(place, made, separator, declared, bom):
    rows = [ROWS[kind](list(words)) for kind, words in [("good", ("first", "row")), *made]]
    path = place.csv.with_name("made.csv")
    lines = [["image_name", "a", "b"], *(fields for fields, _, _ in rows)]
    quoted = [separator.join('"' + field.replace('"', '""') + '"' for field in line) for line in lines]
    text = f"sep={separator}\n" * declared + "\n\n".join(quoted)  # blank lines are no rows
    path.write_text("\ufeff" * bom + text, encoding="utf-8")
    dataset = VisionTextDataset(path, None, place.images, "image_name", ["a", "b"], True, caption_lists=True)
    with logged() as messages:
        features = encode_archive(dataset, Pixels(), Letters(), cache=None, quiet=True, workers=1)
    expected = Counter(why for _, why, _ in rows if why)
    ((unit, used, left_out),) = tallies("\n".join(messages))
    assert (unit, used, left_out) == ("rows", len(rows) - expected.total(), expected)
    assert len(features.text) == len(dataset) == sum(captions for *_, captions in rows)


@settings(**FEW)
@given(lines=st.lists(st.sampled_from(["", " ", "a dog", "a boat ", "sep=;", "un café"]), max_size=9))
def test_lines_of_labels_come_out_or_are_counted(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "labels.txt"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    labels = [line.strip() for line in lines if line.strip()]
    if lines[:1] == ["sep=;"]:
        labels = labels[1:]
    if not labels:
        with pytest.raises(ValueError, match="labels.txt: no labels"):
            read_labels(path)
        return
    with logged() as messages:
        assert read_labels(path) == list(dict.fromkeys(labels))
    ((unit, used, left_out),) = tallies(messages[0])
    repeated = len(labels) - len(set(labels))
    assert (unit, used) == ("lines", len(set(labels))) and left_out.get("repeated", 0) == repeated
    assert left_out.get("blank", 0) == len(lines) - len(labels)


@settings(**FEW)
@given(
    given_to=st.lists(st.sampled_from(["dog", "dog house", "cat", "other", ""]), max_size=6),
    separator=st.sampled_from(["\t", " ", ","]),
)
def test_class_names_are_all_used_or_refused(tmp_path_factory, given_to, separator):
    path, folders = tmp_path_factory.getbasetemp() / "names.txt", ["dog", "dog house", "cat"]
    lines = [folder and f"{folder}{separator}name {i}" for i, folder in enumerate(given_to)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    wanted = {folder: f"name {i}" for i, folder in enumerate(given_to) if folder}
    if sorted(filter(None, given_to)) == sorted(folders):
        with logged() as messages:
            assert read_class_names(path, folders) == wanted
        assert tallies(messages[0])[0][1] == 3
        return
    with pytest.raises(ValueError, match=r"names\.txt") as error:
        read_class_names(path, folders)
    assert all(f"{folder}: no line" in str(error.value) for folder in folders if folder not in given_to)
    wrong = [i for i, folder in enumerate(given_to, 1) if folder == "other" or folder in given_to[: i - 1]]
    assert [i for i in wrong if lines[i - 1] and f"line {i}: " not in str(error.value)] == []


# kind of a caption: (the image's name, the caption, the split, why it is left out)
CAPTIONS = {
    "good": ("a.jpg", "A dog .", "train", None),
    "another": ("sub/b.jpg", "A cat .", "train", None),
    "empty": ("a.jpg", " ", "train", "empty caption"),
    "missing": ("gone.jpg", "A cat .", "train", "not in the image folder"),
    "outside": ("../outside.jpg", "A cat .", "train", "outside the image folder"),
    "case": ("A.JPG", "A cat .", "train", "in the image folder under another name (another case)"),
    "val": ("a.jpg", "A bird .", "val", "of another split"),
}


@settings(**FEW)
@given(
    kinds=st.lists(st.sampled_from(list(CAPTIONS)), max_size=10),
    form=st.sampled_from(["karpathy", "coco", "flickr8k"]),
)
def test_captions_of_official_files_come_out_or_are_counted(tmp_path_factory, kinds, form):
    folder = tmp_path_factory.getbasetemp() / "prepare"
    (folder / "images" / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("images/a.jpg", "images/sub/b.jpg", "outside.jpg"):
        (folder / name).write_bytes(b"image")
    kinds = ["good", *(kind for kind in kinds if form == "karpathy" or kind != "val")]
    captions = [CAPTIONS[kind] for kind in kinds]
    source, flags = folder / "captions_train2017.json", []
    if form == "karpathy":
        data = [dict(filename=name, split=s, sentences=[dict(raw=text)]) for name, text, s, _ in captions]
        source.write_text(json.dumps(dict(images=data)))
        flags = ["--split", "train"]
    elif form == "coco":
        names = list(dict.fromkeys(name for name, *_ in captions))
        images = [dict(id=i, file_name=name) for i, name in enumerate(names)]
        told = [dict(image_id=names.index(name), caption=text) for name, text, *_ in captions]
        told.append(dict(image_id=99, caption="Lost ."))
        captions.append((None, None, None, "annotation of an unknown image"))
        source.write_text(json.dumps(dict(images=images, annotations=told)))
    else:
        source.write_text("image,caption\n" + "".join(f"{name},{text}\n" for name, text, *_ in captions))
    flags += ["--images", str(folder / "images"), "--out", str(folder), "--overwrite"]
    with redirect_stdout(io.StringIO()) as out:
        assert prepare([form, str(source), *flags]) == 0
    expected = Counter(why for *_, why in captions if why)
    assert tallies(out.getvalue()) == [("captions", len(captions) - expected.total(), expected)]
    found = Counter((row.image_name, row.text) for row in read_rows(folder / "caption.csv"))
    assert found == Counter((name, text) for name, text, _, why in captions if not why)


def test_split_list_is_counted_line_by_line(tmp_path, capsys):
    source, names = tmp_path / "token.txt", tmp_path / "names.txt"
    source.write_text("a.jpg#0\tA .\nb.jpg#0\tB .\nc.jpg#0\tC .\n")
    names.write_text("a.jpg\n\nb\na.jpg\nnone.jpg\n")
    assert prepare(["flickr8k", str(source), "--split", str(names), "--out", str(tmp_path / "out")]) == 0
    assert tallies(capsys.readouterr().out) == [
        ("lines", 2, {"blank": 1, "repeated": 1, "without a caption": 1}),
        ("captions", 2, {"of another split": 1}),
    ]


def test_train_and_eval_say_what_became_of_every_row(tiny_run, tmp_path, caplog):
    rows = [(row.image_name, row.text) for row in read_rows(tiny_run.csv)]
    path = write_csv(tmp_path / "more.csv", [*rows, ("gone.jpg", "x"), ("red-line.jpg", ""), ("", "")])
    run = tiny_run._replace(csv=path)
    assert train.main(run.flags(tmp_path / "run", "--epochs", "1", "--skip-bad")) == 0
    left_out = {"empty caption": 1, "blank": 1, "no such file": 1}
    assert tallies(caplog.text) == [("rows", 48, left_out)]
    caplog.clear()
    flags = ["--csv", path, "--run", tiny_run.folder, "--cache", tiny_run.cache, "--held-out", "--skip-bad"]
    assert evaluate.main([*map(str, flags), "--quiet"]) == 0
    ((_, used, reasons),) = tallies(caplog.text)
    trained_on = 2 * len(tiny_run.trained_on)
    assert (used, reasons) == (48 - trained_on, left_out | {"of images it was trained on": trained_on})
