"""tools/prepare on tiny copies of the official files, with the known traps of each."""

import csv
import json
from typing import NamedTuple

import pytest

from tools.prepare.__main__ import main

COCO = {
    "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 4, "file_name": "4.jpg"}],
    "annotations": [
        {"image_id": 9, "caption": "A cat ."},
        {"image_id": 4, "caption": "A bus ."},
        {"image_id": 9, "caption": "Two\ncats .\n"},
    ],
}
MSRVTT = {  # as in the readme of the data set: the fields of videos[] and sentences[]
    "info": {"year": "2016", "version": "1.0"},
    "videos": [
        {"category": 9, "url": "https://x", "video_id": id, "start time": 137.72, "end time": 149.44}
        | {"split": split, "id": number}
        for number, (id, split) in enumerate([("video0", "train"), ("video6513", "validate")])
    ],
    "sentences": [
        {"caption": "a car is shown", "video_id": "video0", "sen_id": 0},
        {"caption": "a man  sings", "video_id": "video6513", "sen_id": 1},
        {"caption": "a red car", "video_id": "video0", "sen_id": 2},
    ],
}
ONE_K_A = "key,vid_key,video_id,sentence\nret0,msr9770,video9770,a person is connecting something to system\n"
MSVD = """# AllVideoDescriptions
#
-4wsuPCjDBc_5_15 a squirrel is eating a peanut in it's shell
mv89psG6zh4_33_46 A panda eats 2 bamboos.

-4wsuPCjDBc_5_15 a chipmunk is eating
"""


def karpathy(*images):
    """A file of Karpathy's splits with one image for each (file name, split, caption, ...)."""
    rows = [(name, split, [{"raw": text} for text in texts]) for name, split, *texts in images]
    return {"images": [dict(zip(("filename", "split", "sentences"), row)) for row in rows]}


SPLITS = karpathy(
    ("a.jpg", "train", "One .", "Uno ."), ("b.jpg", "restval", "Two ."), ("c.jpg", "val", "Three .")
)


class Done(NamedTuple):
    code: int
    full: list | None  # rows of caption.csv, None when there is no such file
    unique: list | None
    out: str
    err: str


def read(path):
    if not path.exists():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_name", "comment"]
    return [tuple(row) for row in rows]


@pytest.fixture
def run(tmp_path, capsys):
    """run(format, text, bytes or JSON value, *flags, name=...) -> Done."""

    def go(kind, content, *flags, name="source.txt"):
        source, out = tmp_path / name, tmp_path / "out"
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        source.write_bytes(data.encode() if isinstance(data, str) else data)
        code = main([kind, str(source), "--out", str(out), *map(str, flags)])
        return Done(code, read(out / "caption.csv"), read(out / "unique_caption.csv"), *capsys.readouterr())

    return go


@pytest.fixture
def images(tmp_path):
    """A folder that holds a.jpg and sub/b.jpg, beside an image that is outside it."""
    folder = tmp_path / "Images"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "a.jpg", folder / "sub" / "b.jpg", tmp_path / "outside.jpg"):
        path.write_bytes(b"image")
    return folder


READ = {  # format, content, the captions of a.jpg
    "commas": (
        "flickr8k",
        'image,caption\na.jpg,A dog , a ball .\na.jpg,A "red" , car\n',
        ["A dog , a ball .", 'A "red" , car'],
    ),
    "quotes": (
        "flickr8k",
        'image,caption\na.jpg,"A dog , a ball ."\na.jpg,"A ""Go"" sign , lit ."\na.jpg,"Go" and "Stop"\n',
        ["A dog , a ball .", 'A "Go" sign , lit .', '"Go" and "Stop"'],
    ),
    "token": (
        "flickr8k",
        "a.jpg#0\tA dog , running .\na.jpg#1\tShirt #7\there .\n",
        ["A dog , running .", "Shirt #7 here ."],
    ),
    "token of 30k": ("flickr30k", "a.jpg#0\tTwo guys .\na.jpg#1\tMen .\n", ["Two guys .", "Men ."]),
    "odd white space": (
        "flickr8k",
        "image,caption\na.jpg,NA\na.jpg, tab\t and \u2028 line  \n",
        ["NA", "tab and line"],
    ),
    "BOM and \\r\\n": ("flickr8k", b"\xef\xbb\xbfimage,caption\r\na.jpg,A .\r\n", ["A ."]),
    "BOM and token": ("flickr8k", b"\xef\xbb\xbfa.jpg#0\tB .\r\n", ["B ."]),
    "BOM and JSON": (
        "karpathy",
        b"\xef\xbb\xbf" + json.dumps(karpathy(("a.jpg", "x", "A ."))).encode(),
        ["A ."],
    ),
}


@pytest.mark.parametrize(("kind", "content", "texts"), READ.values(), ids=READ)
def test_captions_are_read(run, kind, content, texts):
    done = run(kind, content, name="captions.txt")  # the content decides what it is, not the name
    assert (done.code, done.full) == (0, [("a.jpg", text) for text in texts])
    assert done.unique == done.full[:1]


def test_captions_keep_their_text(run):
    texts = ["NA", "null", "001", "nan", "1e5", 'She said "hi", twice', "Straße 🐕 = 犬", "=SUM(A1)", "'"]
    assert run("karpathy", karpathy(("a,b.jpg", "x", *texts))).full == [("a,b.jpg", text) for text in texts]


def test_coco_joins_by_id_and_collapses_newlines(run):
    done = run("coco", COCO, name="captions_train2017.json")
    assert done.full == [("9.jpg", "A cat ."), ("9.jpg", "Two cats ."), ("4.jpg", "A bus .")]
    assert done.unique == [("9.jpg", "A cat ."), ("4.jpg", "A bus .")]


def test_karpathy_coco_path_holds_the_folder(run):
    data = karpathy(("1.jpg", "val", "A bus ."))
    data["images"][0]["filepath"] = "val2014"
    assert run("karpathy", data).full == [("val2014/1.jpg", "A bus .")]


def test_videos_of_msrvtt_are_read_by_split(run):
    cars = [("video0.mp4", "a car is shown"), ("video0.mp4", "a red car")]
    assert run("msrvtt", MSRVTT, "--split", "train").full == cars
    done = run("msrvtt", MSRVTT, "--overwrite")
    assert done.full == [*cars, ("video6513.mp4", "a man sings")]
    assert "2 videos\n" in done.out and "3 captions; per video min 1, median 1.5, max 2\n" in done.out
    assert "3 captions = 3 used" in done.out


def test_split_1k_a_of_msrvtt_is_read_and_its_training_list(run, tmp_path):
    rows = [("video9770.mp4", "a person is connecting something to system")]
    assert run("msrvtt", ONE_K_A, name="MSRVTT_JSFUSION_test.csv").full == rows
    (tmp_path / "MSRVTT_train.9k.csv").write_text("video_id\nvideo6513\n")
    done = run("msrvtt", MSRVTT, "--split", tmp_path / "MSRVTT_train.9k.csv", "--overwrite")
    assert done.full == [("video6513.mp4", "a man sings")]
    assert "3 captions = 1 used + 2 left out (2 of another split)" in done.out


def test_videos_of_msvd_are_read(run, tmp_path):
    (tmp_path / "test_list.txt").write_text("mv89psG6zh4_33_46\n")
    panda = ("mv89psG6zh4_33_46.avi", "A panda eats 2 bamboos.")
    done = run("msvd", MSVD, name="AllVideoDescriptions.txt")
    squirrel = [
        ("-4wsuPCjDBc_5_15.avi", text)
        for text in ("a squirrel is eating a peanut in it's shell", "a chipmunk is eating")
    ]
    assert done.full == [*squirrel, panda] and done.unique == [squirrel[0], panda]
    assert run("msvd", MSVD, "--split", tmp_path / "test_list.txt", "--overwrite").full == [panda]


def test_videos_are_found_under_another_ending(run, images):
    (images / "video0.webm").write_bytes(b"video")
    done = run("msrvtt", MSRVTT, "--images", images)
    assert done.full == [("video0.webm", "a car is shown"), ("video0.webm", "a red car")]
    assert "1 files found under another ending: video0.webm for video0.mp4\n" in done.out
    assert "3 captions = 2 used + 1 left out (1 not in the image folder)" in done.out


def test_flickr30k_row_without_a_separator_is_recovered(run):
    text = (
        "image_name| comment_number| comment\n2199200615.jpg| 3| A dog | on grass .\n"
        "2199200615.jpg| 4   A dog runs across the grass .\n1.jpg| 0| 12 men .\n"
    )
    done = run("flickr30k", text, name="results.csv")
    texts = ["A dog | on grass .", "A dog runs across the grass .", "12 men ."]
    assert [text for _, text in done.full] == texts
    assert "1 recovered, a separator was missing" in done.out
    assert "results.csv:3 2199200615.jpg| 4   A dog" in done.out


LOST = {"image_id": 77, "caption": "Lost ."}
DROPPED = {  # format, content, what is said; one caption "A ." is left
    "no such image": (
        "flickr8k",
        "2258277193_586949ec62.jpg.1#0\tA .\n2258277193_586949ec62.jpg.1#1\tB .\n9.jpg#0\tA .\n",
        "2 dropped, a name of no image in the data set: 2258277193_586949ec62.jpg.1\n",
    ),
    "empty": ("flickr8k", "9.jpg#0\t\n9.jpg#1\t  \n9.jpg#2\tA .\n", "2 dropped, empty caption: 9.jpg\n"),
    "unknown id": (
        "coco",
        COCO | {"annotations": [{"image_id": 9, "caption": "A ."}, LOST]},
        "1 dropped, annotation of an unknown image: annotations[1] of image_id 77\n",
    ),
    "unknown video": (
        "msrvtt",
        {"videos": [{"video_id": "9", "split": "test"}]}
        | {"sentences": [{"video_id": id, "caption": "A ."} for id in ("9", "77")]},
        "1 dropped, sentence of an unknown video: sentences[1] of video_id 77\n",
    ),
}


@pytest.mark.parametrize(("kind", "content", "what"), DROPPED.values(), ids=DROPPED)
def test_dropped_rows_are_counted(run, kind, content, what):
    done = run(kind, content)
    assert done.full == done.unique == [("9.mp4" if kind == "msrvtt" else "9.jpg", "A .")]
    assert what in done.out


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["a.jpg", "a.jpg"]),
        ("train+restval", ["a.jpg", "a.jpg", "b.jpg"]),
        ("val", ["c.jpg"]),
        (None, ["a.jpg", "a.jpg", "b.jpg", "c.jpg"]),
    ],
)
def test_karpathy_split_is_exact(run, split, names):
    done = run("karpathy", SPLITS, *(["--split", split] if split else []))
    assert [name for name, _ in done.full] == names


def test_unknown_split_names_the_known_ones(run):
    done = run("karpathy", SPLITS, "--split", "train+tset")
    assert done[:3] == (1, None, None)
    assert "'train+tset'" in done.err and "{'train': 2, 'restval': 1, 'val': 1}" in done.err


def test_coco_split_is_in_the_file_name(run):
    done = run("coco", COCO, "--split", "train", name="captions_val2017.json")
    assert done.code == 1 and "'val': 3" in done.err
    assert run("coco", COCO, "--split", "val", name="captions_val2017.json").code == 0


def test_split_list_selects_whole_names(run, tmp_path):
    (tmp_path / "list.txt").write_bytes(b"b.jpg\r\nnone.jpg\r\nc\r\n")  # Flickr30k's lists have no .jpg
    text = "a.jpg#0\tA .\nb.jpg#0\tB .\nbb.jpg#0\tBB .\nc.jpg#0\tC .\n"
    done = run("flickr30k", text, "--split", tmp_path / "list.txt")
    assert done.full == [("b.jpg", "B ."), ("c.jpg", "C .")]
    assert "1 named in" in done.out and "without a caption: none.jpg\n" in done.out


def test_split_list_in_utf_16_is_refused_with_the_command(run, tmp_path):
    (tmp_path / "list.txt").write_text("b.jpg\n", encoding="utf-16")
    done = run("flickr30k", "a.jpg#0\tA .\n", "--split", tmp_path / "list.txt")
    assert done[:3] == (1, None, None)
    assert "list.txt, line 1: " in done.err and "iconv -f utf-16" in done.err


def test_split_name_without_splits_is_refused(run):
    done = run("flickr8k", "a.jpg#0\tA .\n", "--split", "train")
    assert done[:3] == (1, None, None)
    assert "--split train: no such file" in done.err


def test_missing_images_are_dropped_and_counted(run, images):
    missing = "".join(f"m{i}.jpg#{j}\tM .\n" for i in range(5) for j in range(2))
    text = f"a.jpg#0\tA .\n{missing}sub/b.jpg#0\tB .\nsub#0\tA folder .\n"
    done = run("flickr8k", text, "--images", images)
    assert done.full == done.unique == [("a.jpg", "A ."), ("sub/b.jpg", "B .")]
    assert "11 dropped, not in the image folder: m0.jpg, m1.jpg, m2.jpg ...\n" in done.out


COCO_NAMES = {  # what the split names, what the folder holds
    "2014 for 2017": ("COCO_val2014_000000391895.jpg", "val2017/000000391895.jpg"),
    "2014 for 2017, flat": ("COCO_train2014_000000391895.jpg", "000000391895.jpg"),
    "2014, a folder deeper": ("val2014/COCO_val2014_000000391895.jpg", "COCO_val2014_000000391895.jpg"),
    "2017, a folder higher": ("000000391895.jpg", "train2017/000000391895.jpg"),
    "2017 for 2014": ("000000391895.jpg", "train2014/COCO_train2014_000000391895.jpg"),
}


@pytest.mark.parametrize(("named", "there"), COCO_NAMES.values(), ids=COCO_NAMES)
def test_images_of_coco_are_found_under_the_names_of_the_other_release(run, tmp_path, named, there):
    """The ids of COCO's images are the same in 2014 and in 2017."""
    images = tmp_path / "coco"
    (images / there).parent.mkdir(parents=True)
    (images / there).write_bytes(b"image")
    data = karpathy((named, "train", "One .", "Two ."), ("COCO_val2014_000000000042.jpg", "train", "No ."))
    done = run("karpathy", data, "--images", images)
    assert done.full == [(there, "One ."), (there, "Two .")]
    assert f"1 images found by their COCO id: {there} for {named}\n" in done.out
    assert "3 captions = 2 used + 1 left out (1 not in the image folder)" in done.out


def test_images_under_another_name_are_dropped_with_the_hint(run, images):
    text = "image,caption\nA.JPG,A .\nC:\\photos\\b.jpg,B .\na.jpg,C .\n"
    (images / "b.jpg").write_bytes(b"image")
    done = run("flickr8k", text, "--images", images)
    assert done.full == [("a.jpg", "C .")]
    for how in ("another case", "the last part of the path"):
        assert f"1 dropped, in the image folder under another name ({how}): " in done.out


def test_image_without_a_caption_is_counted(run):
    more = COCO | {"images": [*COCO["images"], {"id": 7, "file_name": "7.jpg"}]}
    assert "1 images without a caption: 7.jpg\n" in run("coco", more).out
    done = run("karpathy", karpathy(("8.jpg", "x"), ("9.jpg", "x", "A .")), "--overwrite")
    assert "1 images without a caption: 8.jpg\n" in done.out


def test_id_of_two_images_is_refused(run):
    done = run("coco", COCO | {"images": [*COCO["images"], {"id": 9, "file_name": "7.jpg"}]})
    assert done.code == 1 and "images[2]: id 9 is 9.jpg already" in done.err


def test_images_outside_the_folder_are_dropped(run, images):
    outside = images.parent / "outside.jpg"
    (images / "link.jpg").symlink_to(outside)
    names = ["../outside.jpg", str(outside), "link.jpg", "nul\0.jpg", "sub/../a.jpg", "x" * 300]
    done = run("karpathy", karpathy(*((name, "x", "A .") for name in names)), "--images", images)
    assert done.full == [("link.jpg", "A ."), ("sub/../a.jpg", "A .")]  # train.py --follow-links reads it
    assert "3 dropped, outside the image folder: " in done.out
    assert "1 dropped, not in the image folder: " in done.out


def test_nothing_left_is_an_error(run, images):
    done = run("flickr8k", "x.jpg#0\tA .\n", "--images", images)
    assert done[:3] == (1, None, None)
    assert "1 dropped, not in the image folder: x.jpg" in done.err
    assert run("flickr8k", "image,caption\n").code == 1


def test_existing_output_needs_overwrite(run, tmp_path):
    old, new = "a.jpg#0\tOld .\n", "a.jpg#0\tNew .\n"
    assert run("flickr8k", old).code == 0
    (tmp_path / "out" / "caption.csv").unlink()
    done = run("flickr8k", new)
    assert done[:3] == (1, None, [("a.jpg", "Old .")])
    assert "unique_caption.csv exists" in done.err and "--overwrite" in done.err
    assert run("flickr8k", new, "--overwrite")[:3] == (0, [("a.jpg", "New .")], [("a.jpg", "New .")])


def test_source_is_never_overwritten(tmp_path, capsys):
    source = tmp_path / "caption.csv"
    source.write_text("image,caption\na.jpg,A .\n")
    assert main(["flickr8k", str(source), "--overwrite"]) == 1
    assert f"{source} is SOURCE" in capsys.readouterr().err
    assert source.read_text() == "image,caption\na.jpg,A .\n"


def test_failed_write_leaves_the_old_files_whole(run, tmp_path):
    run("flickr8k", "a.jpg#0\tOld .\n")
    done = run("karpathy", karpathy(("a.jpg", "x", "Fine .", "\ud800")), "--overwrite")  # no UTF-8
    assert done[:3] == (1, [("a.jpg", "Old .")], [("a.jpg", "Old .")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["caption.csv", "unique_caption.csv"]


HEADER = "image_name|comment_number|comment"
BAD = [  # format, content, what the error says beside the path
    ("flickr8k", "image_name| comment_number| comment\n", ["image,caption", "#0<TAB>", "flickr30k"]),
    ("flickr8k", "", ["image,caption", "found ''"]),
    ("flickr30k", "image,caption\na.jpg,A .\n", [HEADER, "'image,caption'"]),
    ("coco", "image,caption\n", ["expected coco", "line 1 column 1", "image,caption"]),
    ("coco", SPLITS, ["images[0]", "expected a int 'id'", "'a.jpg'"]),
    ("coco", {"images": [], "info": 1}, ["expected a list 'annotations'", "'info': 1"]),
    ("coco", [1], ["expected a list 'images'", "[1]"]),
    ("karpathy", COCO, ["images[0]", "expected a str 'filename'", "'9.jpg'"]),
    ("coco", '{"images": [', ["expected coco", '{"images": [']),
    ("flickr8k", b"PK\x03\x04\xff\xfe", ["ZIP archive", "UTF-8"]),
    ("flickr8k", "image,caption\na.jpg,A .\n\nno separator\n", [":4: expected image,caption, found 'no"]),
    ("flickr8k", "a.jpg#0\tA .\nb.jpg A .\n", [":2: expected name.jpg#0<TAB>caption, found 'b.jpg A .'"]),
    ("flickr30k", "image_name| comment_number| comment\na.jpg| A dog .\n", [":2: "]),
    (
        "coco",
        COCO | {"annotations": [{"image_id": 9, "caption": None}]},
        [" annotations[0]: expected a str 'caption'"],
    ),
    ("msrvtt", "video_id,caption\nvideo0,A .\n", ["no column 'sentence'", "video_id, caption"]),
    ("msrvtt", COCO, ["expected a list 'videos'"]),
    ("msrvtt", {"videos": [{"video_id": "video0"}]}, [" videos[0]: expected a str 'split'"]),
    ("msvd", "# MSVD\nmv89psG6zh4_33_46 A .\nno id\n", [":3: expected ID_START_END", "'no id'"]),
    (
        "karpathy",
        {"images": [{"filename": "a.jpg", "split": "val", "sentences": ["A ."]}]},
        [" images[0] sentences: expected a str 'raw'"],
    ),
]


@pytest.mark.parametrize(("kind", "content", "parts"), BAD)
def test_bad_file_is_refused_by_path_and_line(run, kind, content, parts):
    done = run(kind, content)
    assert done[:3] == (1, None, None)
    assert all(part in done.err for part in ["source.txt", *parts]), done.err


def test_missing_paths_are_named(run, tmp_path, capsys):
    for source in (tmp_path / "nowhere.json", tmp_path):
        assert main(["coco", str(source)]) == 1
        assert f"{source}: " in capsys.readouterr().err
    done = run("coco", COCO, "--images", tmp_path / "nowhere")
    assert done.code == 1 and "nowhere: no such folder" in done.err


def test_report_counts_and_names_the_next_command(run, images, tmp_path):
    text = "a.jpg#0\tA .\na.jpg#1\tB .\na.jpg#2\tC .\nsub/b.jpg#0\tD .\n"
    done = run("flickr8k", text, "--images", images)
    assert "2 images\n" in done.out
    assert "4 captions; per image min 1, median 2, max 3\n" in done.out
    assert f"written: {tmp_path}/out/caption.csv and {tmp_path}/out/unique_caption.csv\n" in done.out
    assert done.out.endswith(f"python train.py --csv {tmp_path}/out/caption.csv --images {images}\n")


def test_wrong_usage_exits_with_two():
    with pytest.raises(SystemExit, match="2"):
        main(["flickr9k", "x"])
