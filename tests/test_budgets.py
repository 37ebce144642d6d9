"""The sizes that keep this project readable (shared/DESIGN.md): functions, modules, lines, the README."""

import ast

import pytest

from tests.conftest import ROOT

FILES = sorted(
    path for path in ROOT.rglob("*.py") if not any(part.startswith((".", "venv")) for part in path.parts)
)
PARSERS = {"parse", "parser", "flags"}  # they list flags


def name(path):
    return path.relative_to(ROOT).as_posix()


def long_functions(source, most=60):
    """'line N: name, lines' of each function of more than `most` lines that is no parser of flags."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name not in PARSERS:
            lines = node.end_lineno - node.lineno + 1
            if lines > most:
                found.append(f"line {node.lineno}: {node.name}, {lines}")
    return found


def test_long_functions_are_found():
    assert long_functions("def f():\n    pass\n    pass\n", most=2) == ["line 1: f, 3"]
    assert long_functions("def parse():\n    pass\n    pass\n", most=2) == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_file_keeps_its_budget(path):
    source = path.read_text("utf-8")
    lines = source.splitlines()
    assert [f"line {n}" for n, line in enumerate(lines, 1) if len(line) > 110] == []
    assert "# fmt: " + "skip" not in source
    assert long_functions(source) == []
    if "tests" not in path.relative_to(ROOT).parts:
        assert len(lines) <= 400


def test_readme_fits_on_few_screens():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200
