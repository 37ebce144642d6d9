"""Text files: captions, labels, class names, lists of images. All are read as UTF-8, with or without a byte
order mark, and any other file is refused with the line and the command that converts it.

text = read_text("caption.csv")
separator, text = declared_separator(text)      # of Excel's first line `sep=;`
labels = read_labels("labels.txt")              # one per line
names = read_class_names("names.txt", folders)  # {folder: class name}
"""

import logging
import re
import shlex
import unicodedata

from models.files import level, listed, tally

from .images import check_file

log = logging.getLogger(__name__)
SEPARATOR_LINE = re.compile(r'"?sep=(\\t|[^\w"\r\n])"?[,;\t| ]*(?=[\r\n]|\Z)', re.IGNORECASE)
# Other files that are taken for text: how they begin, and what to do.
NOT_TEXT = {
    rb"PK\x03\x04": "it is an Excel workbook or a ZIP archive; save the sheet as CSV UTF-8, or unpack it",
    rb"\xd0\xcf\x11\xe0": "it is an old Office document; save it as CSV or plain text in UTF-8",
    rb"\x1f\x8b": "it is compressed with gzip; unpack it first",
    rb"\{\\rtf": "it is rich text; save it as plain text in UTF-8",
    rb"%PDF": "it is a PDF document; save it as plain text in UTF-8",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype )?html": "it is a web page, so its download went wrong",
    rb"version https://git-lfs": "it is a Git LFS pointer; fetch the file with: git lfs pull",
}
WIDE = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def read_text(path):
    """The text of a UTF-8 file, without its byte order mark.

    Raises ValueError with the file, the line and the way out for another encoding or another kind of file,
    OSError for a file that cannot be read."""
    path = check_file(path)
    data = path.read_bytes()
    if reason := next((reason for start, reason in NOT_TEXT.items() if re.match(start, data)), None):
        raise ValueError(f"{path}: {reason}")
    if encoding := next((name for start, name in WIDE.items() if data.startswith(start)), None):
        raise ValueError(f"{path}, line 1: it is {encoding.upper()}; {_conversion(path, encoding)}")
    if b"\0" in data:
        at = data.index(b"\0")
        advice = "so it is not a text file; save it as UTF-8"
        if data.count(b"\0") * 4 >= len(data) and data.strip(b"\0"):  # UTF-16 without a byte order mark
            advice = f"as in UTF-16; {_conversion(path, 'utf-16le' if at % 2 else 'utf-16be')}"
        raise ValueError(f"{path}, line {_line(data, at)}: a NUL byte, {advice}")
    try:
        return data.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        advice = _conversion(path, _windows_encoding(data))
        if error.reason == "unexpected end of data":
            advice = f"it is cut off there; or {advice}"
        byte = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise ValueError(f"{path}, line {_line(data, error.start)}: {byte}; {advice}") from None


def _line(data, at):
    """The number, from 1, of the line that holds byte `at`."""
    return len(re.findall(rb"\r\n?|\n", data[:at])) + 1


def _windows_encoding(data):
    """The encoding that bytes which are no UTF-8 may have; nothing in a file tells which."""
    try:
        data.decode("cp1252")
    except UnicodeDecodeError:  # five bytes have no meaning in it
        return "ENCODING"
    return "cp1252"


def _conversion(path, encoding):
    """The advice with the command that converts a file."""
    new = path.with_name(f"{path.stem}.utf8{path.suffix}")
    command = f"iconv -f {encoding} -t utf-8 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
    return f"save it as UTF-8, for example: {command}"


def declared_separator(text):
    """(separator, text) of a file whose first line is Excel's `sep=;`, which becomes a blank line; (None,
    text) of any other."""
    found = SEPARATOR_LINE.match(text)
    if not found:
        return None, text
    return found[1].replace("\\t", "\t"), text[found.end() :]


def read_lines(path):
    """The lines of a text file, stripped, a list of str; "" for a blank line and for `sep=;`."""
    return _stripped(declared_separator(read_text(path))[1])


def split_lines(text):
    """The lines of a text, ended by \\n, \\r\\n or \\r as in csv; str.splitlines also cuts at U+2028 and its
    like."""
    lines = re.split("\r\n?|\n", text)
    return lines if lines[-1] else lines[:-1]


def _stripped(text):
    return [line.strip() for line in split_lines(text)]


def read_labels(path):
    """The distinct labels of a text file, one per line, in their order. Logs how many lines are left out.
    ValueError when there are none."""
    lines = read_lines(path)
    if lines and lines[0][:1] + lines[-1][-1:] in ("[]", "{}"):
        raise ValueError(f"{path}, line 1: it is a list as JSON writes one; write one label per line")
    labels = list(dict.fromkeys(filter(None, lines)))
    if not labels:
        raise ValueError(f"{path}: no labels in it; write one per line")
    blank = lines.count("")
    left_out = dict(blank=blank, repeated=len(lines) - blank - len(labels))
    log.log(level(left_out), "%s: %s", path, tally("lines", len(labels), left_out))
    return labels


def read_class_names(path, folders):
    """{folder: class name} from lines that begin with the name of a folder, then a space, a tab or a comma
    (or what `sep=` names), then the class name, which may hold spaces and commas.

    ValueError lists the folders that get no name and the lines that give none."""
    separator, text = declared_separator(read_text(path))
    lines = _stripped(text)
    known = {unicodedata.normalize("NFC", folder): folder for folder in folders}
    names, wrong = {}, []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        folder, name = _class_name(unicodedata.normalize("NFC", line), known, separator or " \t,;|")
        reason = "no such folder" if not folder else "no class name" if not name else ""
        if folder in names:
            reason = "this folder has a name already"
        if reason:
            wrong.append(f"line {number}: {line[:80]}: {reason}")
        else:
            names[folder] = name
    nameless = [f"{folder}: no line begins with this folder" for folder in folders if folder not in names]
    if wrong or nameless:
        counts = f"{len(nameless)} folders get no name, {len(wrong)} lines give none"
        advice = "write one line per folder: its name, a space, tab or comma, and the class name"
        raise ValueError(f"{path}: {counts}; {advice}{listed(nameless)}{listed(wrong)}")
    left_out = dict(blank=lines.count(""))
    log.log(level(left_out), "%s: %s", path, tally("lines", len(names), left_out))
    if all(re.match(r"\d+\s", name) for name in names.values()):  # as in ImageNet's map_clsloc.txt
        first = next(iter(names.values()))
        log.warning(
            "%s: each class name begins with a number, such as %r; delete what is no name", path, first
        )
    return names


def _class_name(line, known, separators):
    """(folder, class name) of a line; "" for what it does not name. The longest folder's name counts."""
    line = re.sub('^"([^"]*)"', r"\1", line)  # a table may quote its fields
    for at in range(len(line), 0, -1):
        folder = known.get(line[:at].rstrip())
        if folder and line[at : at + 1] in separators:  # also at the end of the line
            name = line[at + 1 :].strip()
            if name[:1] == name[-1:] == '"':
                name = name[1:-1].replace('""', '"')
            return folder, name
    return "", ""
