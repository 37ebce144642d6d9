"""Who may import whom, read from the source with `ast`: nothing is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "models").rglob("*.py"))
LEAVES = [
    path
    for path in MODELS
    if path.stem not in ("vljepa", "exported") and path != ROOT / "models" / "__init__.py"
]
WIRES = [ROOT / "train.py", ROOT / "eval.py", *sorted((ROOT / "apps").glob("*.py"))]
HEAVY = {
    "open_clip",
    "sentence_transformers",
    "transformers",
    "timm",
    "matplotlib",
    "pandas",
    "torchvision",
    "huggingface_hub",
    "captum",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "pycocoevalcap",
    "sklearn",
    "av",
    "usearch",
}


def name(path):
    return str(path.relative_to(ROOT))


def imports(source, package=""):
    """[(module, line, whether it is imported as soon as the file is)] of all imports, also those inside functions.
    `from a import b` gives 'a.b', since b may be a module."""
    found = []

    def walk(node, at_once):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found.extend((f"{module}.{alias.name}", node.lineno, at_once) for alias in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            walk(child, at_once and not inside)

    walk(ast.parse(source), True)
    return found


def of(path):
    return imports(path.read_text(encoding="utf-8"), path.parent.name if path.parent != ROOT else "")


def offenders(path, forbidden, at_once=False):
    """'file, line: module' of each import that starts with one of `forbidden`; `at_once`: at module level alone."""
    return [
        f"{path.relative_to(ROOT)}, line {line}: {module}"
        for module, line, now in of(path)
        if (now or not at_once) and any(module == f or module.startswith(f + ".") for f in forbidden)
    ]


def test_import_reader_finds_every_kind_of_import():
    """Catches a rule that is kept only because its reader is blind."""
    source = """
import a.b as c, d
from e import f
from . import g
from .h import i
def j():
    import k
    class L:
        from m import n
try:
    import o
except ImportError:
    pass
"""
    found = {module: now for module, _, now in imports(source, "models")}
    assert found == {
        "a.b": True,
        "d": True,
        "e.f": True,
        "models.g": True,
        "models.h.i": True,
        "k": False,
        "m.n": False,
        "o": True,
    }
    assert [line for module, line, _ in imports(source) if module == "k"] == [7]


@pytest.mark.parametrize("path", LEAVES, ids=name)
def test_leaf_imports_no_sibling(path):
    """Catches a leaf that can no longer be read, tested or lifted out alone. A leaf of several files (models/vision/) is a
    folder, whose files may import each other."""
    own = f"models.{path.parent.name}." if path.parent.name != "models" else "/"
    assert [found for found in offenders(path, ["models"]) if own not in found.split(": ")[1]] == []


def test_leaves_named_in_the_plan_are_there():
    """Catches the rule above over an empty list."""
    named = set("dataset vision text features predictor losses metrics zeroshot checkpoint".split())
    assert named <= {path.relative_to(ROOT / "models").parts[0].removesuffix(".py") for path in LEAVES}


@pytest.mark.parametrize("path", MODELS, ids=name)
def test_models_import_no_wire(path):
    """Catches an arrow that points down: parts that need the scripts which use them."""
    assert offenders(path, ["train", "eval", "apps", "tests"]) == []


@pytest.mark.parametrize("path", WIRES, ids=lambda path: path.stem)
def test_wires_never_import_each_other(path):
    """Catches an app that breaks when another is deleted."""
    assert offenders(path, ["train", "eval", "apps", "tests"]) == []


@pytest.mark.parametrize("path", [ROOT / "train.py", ROOT / "eval.py", *MODELS], ids=name)
def test_heavy_packages_are_imported_where_they_are_needed(path):
    """Catches an import of seconds at module level, which --help and models.metrics would pay for."""
    allowed = {"huggingface_hub"} if path.stem == "vljepa" else set()  # the class stands on its mixin
    assert offenders(path, HEAVY - allowed, at_once=True) == []


@pytest.mark.parametrize("path", [ROOT / "train.py", ROOT / "eval.py"], ids=lambda path: path.stem)
def test_scripts_import_torch_after_the_flags_are_read(path):
    """Catches a --help that waits for torch, also through one of the models."""
    assert offenders(path, ["torch", "models"], at_once=True) == []
