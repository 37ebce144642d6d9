"""tools/prepare on small files in the official formats of seven question sets."""

import copy
import csv
import json
from typing import NamedTuple

import pytest

from models.dataset import read_rows
from tools.prepare.__main__ import main

OTHERS = ["blue"] * 3 + ["navy", "sky", "teal", "aqua"]  # with three of "red", ten annotators


def annotated(answers):
    """The `answers` of VQAv2."""
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(answers, 1)]


VQA_QUESTIONS = {
    "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0"},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "license": {"name": "Creative Commons Attribution 4.0 International License"},
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 393225, "question": "What color is it?", "question_id": 393225000},
    ],
}
VQA_ANNOTATIONS = {
    "info": VQA_QUESTIONS["info"],
    "data_type": "mscoco",
    "data_subtype": "val2014",
    "license": VQA_QUESTIONS["license"],
    "annotations": [
        {
            "question_type": "what color",
            "multiple_choice_answer": "red",
            "answers": annotated(["red"] * 3 + OTHERS),
            "image_id": 393225,
            "answer_type": "other",
            "question_id": 393225000,
        },
        {
            "question_type": "where is",
            "multiple_choice_answer": "down",
            "answers": annotated(["down"] * 10),
            "image_id": 262148,
            "answer_type": "other",
            "question_id": 262148000,
        },
    ],
}
GQA = {
    "201307251": {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "scene"}],
        "entailed": [],
        "equivalent": ["201307251"],
        "question": "Is it overcast?",
        "imageId": "n161313",
        "isBalanced": True,
        "groups": {"global": None, "local": "13-weather"},
        "answer": "no",
        "semanticStr": "select: scene->verify weather: overcast [0]",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear.",
    }
}


def clevr(*functions):
    """A question of CLEVR whose program has these functions."""
    steps = [{"inputs": [i], "function": name, "value_inputs": []} for i, name in enumerate(functions)]
    return {
        "image_index": 0,
        "program": steps,
        "question_index": 0,
        "image_filename": "CLEVR_val_000000.png",
        "question_family_index": 2,
        "split": "val",
        "answer": "yes",
        "question": "Are there any other things that are the same shape as the big metallic object?",
    }


CLEVR = {"info": {"split": "val", "version": "1.0"}, "questions": [clevr("scene", "same_shape", "exist")]}
TALLYQA = [
    {
        "answer": 4,
        "data_source": "imported_genome",
        "image": "VG_100K_2/2410408.jpg",
        "image_id": 92410408,
        "issimple": False,
        "question": "How many headlights does the black bus have?",
        "question_id": 30095774,
    }
]
POPE = {
    "question_id": 1,
    "image": "COCO_val2014_000000016631.jpg",
    "text": "Is there a person in the image?",
    "label": "yes",
}
VIZWIZ = [
    {
        "image": "VizWiz_val_00000000.jpg",
        "question": "Ok. There is another picture I hope it is a better one.",
        "answers": [
            {"answer": text, "answer_confidence": "yes"} for text in ["unanswerable"] * 8 + ["unsuitable"] * 2
        ],
        "answer_type": "unanswerable",
        "answerable": 0,
    }
]
COCOQA = {
    "questions.txt": "what is on the table\nhow many cats are there\n",
    "answers.txt": "laptop\ntwo\n",
    "img_ids.txt": "137\n581929\n",
    "types.txt": "0\n1\n",
}


class Done(NamedTuple):
    code: int
    rows: list | None  # of questions.csv, None when there is no such file
    out: str
    err: str


@pytest.fixture
def run(tmp_path, capsys):
    """run(data set, {file name: text or JSON value}, *flags, sources=the names in order) -> Done."""

    def go(kind, files, *flags, sources=None):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text, "utf-8")
        named = [str(tmp_path / name) for name in (files if sources is None else sources)]
        code = main([kind, *named, "--out", str(tmp_path / "out"), *map(str, flags)])
        path, rows = tmp_path / "out" / "questions.csv", None
        if path.exists():
            with open(path, encoding="utf-8", newline="") as file:
                header, *rows = map(tuple, csv.reader(file))
            assert header == ("image_name", "question", "answer", "type")
        return Done(code, rows, *capsys.readouterr())

    return go


def edited(data, change):
    """A deep copy of `data` that `change` has edited."""
    new = copy.deepcopy(data)
    change(new)
    return new


def vqa(questions=VQA_QUESTIONS, annotations=VQA_ANNOTATIONS):
    return {"q.json": questions, "a.json": annotations}


def in_folder(name, files):
    return {f"{name}/{file}": text for file, text in files.items()}


def test_vqav2_has_a_row_per_annotator(run, tmp_path):
    done = run("vqav2", vqa())
    color, where = "COCO_val2014_000000393225.jpg", "COCO_val2014_000000262148.jpg"
    rows = [(color, "What color is it?", text, "other") for text in ["red"] * 3 + OTHERS]
    assert done.rows == rows + [(where, "Where is he looking?", "down", "other")] * 10
    assert "2 questions; by type: other 2\n" in done.out
    assert "20 answers; per question min 10, median 10, max 10\n" in done.out
    assert f"written: {tmp_path}/out/questions.csv\n" in done.out


def test_gqa_type_is_structural(run):
    assert run("gqa", {"testdev_balanced_questions.json": GQA}).rows == [
        ("n161313.jpg", "Is it overcast?", "no", "verify")
    ]


@pytest.mark.parametrize(
    ("functions", "kind"),
    [
        (["scene", "count"], "count"),
        (["scene", "exist"], "exist"),
        (["scene", "unique", "query_color"], "query attribute"),
        (["query_size", "equal_size"], "compare attribute"),
        (["count", "equal_integer"], "compare integer"),
        (["count", "greater_than"], "compare integer"),
        ([], ""),
    ],
)
def test_clevr_type_is_the_last_function(run, functions, kind):
    question = clevr(*functions)
    done = run("clevr", {"CLEVR_val_questions.json": CLEVR | {"questions": [question]}})
    assert done.rows == [("CLEVR_val_000000.png", question["question"], "yes", kind)]


def test_clevr_reads_what_its_generator_writes(run):
    question = clevr() | {"program": [{"type": "scene", "inputs": []}, {"type": "count", "inputs": [0]}]}
    assert run("clevr", {"q.json": {"questions": [question]}}).rows[0][3] == "count"
    del question["program"]
    assert run("clevr", {"q.json": {"questions": [question]}}, "--overwrite").rows[0][3] == ""


@pytest.mark.parametrize(("simple", "kind"), [(True, "simple"), (False, "complex"), (None, "")])
def test_tallyqa_type_is_simple_or_complex(run, simple, kind):
    entry = TALLYQA[0] | {"issimple": simple}
    if simple is None:
        del entry["issimple"]  # as in train.json
    done = run("tallyqa", {"test.json": [entry]})
    assert done.rows == [("VG_100K_2/2410408.jpg", entry["question"], "4", kind)]


def test_pope_type_is_the_setting_of_the_file(run):
    line = json.dumps(POPE) + "\n"
    names = ["coco_pope_random.json", "coco_pope_popular.json", "coco_pope_adversarial.json", "mine.json"]
    done = run("pope", {name: line for name in names})
    assert [row[3] for row in done.rows] == ["random", "popular", "adversarial", ""]
    assert {row[:3] for row in done.rows} == {(POPE["image"], POPE["text"], "yes")}
    assert "1 images\n" in done.out and "by type: random 1, popular 1, adversarial 1, none 1\n" in done.out


def test_vizwiz_keeps_unanswerable(run):
    done = run("vizwiz", {"val.json": VIZWIZ})
    assert [row[2] for row in done.rows] == ["unanswerable"] * 8 + ["unsuitable"] * 2
    assert {row[3] for row in done.rows} == {"unanswerable"}


@pytest.mark.parametrize(("split", "folder"), [("train", "train2014"), ("test", "val2014")])
def test_cocoqa_joins_its_files_by_line(run, split, folder):
    assert run("cocoqa", in_folder(split, COCOQA), sources=[split]).rows == [
        (f"COCO_{folder}_000000000137.jpg", "what is on the table", "laptop", "object"),
        (f"COCO_{folder}_000000581929.jpg", "how many cats are there", "two", "number"),
    ]


def test_csv_is_read_as_questions(run, tmp_path):
    texts = ["NA", "001", 'a "b", c', "Straße 🐕 = 犬"]
    run("vizwiz", {"val.json": [VIZWIZ[0] | {"answers": annotated(texts), "question": " What\nis  it? "}]})
    rows = read_rows(tmp_path / "out" / "questions.csv", "image_name", "answer", "question")
    assert [row.text for row in rows] == texts
    assert {row[:2] for row in rows} == {("VizWiz_val_00000000.jpg", "What is it?")}


def test_questions_of_missing_images_are_dropped_and_counted(run, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / POPE["image"]).write_bytes(b"image")
    names = [POPE["image"], "9.jpg", "9.jpg", "../q.json"]
    lines = "".join(json.dumps(POPE | {"image": name}) + "\n" for name in names)
    done = run("pope", {"q.json": lines}, "--images", tmp_path / "images")
    assert [row[0] for row in done.rows] == [POPE["image"]]
    assert "2 questions dropped, not in the image folder: 9.jpg\n" in done.out
    assert "1 questions dropped, outside the image folder: ../q.json\n" in done.out


def test_questions_of_2014_are_found_in_a_folder_of_2017(run, tmp_path):
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    (tmp_path / "coco" / "val2017" / "000000000042.jpg").write_bytes(b"image")
    names = ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000043.jpg"]
    lines = "".join(json.dumps(POPE | {"image": name}) + "\n" for name in names)
    done = run("pope", {"q.json": lines}, "--images", tmp_path / "coco")
    assert [row[0] for row in done.rows] == ["val2017/000000000042.jpg"]
    assert "2 questions = 1 used + 1 left out (1 not in the image folder)" in done.out


def test_questions_without_text_are_dropped_and_counted(run):
    entries = [VIZWIZ[0] | {"question": " "}, VIZWIZ[0] | {"image": ""}, VIZWIZ[0] | {"answers": []}]
    entries.append(VIZWIZ[0] | {"answers": annotated(["ok", "", " "])})
    done = run("vizwiz", {"val.json": entries})
    assert [row[2] for row in done.rows] == ["ok"]
    for what in ("empty question", "no image name", "no answer"):
        assert f"1 questions dropped, {what}: " in done.out
    assert "2 answers dropped, empty: VizWiz_val_00000000.jpg\n" in done.out
    assert "4 questions = 1 used + 3 left out (" in done.out
    assert "3 answers = 1 used + 2 left out (2 empty)" in done.out


def test_nothing_left_keeps_the_old_csv(run, tmp_path):
    (tmp_path / "images").mkdir()
    old = run("gqa", {"q.json": GQA}).rows
    done = run("gqa", {"q.json": GQA}, "--images", tmp_path / "images", "--overwrite")
    assert done[:2] == (1, old) and "1 questions dropped, not in the image folder" in done.err
    done = run("gqa", {"q.json": GQA})
    assert done[:2] == (1, old) and "--overwrite" in done.err


def without(data, *path):
    """A copy of `data` that lacks the value at this path of keys and positions."""

    def change(new):
        for key in path[:-1]:
            new = new[key]
        del new[path[-1]]

    return edited(data, change)


NO_ANSWERS = {  # the published test splits: data set, files, what is missing and where
    "vqav2": ("vqav2", {"v2_OpenEnded_mscoco_test2015_questions.json": VQA_QUESTIONS}, ["ANNOTATIONS"]),
    "gqa": ("gqa", {"test.json": without(GQA, "201307251", "answer")}, ["question 201307251", "'answer'"]),
    "clevr": ("clevr", {"q.json": without(CLEVR, "questions", 0, "answer")}, ["questions[0]", "'answer'"]),
    "vizwiz": ("vizwiz", {"test.json": without(VIZWIZ, 0, "answers")}, ["[0]", "'answers'"]),
    "tallyqa": ("tallyqa", {"t.json": without(TALLYQA, 0, "answer")}, ["[0]", "'answer'"]),
    "pope": ("pope", {"p.json": json.dumps(without(POPE, "label"))}, [":1", "'label'"]),
}


@pytest.mark.parametrize(("kind", "files", "parts"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_split_without_answers_is_refused(run, kind, files, parts):
    done = run(kind, files)
    assert done[:2] == (1, None)
    assert all(part in done.err for part in [*files, "test splits", *parts]), done.err


VQA_BAD = {  # change of the questions, change of the annotations, file and place
    "unmatched question": (
        lambda q: q["questions"].append(q["questions"][0] | {"question_id": 7}),
        lambda a: None,
        "q.json questions[2]: question_id 7 ",
    ),
    "unmatched annotation": (
        lambda q: q["questions"].pop(),
        lambda a: None,
        "a.json annotations[0]: question_id 393225000 ",
    ),
    "question twice": (
        lambda q: q["questions"].append(q["questions"][0]),
        lambda a: None,
        "q.json questions[2]: ",
    ),
    "annotation twice": (
        lambda q: None,
        lambda a: a["annotations"].append(a["annotations"][0]),
        "a.json annotations[2]: question_id 393225000 ",
    ),
    "no split": (lambda q: q.pop("data_subtype"), lambda a: None, "q.json: expected a str 'data_subtype'"),
    "bad id": (
        lambda q: q["questions"][1].update(image_id="393225"),
        lambda a: None,
        "q.json questions[1]: expected a int 'image_id'",
    ),
    "bad answer": (
        lambda q: None,
        lambda a: a["annotations"][1]["answers"][4].update(answer=None),
        "a.json annotations[1] answers[4]: expected a str 'answer'",
    ),
    "no type": (
        lambda q: None,
        lambda a: a["annotations"][1].pop("answer_type"),
        "a.json annotations[1]: expected a str 'answer_type'",
    ),
}


@pytest.mark.parametrize(("of_questions", "of_annotations", "place"), VQA_BAD.values(), ids=VQA_BAD)
def test_vqav2_error_names_file_and_place(run, of_questions, of_annotations, place):
    done = run("vqav2", vqa(edited(VQA_QUESTIONS, of_questions), edited(VQA_ANNOTATIONS, of_annotations)))
    assert done[:2] == (1, None)
    assert place in done.err


def test_vqav2_files_in_the_wrong_order_are_refused(run):
    done = run("vqav2", vqa(), sources=["a.json", "q.json"])
    assert done[:2] == (1, None) and "a.json: expected a list 'questions'" in done.err


BAD = {  # data set, content of source.json, place and what is wrong
    "gqa list": ("gqa", [GQA], ["source.json: expected a dict"]),
    "gqa types": ("gqa", without(GQA, "201307251", "types"), ["question 201307251: expected a dict 'types'"]),
    "gqa structural": (
        "gqa",
        without(GQA, "201307251", "types", "structural"),
        ["question 201307251 types: expected a str 'structural'"],
    ),
    "gqa image": ("gqa", without(GQA, "201307251", "imageId"), ["expected a str 'imageId'"]),
    "clevr image": ("clevr", without(CLEVR, "questions", 0, "image_filename"), [" questions[0]: "]),
    "clevr program": (
        "clevr",
        without(CLEVR, "questions", 0, "program", 2, "function"),
        [" questions[0] program[2]: expected a str 'function'"],
    ),
    "clevr step": (
        "clevr",
        edited(CLEVR, lambda new: new["questions"][0].update(program=["count"])),
        [" questions[0] program[0]: "],
    ),
    "tallyqa dict": ("tallyqa", TALLYQA[0], ["source.json: expected a list"]),
    "tallyqa answer": (
        "tallyqa",
        [TALLYQA[0], TALLYQA[0] | {"answer": "4"}],
        [" [1]: expected a int 'answer'"],
    ),
    "tallyqa issimple": ("tallyqa", [TALLYQA[0] | {"issimple": "no"}], [" [0]: expected a bool 'issimple'"]),
    "tallyqa number": ("tallyqa", [3], [" [0]: expected a int 'answer', found 3"]),
    "vizwiz type": ("vizwiz", without(VIZWIZ, 0, "answer_type"), [" [0]: expected a str 'answer_type'"]),
    "vizwiz answer": (
        "vizwiz",
        without(VIZWIZ, 0, "answers", 9, "answer"),
        [" [0] answers[9]: expected a str 'answer'"],
    ),
    "cut off": ("vizwiz", '[{"image": ', ["source.json: expected JSON", '[{"image": ']),
    "deep": ("gqa", "[" * 200_000, ["source.json: expected JSON"]),
    "pope line": ("pope", json.dumps(POPE) + "\n\n{'text'\n", ["source.json:3: ", "{'text'"]),
    "pope text": ("pope", json.dumps(without(POPE, "text")), ["source.json:1: expected a str 'text'"]),
    "pope list": ("pope", json.dumps([POPE]), ["source.json:1: expected a str 'label'"]),
    "empty": ("pope", "", ["source.json: no question is left"]),
}


@pytest.mark.parametrize(("kind", "content", "parts"), BAD.values(), ids=BAD)
def test_bad_file_is_refused_by_path_and_place(run, kind, content, parts):
    done = run(kind, {"source.json": content})
    assert done[:2] == (1, None)
    assert all(part in done.err for part in ["source.json", *parts]), done.err


COCOQA_BAD = {  # folder, change of the files, file and place
    "line missing": ("test", {"answers.txt": "laptop\n"}, ["'answers.txt': 1", "'questions.txt': 2"]),
    "id": ("test", {"img_ids.txt": "137\nx.jpg\n"}, ["img_ids.txt:2: ", "'x.jpg'"]),
    "type": ("train", {"types.txt": "0\n4\n"}, ["types.txt:2: ", "'4'"]),
    "folder": ("mine", {}, ["mine: ", "train or test"]),
}


@pytest.mark.parametrize(("folder", "change", "parts"), COCOQA_BAD.values(), ids=COCOQA_BAD)
def test_cocoqa_error_names_file_and_line(run, folder, change, parts):
    done = run("cocoqa", in_folder(folder, COCOQA | change), sources=[folder])
    assert done[:2] == (1, None)
    assert all(part in done.err for part in parts), done.err


def test_cocoqa_missing_file_is_named(run):
    done = run("cocoqa", in_folder("test", {"questions.txt": "a\n"}), sources=["test"])
    assert done.code == 1 and "test/answers.txt: no such file" in done.err


@pytest.mark.parametrize(
    ("kind", "sources"), [("cocoqa", ["q.json"]), ("vqav2", ["q.json"] * 3), ("coco", ["q.json"] * 2)]
)
def test_wrong_number_of_sources_is_refused(run, kind, sources):
    done = run(kind, {"q.json": GQA}, sources=sources)
    assert done[:2] == (1, None) and f"{kind} takes " in done.err


def test_split_of_questions_is_refused(run):
    done = run("gqa", {"q.json": GQA}, "--split", "val")
    assert done[:2] == (1, None) and "--split val" in done.err


def test_bytes_that_are_no_text_are_refused(tmp_path, capsys):
    (tmp_path / "q.json").write_bytes(b"PK\x03\x04\xff\xfe")
    for kind in ("gqa", "pope"):
        assert main([kind, str(tmp_path / "q.json")]) == 1
        assert f"{tmp_path}/q.json: " in capsys.readouterr().err
