"""tools/prepare.py on tiny copies of the official files, with each of their known traps."""

import csv
import json

import pytest

from tools.prepare import main

COCO = {
    "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 4, "file_name": "4.jpg"}],
    "annotations": [
        {"image_id": 9, "caption": "A cat ."},
        {"image_id": 4, "caption": "A bus ."},
        {"image_id": 9, "caption": "Two\ncats .\n"},
    ],
}
KARPATHY = {
    "dataset": "flickr8k",
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "One ."}, {"raw": "Uno ."}]},
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": "Two ."}]},
        {"filename": "c.jpg", "split": "val", "sentences": [{"raw": "Three ."}]},
    ],
}


@pytest.fixture
def run(tmp_path):
    """run(format, text or JSON value, *flags, name=...) -> (exit code, rows of caption.csv, rows of unique_caption.csv)."""

    def go(kind, content, *flags, name="source.txt"):
        source, out = tmp_path / name, tmp_path / "out"
        data = content if isinstance(content, bytes | str) else json.dumps(content)
        source.write_bytes(data.encode() if isinstance(data, str) else data)
        code = main([kind, str(source), "--out", str(out), *map(str, flags)])
        return code, *(read(out / file) for file in ("caption.csv", "unique_caption.csv"))

    return go


def read(path):
    """Rows below the header of a written CSV; None when there is no such file."""
    if not path.exists():
        return None
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image_name", "comment"]
    return [tuple(row) for row in rows]


@pytest.fixture
def images(tmp_path):
    """A folder that holds a.jpg and sub/b.jpg, beside an image that is outside it."""
    folder = tmp_path / "Images"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "a.jpg", folder / "sub" / "b.jpg", tmp_path / "outside.jpg"):
        path.write_bytes(b"image")
    return folder


def test_flickr8k_splits_at_the_first_comma_only(run):
    """Catches reading captions.txt as a CSV: commas in the first row shift or cut the columns."""
    text = 'image,caption\na.jpg,A dog , a ball , and grass .\na.jpg,Plain .\nb.jpg,A "big" , red "car"\n'
    code, full, unique = run("flickr8k", text)
    assert code == 0
    assert full == [
        ("a.jpg", "A dog , a ball , and grass ."),
        ("a.jpg", "Plain ."),
        ("b.jpg", 'A "big" , red "car"'),
    ]
    assert unique == [full[0], full[2]]


def test_flickr8k_quoted_captions_lose_only_the_csv_quotes(run):
    """Catches captions that keep the quotes of the copies of captions.txt that do quote, or lose quotes of their own."""
    _, full, _ = run(
        "flickr8k",
        'image,caption\na.jpg,"A dog , a ball ."\na.jpg,"A ""Go"" sign , lit ."\na.jpg,"Go" and "Stop"\n',
    )
    assert [caption for _, caption in full] == ["A dog , a ball .", 'A "Go" sign , lit .', '"Go" and "Stop"']


def test_flickr8k_token_file_is_known_by_its_content(run):
    """Catches telling the two Flickr8k files apart by name, and captions cut at a comma or at a later #."""
    _, full, unique = run(
        "flickr8k",
        "a.jpg#0\tA dog , running .\na.jpg#1\tShirt #7\there .\nb.jpg#0\tA cat .\n",
        name="captions.txt",
    )
    assert full == [("a.jpg", "A dog , running ."), ("a.jpg", "Shirt #7 here ."), ("b.jpg", "A cat .")]
    assert unique == [full[0], full[2]]


def test_flickr8k_token_bad_image_name_is_dropped_and_counted(run, capsys):
    """Catches training rows for 2258277193_586949ec62.jpg.1, an image that does not exist."""
    _, full, _ = run(
        "flickr8k", "2258277193_586949ec62.jpg.1#0\tA .\n2258277193_586949ec62.jpg.1#1\tB .\na.jpg#0\tC .\n"
    )
    assert full == [("a.jpg", "C .")]
    assert (
        "2 dropped, a name of no image in the data set: 2258277193_586949ec62.jpg.1\n"
        in capsys.readouterr().out
    )


def test_flickr8k_split_list_selects_images(run, tmp_path, capsys):
    """Catches a split list that is ignored, matched by part of a name, or broken by Windows line ends; and silence about unknown names."""
    (tmp_path / "list.txt").write_bytes(b"b.jpg\r\nnone.jpg\r\n")
    _, full, _ = run(
        "flickr8k", "a.jpg#0\tA .\nb.jpg#0\tB .\nbb.jpg#0\tBB .\n", "--split", tmp_path / "list.txt"
    )
    assert full == [("b.jpg", "B .")]
    assert "1 named in" in (out := capsys.readouterr().out)
    assert "without a caption: none.jpg\n" in out


def test_flickr30k_split_list_may_leave_out_the_extension(run, tmp_path):
    """Catches an empty result with the usual Flickr30k lists, which name images without .jpg."""
    (tmp_path / "train.txt").write_text("2\n")
    _, full, _ = run("flickr30k", "1.jpg#0\tA .\n2.jpg#0\tB .\n", "--split", tmp_path / "train.txt")
    assert full == [("2.jpg", "B .")]


def test_flickr8k_split_name_is_refused(run, capsys):
    """Catches `--split train` that silently takes everything from a file that knows no splits."""
    assert run("flickr8k", "a.jpg#0\tA .\n", "--split", "train") == (1, None, None)
    assert "--split train: no such file" in (err := capsys.readouterr().err)
    assert "pass a text file of image names" in err


def test_flickr30k_row_without_a_separator_is_recovered(run, capsys):
    """Catches losing the caption of row 19999, or taking `4   A dog ...` for it."""
    text = (
        "image_name| comment_number| comment\n2199200615.jpg| 3| A dog | on grass .\n"
        "2199200615.jpg| 4   A dog runs across the grass .\n1.jpg| 0| 12 men .\n"
    )
    _, full, _ = run("flickr30k", text, name="results.csv")
    assert full == [
        ("2199200615.jpg", "A dog | on grass ."),
        ("2199200615.jpg", "A dog runs across the grass ."),
        ("1.jpg", "12 men ."),
    ]
    assert "1 recovered, a separator was missing" in (out := capsys.readouterr().out)
    assert "results.csv:3 2199200615.jpg| 4   A dog" in out


def test_flickr30k_token_file_is_read(run):
    """Catches a reader that knows results.csv only, not results_20130124.token."""
    assert run("flickr30k", "1.jpg#0\tTwo guys .\n1.jpg#1\tMen .\n")[1] == [
        ("1.jpg", "Two guys ."),
        ("1.jpg", "Men ."),
    ]


def test_coco_joins_by_id_and_collapses_newlines(run):
    """Catches pairing by position in place of id, and captions with newlines that cut a CSV row."""
    _, full, unique = run("coco", COCO, name="captions_train2017.json")
    assert full == [("9.jpg", "A cat ."), ("9.jpg", "Two cats ."), ("4.jpg", "A bus .")]
    assert unique == [("9.jpg", "A cat ."), ("4.jpg", "A bus .")]


def test_coco_annotation_of_an_unknown_image_is_counted(run, capsys):
    """Catches a KeyError, or silence, when an annotation belongs to no image."""
    _, full, _ = run(
        "coco", {**COCO, "annotations": [*COCO["annotations"][:1], {"image_id": 77, "caption": "Lost ."}]}
    )
    assert full == [("9.jpg", "A cat .")]
    assert (
        "1 dropped, annotation of an unknown image: annotations[1] of image_id 77\n"
        in capsys.readouterr().out
    )


def test_coco_split_is_told_by_the_file_name(run, capsys):
    """Catches `--split train` that takes a validation file."""
    assert run("coco", COCO, "--split", "train", name="captions_val2017.json")[0] == 1
    assert "no split 'train'" in (err := capsys.readouterr().err)
    assert "'val': 3" in err
    assert run("coco", COCO, "--split", "val", name="captions_val2017.json")[0] == 0


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["a.jpg", "a.jpg"]),
        ("train+restval", ["a.jpg", "a.jpg", "b.jpg"]),
        ("val", ["c.jpg"]),
        (None, ["a.jpg", "a.jpg", "b.jpg", "c.jpg"]),
    ],
)
def test_karpathy_split_takes_what_was_asked(run, split, names):
    """Catches restval that slips into train unasked, `val` that matches restval, and `a+b` not understood."""
    _, full, _ = run("karpathy", KARPATHY, *(["--split", split] if split else []))
    assert [name for name, _ in full] == names


def test_karpathy_unknown_split_names_the_known_ones(run, capsys):
    """Catches an empty file, or half of `a+b`, where the split was mistyped."""
    assert run("karpathy", KARPATHY, "--split", "train+tset") == (1, None, None)
    assert "no split 'train+tset'" in (err := capsys.readouterr().err)
    assert "{'train': 2, 'restval': 1, 'val': 1}" in err


def test_karpathy_coco_path_holds_the_folder(run):
    """Catches image names without val2014/, which are not found below the COCO folder."""
    image = {
        "filename": "COCO_val2014_1.jpg",
        "filepath": "val2014",
        "split": "val",
        "sentences": [{"raw": "A bus ."}],
    }
    assert run("karpathy", {"images": [image]})[1] == [("val2014/COCO_val2014_1.jpg", "A bus .")]


def test_captions_keep_their_text(run):
    """Catches a parser that turns NA and null into nothing and 001 into 1, cuts at odd line ends, or quotes wrongly on the way out."""
    texts = ["NA", "null", "001", "nan", "1e5", 'She said "hi", twice', "Straße 🐕 = 犬", "=SUM(A1)", "'"]
    _, full, _ = run(
        "karpathy",
        {"images": [{"filename": "a,b.jpg", "split": "x", "sentences": [{"raw": text} for text in texts]}]},
    )
    assert full == [("a,b.jpg", text) for text in texts]
    _, full, _ = run("flickr8k", "image,caption\na.jpg,NA\na.jpg, tab\t and \u2028 line  \n", "--overwrite")
    assert full == [("a.jpg", "NA"), ("a.jpg", "tab and line")]


def test_empty_captions_are_dropped_and_counted(run, capsys):
    """Catches empty captions that reach training, also those at a line's end where the tab could be stripped off."""
    assert run("flickr8k", "a.jpg#0\t\na.jpg#1\t  \na.jpg#2\tA .\n")[1:] == (
        [("a.jpg", "A .")],
        [("a.jpg", "A .")],
    )
    assert "2 dropped, empty caption: a.jpg\n" in capsys.readouterr().out


def test_byte_order_mark_and_windows_line_ends_are_read(run):
    """Catches a BOM that hides the header or joins the first image name, and \\r at the end of captions."""
    assert run("flickr8k", b"\xef\xbb\xbfimage,caption\r\na.jpg,A .\r\n")[1] == [("a.jpg", "A .")]
    assert run("flickr8k", b"\xef\xbb\xbfb.jpg#0\tB .\r\n", "--overwrite")[1] == [("b.jpg", "B .")]
    assert run("coco", b"\xef\xbb\xbf" + json.dumps(COCO).encode(), "--overwrite")[0] == 0


def test_images_leaves_out_missing_files_and_says_so(run, images, capsys):
    """Catches captions of missing images that only fail, or vanish in silence, when training starts."""
    text = (
        "a.jpg#0\tA .\n"
        + "".join(f"m{i}.jpg#{j}\tM .\n" for i in range(5) for j in range(2))
        + "sub/b.jpg#0\tB .\nsub#0\tA folder .\n"
    )
    code, full, unique = run("flickr8k", text, "--images", images)
    assert code == 0
    assert full == unique == [("a.jpg", "A ."), ("sub/b.jpg", "B .")]
    assert "11 dropped, not in the image folder: m0.jpg, m1.jpg, m2.jpg ...\n" in capsys.readouterr().out


def test_images_outside_the_folder_are_left_out(run, images, capsys):
    """Catches ../ names, absolute names and links that lead out of the image folder, though the file exists there."""
    (images / "link.jpg").symlink_to(images.parent / "outside.jpg")
    names = [
        "../outside.jpg",
        str(images.parent / "outside.jpg"),
        "link.jpg",
        "nul\0.jpg",
        "sub/../a.jpg",
        "x" * 300,
    ]
    data = {"images": [{"filename": name, "split": "x", "sentences": [{"raw": "A ."}]} for name in names]}
    _, full, _ = run("karpathy", data, "--images", images)
    assert full == [("sub/../a.jpg", "A .")]
    assert "4 dropped, outside the image folder: " in (out := capsys.readouterr().out)
    assert "1 dropped, not in the image folder: " in out


def test_nothing_left_is_an_error(run, images, capsys):
    """Catches exit code 0 and a CSV with only a header when --images is the wrong folder."""
    assert run("flickr8k", "x.jpg#0\tA .\n", "--images", images) == (1, None, None)
    assert "no caption left to write" in (err := capsys.readouterr().err)
    assert "1 dropped, not in the image folder: x.jpg" in err
    assert run("flickr8k", "image,caption\n")[0] == 1


def test_existing_output_is_refused_without_overwrite(run, tmp_path, capsys):
    """Catches overwriting somebody's CSV unasked, also when only the second file is there."""
    assert run("flickr8k", "a.jpg#0\tOld .\n")[0] == 0
    (tmp_path / "out" / "caption.csv").unlink()
    assert run("flickr8k", "a.jpg#0\tNew .\n") == (1, None, [("a.jpg", "Old .")])
    assert "unique_caption.csv exists; --overwrite replaces it" in capsys.readouterr().err
    assert run("flickr8k", "a.jpg#0\tNew .\n", "--overwrite") == (
        0,
        [("a.jpg", "New .")],
        [("a.jpg", "New .")],
    )


def test_source_is_never_overwritten(tmp_path, capsys):
    """Catches --overwrite replacing the file that is being read, which the default --out (its folder) would allow."""
    source = tmp_path / "caption.csv"
    source.write_text("image,caption\na.jpg,A .\n")
    assert main(["flickr8k", str(source), "--overwrite"]) == 1
    assert "is SOURCE" in capsys.readouterr().err
    assert source.read_text() == "image,caption\na.jpg,A .\n"


def test_failed_write_leaves_the_old_files_whole(run, tmp_path):
    """Catches writing straight into caption.csv: a caption that cannot be encoded must not leave half a file, nor a temporary one."""
    run("flickr8k", "a.jpg#0\tOld .\n")
    bad = {
        "images": [{"filename": "a.jpg", "split": "x", "sentences": [{"raw": "Fine ."}, {"raw": "\ud800"}]}]
    }
    assert run("karpathy", bad, "--overwrite") == (1, [("a.jpg", "Old .")], [("a.jpg", "Old .")])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["caption.csv", "unique_caption.csv"]


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        (
            "flickr8k",
            "image_name| comment_number| comment\n",
            ["image,caption", "#0<TAB>", "'image_name| comment_number|", "flickr30k"],
        ),
        ("flickr8k", "", ["image,caption", "first line is ''"]),
        ("flickr30k", "image,caption\na.jpg,A .\n", ["image_name|comment_number|comment", "'image,caption'"]),
        ("coco", "image,caption\n", ["expected coco", "line 1 column 1", "image,caption"]),
        ("coco", KARPATHY, ["images[0]", "expected a str 'file_name'", "'a.jpg'"]),
        ("coco", {"images": [], "info": 1}, ["expected a list 'annotations'", "'info': 1"]),
        ("coco", [1], ["expected a list 'images'", "[1]"]),
        ("karpathy", COCO, ["images[0]", "expected a str 'filename'", "'9.jpg'"]),
        ("coco", '{"images": [', ["expected coco", '{"images": [']),
        ("flickr8k", b"PK\x03\x04\xff\xfe", ["UTF-8", "position 4", "PK"]),
    ],
)
def test_wrong_format_says_what_was_expected_and_found(run, capsys, kind, content, expected):
    """Catches a traceback, or an empty CSV, when SOURCE is another data set's file, a truncated one or a zip archive."""
    assert run(kind, content) == (1, None, None)
    message = capsys.readouterr().err
    assert all(part in message for part in ["source.txt", *expected]), message


@pytest.mark.parametrize(
    ("kind", "content", "place"),
    [
        (
            "flickr8k",
            "image,caption\na.jpg,A .\n\nno separator\n",
            "source.txt:4: expected image,caption, found 'no separator'",
        ),
        (
            "flickr8k",
            "a.jpg#0\tA .\nb.jpg A .\n",
            "source.txt:2: expected name.jpg#0<TAB>caption, found 'b.jpg A .'",
        ),
        ("flickr30k", "image_name| comment_number| comment\na.jpg| A dog .\n", "source.txt:2: "),
        (
            "coco",
            {**COCO, "annotations": [{"image_id": 9, "caption": None}]},
            "source.txt annotations[0]: expected a str 'caption'",
        ),
        (
            "karpathy",
            {"images": [{"filename": "a.jpg", "split": "val", "sentences": ["A ."]}]},
            "images[0] sentences: expected a str 'raw'",
        ),
    ],
)
def test_damaged_row_is_named_by_file_and_row(run, capsys, kind, content, place):
    """Catches skipping a damaged row in silence, or an error that does not say where it is."""
    assert run(kind, content) == (1, None, None)
    assert place in capsys.readouterr().err


def test_missing_paths_are_named(run, tmp_path, capsys):
    """Catches a bare traceback for a SOURCE or --images that is not there."""
    assert main(["coco", str(tmp_path / "nowhere.json")]) == 1
    assert "nowhere.json: no such file" in capsys.readouterr().err
    assert main(["coco", str(tmp_path)]) == 1
    assert "a folder" in capsys.readouterr().err
    assert run("coco", COCO, "--images", tmp_path / "nowhere")[0] == 1
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_report_counts_and_names_the_next_command(run, images, tmp_path, capsys):
    """Catches wrong counts, and a next command that cannot be pasted."""
    run("flickr8k", "a.jpg#0\tA .\na.jpg#1\tB .\na.jpg#2\tC .\nsub/b.jpg#0\tD .\n", "--images", images)
    out = capsys.readouterr().out
    assert "2 images\n" in out
    assert "4 captions; per image min 1, median 2, max 3\n" in out
    assert f"written: {tmp_path}/out/caption.csv and {tmp_path}/out/unique_caption.csv\n" in out
    assert out.endswith(f"python train.py --csv {tmp_path}/out/caption.csv --images {images}\n")


def test_wrong_usage_exits_with_two(capsys):
    """Catches an unknown format name that reaches the readers."""
    with pytest.raises(SystemExit) as stop:
        main(["flickr9k", "x"])
    assert stop.value.code == 2
    assert "flickr8k" in capsys.readouterr().err
