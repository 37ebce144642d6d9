"""README.md: every command it shows parses, every file it links exists."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.exists() else ""
FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n(.*?)^\1\s*$", re.M | re.S)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")


def commands(text):
    """The `python train.py`, `python eval.py` and `python -m apps.X` lines of fenced blocks, as argv lists without 'python':
    prompts and comments dropped, continued lines joined, cut at a pipe, redirection, && or ;."""
    found = []
    for block in FENCE.finditer(text):
        for line in block[2].replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ").strip()
            for part in re.split(r"\s(?:&&|\|\|?|;)\s", line):
                if re.match(r"python3? (train\.py|eval\.py|-m apps\.\w+)(\s|$)", part):
                    words = shlex.split(part, comments=True)[1:]
                    found.append(
                        words[
                            : next(
                                (i for i, word in enumerate(words) if re.match(r"\d?[<>]", word)), len(words)
                            )
                        ]
                    )
    return found


def links(text):
    """Link targets inside the repository, without their #fragment; those in fenced blocks are examples."""
    targets = [target.partition("#")[0] for target in LINK.findall(FENCE.sub("", text))]
    return [target for target in targets if target and not re.match(r"[a-z][a-z0-9+.-]*:", target)]


def test_readme_reader_finds_commands_and_links():
    """Catches a check that passes because it reads nothing."""
    text = """```bash
$ python train.py --csv "a b.csv" \\
    --epochs 3  # three
ls
python eval.py x.jpg > out.txt && python -m apps.y --k
```
python train.py --not-fenced
[a](models/x.py#L3) [b](https://c.d) ![p](<q.png> "t") [e](#here)
"""
    assert commands(text) == [
        ["train.py", "--csv", "a b.csv", "--epochs", "3"],
        ["eval.py", "x.jpg"],
        ["-m", "apps.y", "--k"],
    ]
    assert links(text) == ["models/x.py", "q.png"]


@pytest.mark.skipif(not TEXT, reason="README.md is not written yet")
def test_readme_shows_both_scripts():
    """Catches a README whose commands this file no longer recognises."""
    assert {"train.py", "eval.py"} <= {command[0] for command in commands(TEXT)}


@pytest.mark.skipif(not TEXT, reason="README.md is not written yet")
@pytest.mark.parametrize("command", commands(TEXT), ids=" ".join)
def test_readme_command_parses(command):
    """Catches a flag that was renamed, and a value that is no longer a choice."""
    if command[0] == "-m":
        path = ROOT.joinpath(*command[1].split(".")).with_suffix(".py")
        assert path.is_file(), f"{path.relative_to(ROOT)} is shown in the README and is not there"
        verb = [
            word for word in command[2:3] if not word.startswith("-")
        ]  # of apps that have some, each its own flags
        ask = [sys.executable, "-m", command[1], *verb, "--help"]
        told = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        flags = [word.partition("=")[0] for word in command[2:] if word.startswith("--")]
        assert [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", told)] == []
        return
    import eval
    import train

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            {"train.py": train, "eval.py": eval}[command[0]].parse(command[1:])
    except SystemExit as stop:
        assert stop.code in (0, None), errors.getvalue()


@pytest.mark.skipif(not TEXT, reason="README.md is not written yet")
def test_readme_links_exist():
    """Catches a link to a file that was moved or never written."""
    assert [target for target in links(TEXT) if not (ROOT / target).exists()] == []
