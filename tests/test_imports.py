"""Who may import whom (docs: architecture.txt), read from the source with `ast`: nothing is run."""

import ast

import pytest

from tests.conftest import ROOT

GROUND = {"files", "hub", "onednn"}
WHOLE = {"vljepa", "onnx_file"}
HEAVY = set(
    "open_clip sentence_transformers transformers timm matplotlib pandas torchvision huggingface_hub captum "
    "tokenizers onnx onnxruntime pycocoevalcap sklearn scipy av usearch faiss gradio".split()
)
FILES = [ROOT / "train.py", ROOT / "eval.py"]
for folder in ("models", "apps", "tools"):
    FILES += sorted((ROOT / folder).rglob("*.py"))
SCRIPTS = [
    path for path in FILES if path.parent == ROOT or path.parent.name == "tools" or path.stem == "__main__"
]


def name(path):
    return path.relative_to(ROOT).as_posix()


def imports(source, package=""):
    """[(module, line, whether it is imported as soon as the file is)] of all imports, also those inside
    functions. `from a import b` gives 'a.b', since b may be a module."""
    found = []

    def walk(node, at_once):
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found.extend((f"{module}.{alias.name}", node.lineno, at_once) for alias in node.names)
        inside = isinstance(node, (ast.FunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            walk(child, at_once and not inside)

    walk(ast.parse(source), True)
    return found


def imports_of(path):
    return imports(path.read_text("utf-8"), ".".join(path.relative_to(ROOT).parts[:-1]))


def offenders(path, is_wrong):
    """'file, line: module' of each import for which is_wrong(module, at_once)."""
    return [
        f"{name(path)}, line {line}: {m}" for m, line, at_once in imports_of(path) if is_wrong(m, at_once)
    ]


def part_of(module):
    """The part of models/ that a module belongs to: 'features' for models.features.cache."""
    return module.split(".")[1] if module.startswith("models.") else None


def test_import_reader_finds_every_kind_of_import():
    source = "import a.b as c, d\nfrom . import g\nfrom ..h import i\ndef j():\n    import k\n"
    assert imports(source, "models.x") == [
        ("a.b", 1, True),
        ("d", 1, True),
        ("models.x.g", 2, True),
        ("models.h.i", 3, True),
        ("k", 5, False),
    ]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parts[-2] == "models" and path.stem in GROUND], ids=name
)
def test_ground_floor_imports_no_model(path):
    assert offenders(path, lambda module, _: module.startswith("models.")) == []


def test_models_import_no_script_and_no_whole():
    """The trained whole (vljepa, onnx_file) is above the other parts, and scripts are above both."""
    found = []
    for path in (ROOT / "models").rglob("*.py"):
        upper = WHOLE if path.stem not in WHOLE else set()
        found += offenders(path, lambda m, _: m.split(".")[0] in ("train", "eval", "apps", "tools", "tests"))
        found += offenders(path, lambda m, _, upper=upper: part_of(m) in upper)
    assert found == []


def test_parts_of_models_form_no_circle():
    needs = {}
    for path in (ROOT / "models").rglob("*.py"):
        part = path.relative_to(ROOT / "models").parts[0].removesuffix(".py")
        needs.setdefault(part, set()).update(
            p for m, *_ in imports_of(path) if (p := part_of(m)) and p != part
        )
    while needs:
        free = [part for part in needs if not needs[part] & needs.keys()]
        assert free, f"these import each other in a circle: {sorted(needs)}"
        for part in free:
            del needs[part]


def test_apps_but_the_page_never_import_each_other():
    found = []
    for path in (ROOT / "apps").rglob("*.py"):
        own = f"apps.{path.relative_to(ROOT / 'apps').parts[0].removesuffix('.py')}"
        if own != "apps.page":  # it is made of the others
            found += offenders(path, lambda m, _, own=own: m.startswith("apps.") and not m.startswith(own))
        found += offenders(path, lambda m, _: m.split(".")[0] in ("train", "eval", "tools", "tests"))
    for path in (ROOT / "train.py", ROOT / "eval.py"):
        found += offenders(path, lambda m, _: m.split(".")[0] in ("train", "eval", "apps", "tools", "tests"))
    assert found == []


def test_only_the_page_imports_gradio():
    found = []
    for path in FILES:
        if path.parent.name != "page":
            found += offenders(path, lambda m, _: m.split(".")[0] == "gradio" or m.startswith("apps.page"))
    assert found == []


def test_only_events_imports_tensorboard():
    found = []
    for path in FILES:
        if name(path) != "models/events.py":
            found += offenders(path, lambda m, _: "tensorboard" in m)
    assert found == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_packages_are_imported_where_they_are_needed(path):
    """An import of seconds at module level is paid by --help and by models.metrics."""
    # VLJEPA is a subclass of huggingface_hub's mixin; the other two are imported only where onnx or timm is
    # the point, and the modules of the page only once it runs.
    exempt = {"vljepa": {"huggingface_hub"}, "graph": {"onnx"}, "timm_peer": {"timm"}}
    is_page = path.parent.name == "page" and path.stem != "__main__"
    allowed = {"gradio"} if is_page else exempt.get(path.stem, set())
    assert offenders(path, lambda m, at_once: at_once and m.split(".")[0] in HEAVY - allowed) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_scripts_import_torch_after_the_flags_are_read(path):
    slow = {"torch", "models.vljepa", "models.features", "models.predictor", "models.vision", "models.text"}
    assert offenders(path, lambda m, now: now and any(m == s or m.startswith(f"{s}.") for s in slow)) == []


def test_private_operators_of_torch_are_in_one_file():
    found = []
    for path in FILES:
        lines = enumerate(path.read_text("utf-8").splitlines(), 1)
        found += [f"{name(path)}, line {number}" for number, line in lines if "torch.ops" in line]
    assert found and [where for where in found if not where.startswith("models/onednn.py")] == []


def test_library_code_never_prints():
    allowed = {name(path) for path in FILES if path.parts[-2] in ("bench", "draw_archive")} | {
        "models/script.py"
    }
    found = []
    for path in FILES:
        if path in SCRIPTS or name(path) in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
                found.append(f"{name(path)}, line {node.lineno}")
    assert found == []
