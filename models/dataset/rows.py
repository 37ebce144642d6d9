"""The rows of a captions or questions file, whatever its separator. What is wrong with it is reported by
line."""

import csv
import io
import logging
import re
from typing import NamedTuple

from .images import check_file

log = logging.getLogger(__name__)
SEPARATORS = (",", "\t", ";", "|")
NOT_CSV = {
    b"\xff\xfe\0\0": "it is UTF-32; save it as UTF-8: iconv -f utf-32 -t utf-8",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8",
    b"PK\3\4": "it is an Excel workbook or a ZIP archive; save the sheet as CSV UTF-8",
    b"\x1f\x8b": "it is compressed with gzip; unpack it first",
}


class Row(NamedTuple):
    image_name: str
    question: str  # "" for a caption
    text: str  # the caption, or the answer to the question
    line: int  # in the file, counted from 1
    type: str = ""  # of the question
    file: str = ""  # the file it is from


def read_rows(
    csv_path, image_column="image_name", caption_column="comment", question_column="", skip_bad=False
):
    """A list of Row. Every field is stripped text: 'NA' and '001' stay as they are.

    The separator is whichever of comma, tab, semicolon or pipe gives a header with all the columns.
    `question_column` names the column of questions; without it every row is a caption. A questions file may
    also have a column `type`. Raises ValueError with the file and every bad line (wrong number of fields,
    empty name or text); `skip_bad` leaves those lines out and logs them instead. OSError when there is no
    such file."""
    path = check_file(csv_path)
    text = _decode(path)
    columns = [image_column, caption_column] + ([question_column] if question_column else [])
    separator, header = _header(path, text, columns)
    places = [header.index(column) for column in columns]
    type_place = header.index("type") if question_column and "type" in header else None
    rows, bad = [], []
    for line, fields in _records(path, text, separator):
        if len(fields) != len(header):
            counts = f"{len(fields)} fields where the header has {len(header)}"
            bad.append(f"line {line}: {counts} (quote a field that holds {separator!r})")
            continue
        name, text, *question = (fields[place] for place in places)
        if not name or not text:
            what = "answer" if question and question[0] else "caption"
            bad.append(f"line {line}: the {what if name else 'image name'} is empty")
        else:
            kind = fields[type_place] if type_place is not None else ""
            rows.append(Row(name, question[0] if question else "", text, line, kind, str(path)))
    if bad and not skip_bad:
        listed = "\n  ".join(bad)
        raise ValueError(
            f"{path}: {len(bad)} bad lines; correct them, or leave them out with --skip-bad\n  {listed}"
        )
    if bad:
        log.warning("%s: left out %d bad lines, the first: %s", path, len(bad), bad[0])
    if not rows:
        what = "questions" if question_column else "captions"
        raise ValueError(f"{path}: no {what} in it (header: {', '.join(header)})")
    return rows


def read_questions(csv_path, image_column="image_name", skip_bad=False):
    """A list of Row of a questions file, with the columns `question`, `answer` and, if there is one, `type`.
    A row with an empty question is a caption. Raises as `read_rows` does."""
    return read_rows(csv_path, image_column, "answer", "question", skip_bad)


def _decode(path):
    data = path.read_bytes()
    if reason := next((reason for start, reason in NOT_CSV.items() if data.startswith(start)), None):
        raise ValueError(f"{path}: {reason}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n?|\n", data[: error.start])) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; "
            f"save the file as UTF-8, for example: iconv -f cp1252 -t utf-8 {path}"
        ) from None
    if "\0" in text:
        line = len(re.findall("\r\n?|\n", text[: text.index("\0")])) + 1
        raise ValueError(f"{path}, line {line}: a NUL byte, so it is not a text file; save it as UTF-8 CSV")
    return text


def _header(path, text, columns):
    """(separator, field names) of the first line that is not blank."""
    lines = re.split("\r\n?|\n", text)  # as csv does; str.splitlines also cuts at U+2028 and its like
    first = next((line for line in lines if line.strip()), "")[: csv.field_size_limit()]
    headers = {separator: next(_reader([first], separator, strict=False), []) for separator in SEPARATORS}
    headers = {separator: [field.strip() for field in fields] for separator, fields in headers.items()}
    fits = [separator for separator, fields in headers.items() if set(columns) <= set(fields)]
    if not fits:
        found = max(headers.values(), key=len)
        missing = " and ".join(f"no column {column!r}" for column in columns if column not in found)
        advice = "name yours with --image-column and --caption-column"
        if len(columns) == 3:
            advice = "a questions file has image_name (--image-column), question and answer"
        found = ", ".join(found)[:300] or "nothing"
        published = "for a published data set: python -m tools.prepare"
        raise ValueError(f"{path}: {missing} (found: {found}); {advice}; {published}")
    header = headers[fits[0]]
    for column in columns:
        if header.count(column) > 1:
            count = header.count(column)
            raise ValueError(f"{path}: the header has {count} columns {column!r}; rename all but one")
    return fits[0], header


def _records(path, text, separator):
    """(line, stripped fields) of each record after the header; blank ones are passed over."""
    reader = _reader(io.StringIO(text, newline=""), separator, strict=True)
    start = 1
    header_seen = False
    try:
        for record in reader:
            line, start = start, reader.line_num + 1
            fields = [field.strip() for field in record]
            if any(fields) and header_seen:
                yield line, fields
            header_seen = header_seen or any(fields)
    except csv.Error as error:
        # An open quote, text after a closing quote, or a field over csv.field_size_limit().
        advice = 'close the quote that is open, write a quote inside a caption as ""'
        raise ValueError(f"{path}, line {start}: {error}; {advice}") from None


def _reader(lines, separator, strict):
    return csv.reader(lines, delimiter=separator, strict=strict, skipinitialspace=True)
