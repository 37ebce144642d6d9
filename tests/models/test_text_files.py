"""One reader for all text files: encodings, other kinds of files, Excel's separator line, labels, class
names, lists of captions in one field. The right values come from iconv, json, NumPy, pandas and csv."""

import csv
import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from models.dataset import read_class_names, read_labels, read_lines, read_rows, read_text

TEXT = "a café\na boat\n"
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32")
READERS = {
    "text": read_text,
    "lines": read_lines,
    "labels": read_labels,
    "class names": lambda path: read_class_names(path, ["a"]),
    "captions": read_rows,
}


def written(path, content, encoding="utf-8"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("encoding", [*WIDE, "cp1252", "latin-1"])
def test_other_encoding_is_refused_with_the_file_and_the_line(tmp_path, read, encoding):
    path = written(tmp_path / "my labels.txt", "a boat\n" + TEXT, encoding)
    line = 1 if encoding in WIDE else 2
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, line {line}: ") and "iconv -f" in str(error.value)


@pytest.mark.skipif(not shutil.which("iconv"), reason="iconv is not installed")
@pytest.mark.parametrize("encoding", [*WIDE[:3], "cp1252"])
@pytest.mark.parametrize("text", [TEXT, TEXT.strip(), "naïve\r\n“Öl”\r\n", "a dog\nun café"])
def test_advised_command_makes_the_file_readable(tmp_path, encoding, text):
    path = written(tmp_path / "it's a list.txt", text, encoding)
    with pytest.raises(ValueError) as error:
        read_text(path)
    subprocess.run(str(error.value)[str(error.value).index("iconv") :], shell=True, check=True)
    assert read_text(tmp_path / "it's a list.utf8.txt") == text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\3\4" + bytes(99), "ZIP"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "Office"),
        (rb"{\rtf1\ansi a dog}", "rich text"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\x1f\x8b\x08", "gzip"),
        ("<!DOCTYPE html>\n<html>404</html>", "web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ("a dog\na\0boat\nand more of it\n", "line 2: a NUL byte"),
        ("a dog\nun café".encode()[:-1], "line 2: byte 0xc3.*cut off"),
        ('["a dog", "a boat"]\n', "line 1: .*JSON"),
        ('{\n "0": "a dog"\n}\n', "line 1: .*JSON"),
        ("Москва".encode("cp1251"), "line 1: byte 0xcc"),
        ("a\x81b".encode("latin-1"), "iconv -f ENCODING"),
    ],
)
def test_file_that_is_no_text_is_refused_by_name(tmp_path, content, said):
    path = written(tmp_path / "labels.txt", content)
    with pytest.raises(ValueError, match=f"labels.txt.*{said}"):
        read_labels(path)


def test_lines_end_where_csv_ends_them(tmp_path):
    text = "\ufeffa dog \r\n\r\nun\u2028café\rb\x85c\n\n"
    assert read_lines(written(tmp_path / "a.txt", text)) == ["a dog", "", "un\u2028café", "b\x85c", ""]
    assert read_lines(written(tmp_path / "b.txt", "")) == []


def test_labels_are_distinct_and_every_line_is_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    path = written(tmp_path / "labels.txt", "sep=;\na dog\n \na boat\na dog\n")
    assert read_labels(path) == ["a dog", "a boat"]
    assert f"{path}: 5 lines = 2 used + 3 left out (2 blank, 1 repeated)" in caplog.text


FIRST = {
    "semicolon": ("sep=;", ";"),
    "tab": ("sep=\t", "\t"),
    "comma": ("sep=,", ","),
    "capitals": ("SEP=|", "|"),
    "a separator nobody guesses": ("sep=^", "^"),
    "quoted, as a sheet saved again": ('"sep=;"', ";"),
    "with empty cells": ("sep=;;;", ";"),
    "byte order mark": ("\ufeffsep=;", ";"),
}


@pytest.mark.parametrize(("first", "separator"), FIRST.values(), ids=FIRST)
def test_separator_line_of_excel_is_read_for_what_it_is(tmp_path, first, separator):
    path = tmp_path / "table.csv"
    rows = [("a.jpg", f"a dog{separator} running"), ("b.jpg", "x, y; z")]
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(f"{first}\r\n")
        csv.writer(file, delimiter=separator).writerows([("image_name", "comment"), *rows])
    found = read_rows(path)
    assert [(row.image_name, row.text) for row in found] == rows and [row.line for row in found] == [3, 4]


def test_separator_line_that_lies_is_named(tmp_path):
    path = written(tmp_path / "table.csv", "sep=;\nimage_name,comment\na.jpg,x\n")
    with pytest.raises(ValueError, match="its first line names ';'"):
        read_rows(path)


FOLDERS = ["dog", "dog house", "n02084071", "cafe\u0301"]
NAMES = ["a hound", "a kennel, red", "tench, Tinca tinca", "un café"]


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", ";", "  \t"])
def test_class_names_follow_a_space_a_tab_or_a_comma(tmp_path, separator):
    folders = ["dog", "n02084071", "caf\u00e9"]
    lines = "".join(f"{folder}{separator}{name}\r\n" for folder, name in zip(folders, NAMES[1:]))
    found = read_class_names(written(tmp_path / "names.txt", lines), folders)
    assert found == dict(zip(folders, NAMES[1:]))


def test_class_names_of_folders_with_spaces_quotes_and_another_unicode_form(tmp_path):
    path = tmp_path / "names.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write("sep=,\n")
        csv.writer(file).writerows(zip(["dog", "dog house", "n02084071", "caf\u00e9"], NAMES))
    assert read_class_names(path, FOLDERS) == dict(zip(FOLDERS, NAMES))


def test_class_names_with_a_column_of_numbers_are_pointed_out(tmp_path, caplog):
    path = written(tmp_path / "map_clsloc.txt", "dog 1 kit_fox\ncat 2 English_setter\n")
    assert read_class_names(path, ["cat", "dog"])["dog"] == "1 kit_fox"
    assert "map_clsloc.txt" in caplog.text and "'1 kit_fox'" in caplog.text


def test_folder_without_a_name_and_name_without_a_folder_are_both_listed(tmp_path):
    path = written(tmp_path / "names.txt", "dog a hound\ncat a cat\ndog again\nn02084071\n")
    with pytest.raises(ValueError, match=r"names\.txt: 3 folders get no name, 3 lines give none") as error:
        read_class_names(path, FOLDERS)
    said = ("dog house: no line", "line 2: cat a cat", "line 3: dog again", "line 4: n02084071")
    assert [words for words in said if words not in str(error.value)] == []


CAPTIONS = ["a dog", "it's a cat, running", 'the sign says "Stop"', "naïve \\ café 🐕", "long " * 30 + "end"]


def array(texts):
    return np.array(texts, dtype=object)


PRINTED = {
    "JSON": json.dumps(CAPTIONS),
    "JSON over lines": json.dumps(CAPTIONS, indent=1, ensure_ascii=False),
    "Python": repr(CAPTIONS),
    "a tuple": repr(tuple(CAPTIONS)),
    "NumPy": str(array(CAPTIONS)),
    "NumPy's repr": repr(array(CAPTIONS)),
    "NumPy's repr of strings": repr(np.array(CAPTIONS)),
    "NumPy of one": str(array(CAPTIONS[:1])),
}


PLAIN = '("Stop") [sic] (a sign, "Go") {a "b"}'


@pytest.mark.parametrize("case", PRINTED)
def test_list_in_a_field_gives_its_captions_when_asked(tmp_path, case):
    path = tmp_path / "table.csv"
    pd.DataFrame(dict(image_name=["a.jpg", "b.jpg"], comment=[PRINTED[case], PLAIN])).to_csv(path)
    wanted = CAPTIONS[:1] if case == "NumPy of one" else [text.strip() for text in CAPTIONS]
    found = [(row.image_name, row.text) for row in read_rows(path, caption_lists=True)]
    assert found == [*(("a.jpg", text) for text in wanted), ("b.jpg", PLAIN)]
    with pytest.raises(ValueError, match=rf"line 2: .*list of {len(wanted)}.*--caption-lists"):
        read_rows(path)


@pytest.mark.parametrize("cells", [[["a", "b"], ["c"]], [array(["a", "b"]), array(["c"])]])
def test_lists_that_pandas_writes_are_read(tmp_path, cells):
    pd.DataFrame(dict(image_name=["a.jpg", "b.jpg"], comment=cells)).to_csv(tmp_path / "t.csv", index=False)
    assert [row.text for row in read_rows(tmp_path / "t.csv", caption_lists=True)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "field",
    [
        '["a", null]',
        '["a", 1]',
        "['a', nan]",
        '[{"raw": "a"}]',
        '{"raw": "a"}',
        "['it''s']",
        '["\\ud83d"]',
        '["a]',
    ],
)
def test_list_of_anything_but_texts_is_refused_either_way(tmp_path, field):
    pd.DataFrame(dict(image_name=["a.jpg"], comment=[field])).to_csv(tmp_path / "table.csv")
    for asked in (False, True):
        with pytest.raises(ValueError, match="line 2: a list of other things"):
            read_rows(tmp_path / "table.csv", caption_lists=asked)


def test_several_caption_columns_give_a_row_for_each_that_is_filled(tmp_path, caplog):
    caplog.set_level("INFO")
    columns = [f"caption_{i}" for i in range(3)]
    rows = [("a.jpg", "x", "y", "z"), ("b.jpg", "", "y", " "), ("c.jpg", "", "", "")]
    path = tmp_path / "wide.csv"
    pd.DataFrame(rows, columns=["file", *columns]).to_csv(path, index=False)
    with pytest.raises(ValueError, match="line 4: the caption is empty"):
        read_rows(path, "file", columns)
    found = read_rows(path, "file", columns, skip_bad=True)
    assert [(row.text, row.line) for row in found] == [("x", 2), ("y", 2), ("z", 2), ("y", 3)]
    assert "2 caption fields are empty" in caplog.text
    for wrong in ([*columns, "caption_3"], columns + columns[:1]):
        with pytest.raises(ValueError, match=r"wide\.csv: .*caption_"):
            read_rows(path, "file", wrong)
