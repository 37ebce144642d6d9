"""The rows of a captions file, whatever its separator; what is wrong with it is said by line."""

import csv
import io
import re
from typing import NamedTuple

from .images import check_file

SEPARATORS = (",", "\t", ";", "|")
NOT_CSV = {
    b"\xff\xfe\0\0": "it is UTF-32; save it as UTF-8: iconv -f utf-32 -t utf-8",
    b"\xff\xfe": "it is UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8",
    b"\xfe\xff": "it is UTF-16; save it as UTF-8: iconv -f utf-16 -t utf-8",
    b"PK\3\4": "it is an Excel workbook or a ZIP archive; save the sheet as CSV UTF-8",
    b"\x1f\x8b": "it is packed with gzip; unpack it first",
}


class Row(NamedTuple):
    image_name: str
    caption: str
    line: int  # in the file, counted from 1


def read_captions(csv_path, image_column="image_name", caption_column="comment", skip_bad=False):
    """The rows of a captions file, every field stripped text ('NA' and '001' stay as they are).

    The separator is whichever of comma, tab, semicolon or pipe makes a header that holds both columns.
    Raises ValueError naming the file and every bad line (wrong number of fields, empty name or caption);
    with `skip_bad` those lines are left out and printed instead. OSError when there is no such file.
    """
    path = check_file(csv_path)
    data = path.read_bytes()
    if what := next((what for start, what in NOT_CSV.items() if data.startswith(start)), None):
        raise ValueError(f"{path}: {what}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n?|\n", data[: error.start])) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; "
            f"save the file as UTF-8, for example: iconv -f cp1252 -t utf-8 {path}"
        ) from None
    lines = re.split("\r\n?|\n", text)  # as csv does; str.splitlines would also cut at U+2028 and its like
    if "\0" in text:
        line = next(number for number, line in enumerate(lines, 1) if "\0" in line)
        raise ValueError(
            f"{path}, line {line}: holds a NUL byte, so it is not a text file; save it as UTF-8 CSV"
        )
    first = next((line for line in lines if line.strip()), "")[: csv.field_size_limit()]
    headers = {
        s: [f.strip() for f in next(csv.reader([first], delimiter=s, skipinitialspace=True), [])]
        for s in SEPARATORS
    }
    fits = [s for s, fields in headers.items() if {image_column, caption_column} <= set(fields)]
    if not fits:
        found = max(headers.values(), key=len)
        lost = [c for c in (image_column, caption_column) if c not in found]
        raise ValueError(
            f"{path}: no column {' and no column '.join(map(repr, lost))} (found: {', '.join(found)[:300] or 'nothing'}); "
            "name yours with --image-column and --caption-column; a published data set: python -m tools.prepare"
        )
    fields = headers[fits[0]]
    for column in (image_column, caption_column):
        if fields.count(column) > 1:
            raise ValueError(
                f"{path}: column {column!r} stands {fields.count(column)} times in the header; rename all but one"
            )
    image_at, caption_at = fields.index(image_column), fields.index(caption_column)

    rows, bad, header_seen = [], [], False
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=fits[0], strict=True, skipinitialspace=True)
    start = 1
    try:
        for record in reader:
            line, start = start, reader.line_num + 1
            record = [field.strip() for field in record]
            if not any(record):
                continue
            if not header_seen:
                header_seen = True
            elif len(record) != len(fields):
                bad.append(
                    f"line {line}: {len(record)} fields where the header has {len(fields)} (quote a caption that holds {fits[0]!r})"
                )
            elif not record[image_at] or not record[caption_at]:
                bad.append(f"line {line}: the {'image name' if not record[image_at] else 'caption'} is empty")
            else:
                rows.append(Row(record[image_at], record[caption_at], line))
    except (
        csv.Error
    ) as error:  # an open quote, text after a closing quote, a field over csv.field_size_limit()
        raise ValueError(
            f"{path}, line {start}: {error}; close the quote that is open, write one inside a caption twice"
        ) from None
    if bad and not skip_bad:
        raise ValueError(
            f"{path}: {len(bad)} bad lines; mend them, or leave them out with --skip-bad\n  "
            + "\n  ".join(bad)
        )
    if bad:
        print(f"{path}: left out {len(bad)} bad lines, the first: {bad[0]}")
    if not rows:
        raise ValueError(f"{path}: no captions in it (header: {', '.join(fields)})")
    return rows
