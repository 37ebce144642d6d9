"""README.md and docs/*.md: every command in a fenced block parses, every link leads to a file."""

import argparse
import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n(.*?)^\1\s*$", re.M | re.S)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
COMMAND = re.compile(r"(?:python3?|torchrun .* --) (?=(?:train\.py|eval\.py|-m (?:apps|tools)\.\w+)(?:\s|$))")
ENDS = r"(?:\s+(?:&&|\|\|?|;|\d?[<>]+\s*\S+)(?=\s|$))+\s*"  # what ends a command in a shell


def commands(text):
    """The commands of this project in fenced blocks, as lists of words. Prompts and comments are
    left out, continued lines joined; a command ends at a pipe, redirection, && or ;."""
    found = []
    for block in FENCE.finditer(text):
        for line in block[2].replace("\\\n", " ").splitlines():
            for part in re.split(ENDS, line.strip().removeprefix("$ ")):
                if start := COMMAND.match(part):
                    found.append(shlex.split(part[start.end() :], comments=True))
    return found


def links(text):
    """Targets inside the repository, without their #fragment, of the links outside fenced blocks."""
    targets = [target.partition("#")[0] for target in LINK.findall(FENCE.sub("", text))]
    return [target for target in targets if target and not re.match(r"[a-z][a-z0-9+.-]*:", target)]


SHOWN = list(dict.fromkeys(tuple(words) for page in PAGES for words in commands(page.read_text("utf-8"))))


class Parsed(Exception):
    """Stops a command once argparse has accepted it."""


@pytest.fixture
def stop_after_parsing(monkeypatch):
    """stop_after_parsing(words): any parser that accepts exactly these words raises Parsed."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(words):
        def parse(self, args=None, namespace=None):
            found = parse_args(self, args, namespace)
            if list(args or ()) == words:
                raise Parsed
            return found

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)

    return stop


def main_of(words):
    """(the main function of a command, the words it gets)."""
    if words[0] != "-m":
        return importlib.import_module(words[0].removesuffix(".py")).main, words[1:]
    module = importlib.import_module(words[1])
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{words[1]}.__main__")
    return module.main, words[2:]


def test_reader_finds_commands_and_links():
    text = """```bash
$ python train.py --csv "a b.csv" \\
    --epochs 3  # three
ls
python eval.py x.jpg > out.txt && python -m apps.y --k
torchrun --nproc_per_node=2 -- train.py --shards 'a-{0..1}.tar'
```
python train.py --not-fenced
[a](models/x.py#L3) [b](https://c.d) ![p](<q.png> "t") [e](#here)
"""
    assert commands(text) == [
        ["train.py", "--csv", "a b.csv", "--epochs", "3"],
        ["eval.py", "x.jpg"],
        ["-m", "apps.y", "--k"],
        ["train.py", "--shards", "a-{0..1}.tar"],
    ]
    assert links(text) == ["models/x.py", "q.png"]


def test_readme_shows_both_scripts():
    assert {"train.py", "eval.py"} <= {words[0] for words in commands(README.read_text("utf-8"))}


def test_readme_has_at_most_200_lines():
    lines = README.read_text("utf-8").count("\n")
    assert lines <= 200


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_command_parses(words, stop_after_parsing):
    main, flags = main_of(list(words))
    stop_after_parsing(flags)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(flags)
        except Parsed:
            return
        except SystemExit as end:
            assert end.code in (0, None), errors.getvalue()  # --help
            return
    raise AssertionError("no parser got these words")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    missing = [target for target in links(page.read_text("utf-8")) if not (page.parent / target).exists()]
    assert missing == []
