"""The rows of a captions or questions file, whatever its separator. What is wrong with it is reported by
line."""

import ast
import csv
import io
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from models.files import listed

from .text_files import declared_separator, read_text, split_lines

log = logging.getLogger(__name__)
SEPARATORS = (",", "\t", ";", "|")
# A list of texts as JSON, Python or NumPy write it; NumPy puts no commas between them.
LIST = re.compile(r"""\[\s*(["'{\[].*)?\]""", re.DOTALL)
ARRAY = re.compile(r"array\((\[.*\])(,\s*dtype=.*)?\)", re.DOTALL)
STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
# With each string empty: a list, and a tuple or a mapping.
STRINGS = re.compile(r'[\[(]\s*""((\s*,\s*|\s+)"")*\s*,?\s*[\])]')
TUPLE = re.compile(r'\(\s*""\s*,(\s*""\s*,?)*\s*\)|\{\s*""\s*:.*\}', re.DOTALL)


class Row(NamedTuple):
    image_name: str
    question: str  # "" for a caption
    text: str  # the caption, or the answer to the question
    line: int  # in the file, counted from 1
    type: str = ""  # of the question
    file: str = ""  # the file it is from


def read_rows(
    csv_path,
    image_column="image_name",
    caption_column="comment",
    question_column="",
    skip_bad=False,
    caption_lists=False,
    left_out=None,
):
    """A list of Row. Every field is stripped text: 'NA' and '001' stay as they are.

    The separator is what Excel's first line `sep=;` names, else whichever of comma, tab, semicolon or pipe
    gives a header with all the columns. `caption_column` may be a list of columns, each of which gives a Row
    where it is not empty. With `caption_lists` a list of captions in a field, as JSON, Python or NumPy write
    one, gives a Row for each; otherwise it is a bad line. `question_column` names the column of questions;
    without it every row is a caption. A questions file may also have a column `type`.

    Raises ValueError with the file and the bad lines (wrong number of fields, empty name or text, a list);
    `skip_bad` leaves those lines out and logs them instead. `left_out`, a Counter {reason: lines}, is added
    to. OSError when there is no such file."""
    path = Path(csv_path)
    captions = [caption_column] if isinstance(caption_column, str) else list(caption_column)
    columns = [image_column, *captions] + ([question_column] if question_column else [])
    left_out = Counter() if left_out is None else left_out
    declared, text = declared_separator(read_text(path))
    separator, header = _header(path, text, columns, declared)
    places = [header.index(column) for column in columns]
    type_place = header.index("type") if question_column and "type" in header else None
    rows, bad, empty = [], [], 0
    for line, fields in _records(path, text, separator):
        if not any(fields):
            left_out["blank"] += 1
            continue
        try:
            if len(fields) != len(header):
                counts = f"{len(fields)} fields where the header has {len(header)}"
                raise BadLine("wrong number of fields", f"{counts} (quote a field that holds {separator!r})")
            name, *texts = (fields[place] for place in places)
            question = texts.pop() if question_column else ""
            texts = _texts(name, texts, "answer" if question else "caption", caption_lists)
        except BadLine as error:
            reason, message = error.args
            bad.append(f"line {line}: {message}")
            left_out[reason] += 1
            continue
        kind = fields[type_place] if type_place is not None else ""
        rows += [Row(name, question, text, line, kind, str(path)) for text in texts if text]
        empty += texts.count("")
    if bad and not skip_bad:
        advice = "correct them, or leave them out with --skip-bad"
        raise ValueError(f"{path}: {len(bad)} bad lines; {advice}{listed(bad)}")
    if bad:
        log.warning("%s: left out %d bad lines, the first: %s", path, len(bad), bad[0])
    if empty:
        log.info("%s: %d caption fields are empty, in rows with other captions", path, empty)
    if not rows:
        what = "questions" if question_column else "captions"
        raise ValueError(f"{path}: no {what} in it (header: {', '.join(header)})")
    return rows


def read_questions(csv_path, image_column="image_name", skip_bad=False, left_out=None):
    """A list of Row of a questions file, with the columns `question`, `answer` and, if there is one, `type`.
    A row with an empty question is a caption. Raises as `read_rows` does."""
    return read_rows(csv_path, image_column, "answer", "question", skip_bad, left_out=left_out)


class BadLine(ValueError):
    """Why a line cannot be used: (a reason to count it by, the message)."""


def _texts(name, fields, what, caption_lists):
    """The texts of a line, of which some may be empty. Raises BadLine."""
    if not name:
        raise BadLine("empty image name", "the image name is empty")
    texts = []
    for field in fields:
        found = _list_in(field)
        if found is None:
            texts.append(field)
        elif caption_lists:
            texts += found or [""]
        else:
            advice = "read it with --caption-lists, or write a line for each"
            begins = " ".join(field[:60].split())
            raise BadLine(f"list of {what}s", f"the {what} is a list of {len(found)}: {begins}; {advice}")
    if not any(texts):
        raise BadLine(f"empty {what}", f"the {what} is empty")
    return texts


def _list_in(field):
    """The stripped texts of a list; None for a field that is none. Raises BadLine for a list of anything
    else."""
    if not field.startswith(("[", "(", "{", "array(")):
        return None
    if array := ARRAY.fullmatch(field):
        field = array[1]
    shape = " ".join(STRING.sub('""', field).split())
    if not LIST.fullmatch(field) and not TUPLE.fullmatch(shape):
        return None
    try:
        texts = _parsed(field, shape)
        if not isinstance(texts, list):
            raise TypeError
        "".join(texts).encode()  # JSON can spell half a character, which no tokenizer accepts
    except (ValueError, TypeError, SyntaxError, RecursionError):
        begins = " ".join(field[:60].split())
        message = f"a list of other things than texts: {begins}; write quoted texts alone"
        raise BadLine("list of no texts", message) from None
    return [text.strip() for text in texts]


def _parsed(field, shape):
    try:
        return json.loads(field)
    except json.JSONDecodeError:
        if not STRINGS.fullmatch(shape):
            raise
        return [ast.literal_eval(text) for text in STRING.findall(field)]


def _header(path, text, columns, declared):
    """(separator, field names) of the first line that is not blank."""
    first = next((line for line in split_lines(text) if line.strip()), "")[: csv.field_size_limit()]
    separators = [declared] if declared else SEPARATORS
    headers = {separator: next(_reader([first], separator, strict=False), []) for separator in separators}
    headers = {separator: [field.strip() for field in fields] for separator, fields in headers.items()}
    fits = [separator for separator, fields in headers.items() if set(columns) <= set(fields)]
    if not fits:
        found = max(headers.values(), key=len)
        missing = " and ".join(f"no column {column!r}" for column in columns if column not in found)
        advice = "name yours with --image-column and --caption-column, which takes several"
        if "question" in columns:
            advice = "a questions file has image_name (--image-column), question and answer"
        found = ", ".join(found)[:300] or "nothing"
        found += f"; its first line names {declared!r} as separator" if declared else ""
        published = "for a published data set: python -m tools.prepare"
        raise ValueError(f"{path}: {missing} (found: {found}); {advice}; {published}")
    header = headers[fits[0]]
    for column in columns:
        if header.count(column) > 1:
            count = header.count(column)
            raise ValueError(f"{path}: the header has {count} columns {column!r}; rename all but one")
        if columns.count(column) > 1:
            raise ValueError(f"{path}: the column {column!r} is asked for twice; name it once")
    return fits[0], header


def _records(path, text, separator):
    """(line, stripped fields) of each record after the header; blank lines are passed over."""
    reader = _reader(io.StringIO(text, newline=""), separator, strict=True)
    start = 1
    header_seen = False
    try:
        for record in reader:
            line, start = start, reader.line_num + 1
            fields = [field.strip() for field in record]
            if header_seen and (len(fields) > 1 or any(fields)):
                yield line, fields
            header_seen = header_seen or any(fields)
    except csv.Error as error:
        # An open quote, text after a closing quote, or a field over csv.field_size_limit().
        advice = 'close the quote that is open, write a quote inside a caption as ""'
        raise ValueError(f"{path}, line {start}: {error}; {advice}") from None


def _reader(lines, separator, strict):
    return csv.reader(lines, delimiter=separator, strict=strict, skipinitialspace=separator != " ")
