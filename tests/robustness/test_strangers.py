"""Files that somebody else made: checkpoints and caches that execute nothing, allocate nothing, and are
refused by name.

    python -m pytest tests/test_strangers.py -v        a line a file

tests/test_checkpoint.py has the plain cases: a pickle bomb, garbage, ten truncations, a flipped bit, NaN, a
foreign format."""

import copy
import json
import pickle
import shutil
import sqlite3
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from conftest import Letters, Pixels, make_archive, run

import eval as eval_script
import train
from models import runs as checkpoint
from models.predictor import Predictor
from models.text import TextEncoder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """FOLDER/archive, FOLDER/run of one epoch and two members, FOLDER/features.sqlite."""
    folder = tmp_path_factory.mktemp("strangers")
    archive = make_archive(folder / "archive")
    flags = [
        "--csv",
        archive.csv,
        "--images",
        archive.images,
        "--cache",
        folder / "features.sqlite",
        "--run",
        folder / "run",
        "--vision",
        "efficientnet-lite0",
        "--hidden",
        16,
        "--members",
        2,
        "--epochs",
        1,
        "--val-fraction",
        0.25,
        "--quiet",
        "--device",
        "cpu",
    ]
    assert train.main(list(map(str, flags))) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def change(path, edit):
    """Save what `edit` made of a checkpoint's dict, as a stranger would: with torch's own writer."""
    state = torch.load(path, weights_only=True)
    torch.save(edit(state) or state, path)


def refused(capsys, code, path, program):
    """The script failed, named the file, and printed no traceback."""
    err = capsys.readouterr().err
    assert code == 1 and err.startswith(program) and str(path) in err and "Traceback" not in err, err
    return err


def ask(folder):
    return eval_script.main(
        [
            str(folder / "archive" / "images" / "000.jpg"),
            "--run",
            str(folder / "run"),
            "--device",
            "cpu",
            "--quiet",
        ]
    )


def resume(folder):
    return train.main(
        ["--resume", "--run", str(folder / "run"), "--epochs", "3", "--quiet", "--device", "cpu"]
    )


def peak():
    """Largest resident set of this process so far, bytes."""
    return (
        int(
            next(
                line
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmHWM")
            ).split()[1]
        )
        * 1024
    )


# ------------------------------------------------------------------------------------------------ what any
# reader of a checkpoint meets

BIG = 10**12


def claims(rows):
    """A tensor of `rows` numbers with four behind it, as `torch.load` rebuilds whatever a file says."""

    class Claim:
        def __reduce__(self):
            storage = torch.storage.TypedStorage(
                wrap_storage=torch.zeros(4).untyped_storage(), dtype=torch.float32, _internal=True
            )
            return torch._utils._rebuild_tensor_v2, (storage, 0, (rows,), (1,), False, {})

    return Claim()


def put(key, value):
    """Set state[a][b]... to `value`; `key` is 'a.b', and a parameter's own dots are written ':'."""

    def edit(state):
        *path, last = (part.replace(":", ".") for part in key.split("."))
        for part in path:
            state = state[part]
        state[last] = value

    return edit


WEIGHT = "predictor.members:0:1:weight"
FILES = {
    "hidden_dim of 10^12": put("config.hidden_dim", BIG),
    "members of 10^12": put("config.members", BIG),
    "vision_dim of 10^12": put("config.vision_dim", BIG),
    "text_dim of 10^7": put("config.text_dim", 10**7),
    "negative hidden_dim": put("config.hidden_dim", -5),
    "string for hidden_dim": put("config.hidden_dim", "16"),
    "float for hidden_dim": put("config.hidden_dim", 1e12),
    "setting nobody knows": put("config.backdoor", 1),
    "list for the configuration": put("config", [1]),
    "string for a tensor": put(WEIGHT, "zeros"),
    "number for a tensor": put(WEIGHT, 0.0),
    "list for the parameters": put("predictor", []),
    "no parameters": put("predictor", {}),
    "wrong shape": put(WEIGHT, torch.zeros(3, 5)),
    "wrong type": put(WEIGHT, torch.zeros(16, 1280, dtype=torch.float64)),
    "complex": put(WEIGHT, torch.zeros(16, 1280, dtype=torch.complex64)),
    "sparse": put(WEIGHT, torch.zeros(16, 1280).to_sparse()),
    "one number seen as 10^12": put(WEIGHT, torch.zeros(1).expand(10**6, 10**6)),
    "4 numbers claimed to be 10^9": put(WEIGHT, claims(10**9)),
    "NaN": put(WEIGHT, torch.full((16, 1280), float("nan"))),
    "string for a tower": put("towers.vision", "efficientnet-lite0"),
    "number for a tower's name": put("towers.vision.name", 7),
    "tower of another hash": put("towers.vision.sha256", "0" * 64),
    "epoch in words": put("epoch", "one"),
    "recipe in words": put("recipe", "classic"),
}


@pytest.mark.parametrize("edit", FILES.values(), ids=FILES)
def test_strangers_checkpoint_is_refused_by_name_and_takes_no_memory(folder, capsys, edit):
    """Catches a traceback far from the file, and gigabytes allocated because a small file asks for them."""
    path = folder / "run" / "best.pt"
    change(path, edit)
    before = peak() if sys.platform == "linux" else 0
    refused(capsys, ask(folder), path, "eval.py: ")
    assert sys.platform != "linux" or peak() - before < 300e6


@pytest.mark.parametrize("kind", ["deflated", "overlapping", "function"])
def test_zip_that_is_not_torch_saves_own_is_refused(folder, tmp_path, capsys, kind):
    """Catches a zip bomb (a gigabyte of zeros in a megabyte), one that lists the same bytes many times, and a
    function.

    torch itself would make the first large and the second slow."""
    path = folder / "run" / "best.pt"
    if kind == "deflated":
        with (
            zipfile.ZipFile(path) as old,
            zipfile.ZipFile(tmp_path / "new.pt", "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
            new.writestr("best/data/99", bytes(1 << 28))
        shutil.copy(tmp_path / "new.pt", path)
    elif kind == "overlapping":
        raw = bytearray(path.read_bytes())
        with zipfile.ZipFile(path, "a") as archive:
            largest = max(archive.infolist(), key=lambda part: part.file_size)
            for i in range(50):
                twin = copy.copy(largest)
                twin.filename = twin.orig_filename = largest.filename[:-2] + f"{i:02}"
                archive.filelist.append(twin)
                archive.NameToInfo[twin.filename] = twin
            archive._didModify = True
        assert path.stat().st_size < 2 * len(raw)
    else:
        torch.save(dict(torch.load(path, weights_only=True), recipe=pickle.loads), path)
    refused(capsys, ask(folder), path, "eval.py: ")


@pytest.mark.parametrize(
    "other",
    ["archive/images/000.jpg", "archive/captions.csv", "features.sqlite", "run/log.jsonl", "run/curves.png"],
)
def test_another_file_under_the_checkpoints_name_is_refused(folder, capsys, other):
    """Catches a renamed file that is taken for what its name says."""
    shutil.copy(folder / other, folder / "run" / "best.pt")
    refused(capsys, ask(folder), folder / "run" / "best.pt", "eval.py: ")


# ------------------------------------------------------------------------------------------------------------
# what --resume reads besides


def moment(value):
    return lambda state: state["optimiser"]["state"][0].update(exp_avg=value)


RESUMED = {
    "moment too small": moment(
        torch.zeros(3)
    ),  # the fused AdamW reads past its end: seen to crash the process
    "moment of one number": moment(torch.zeros(1).expand(16, 1280)),
    "moment of another type": moment(torch.zeros(16, 1280, dtype=torch.float64)),
    "string for a moment": moment("zeros"),
    "moments of a parameter that is not there": lambda state: state["optimiser"]["state"].update(
        {99: state["optimiser"]["state"][0]}
    ),
    "list for the optimiser": put("optimiser", []),
    "no optimiser": lambda state: state.pop("optimiser") and None,
    "random state too short": put("rng", torch.zeros(3, dtype=torch.uint8)),
    "random state of zeros": lambda state: state.update(rng=torch.zeros_like(state["rng"])),
    "string for the random state": put("rng", "0"),
    "history of another length": put("history", []),
    "history in words": put("history", "epoch one"),
    "step below zero": put("step", -1),
    "step in words": put("step", "none"),
    "temperature not a number": put("log_scale", float("nan")),
    "best epoch in words": put("best", "the first"),
    "hidden of 10^12 in the recipe": put("recipe.hidden", BIG),
    "members of 10^12 in the recipe": put("recipe.members", BIG),
    "string for the learning rate": put("recipe.lr", "high"),
    "list for the captions file": put("recipe.csv", ["a", "b"]),
    "captions file elsewhere": put("recipe.csv", "/etc/passwd"),
    "captions from a device": put("recipe.csv", "/dev/zero"),
    "images elsewhere": put("recipe.images", "/proc"),
    "other training data": put("data", "0" * 64),
    "another tower": put("towers.text.sha256", "0" * 64),
}


@pytest.mark.parametrize("edit", RESUMED.values(), ids=RESUMED)
def test_strangers_last_checkpoint_is_not_gone_on_with(folder, capsys, edit):
    """Catches a segmentation fault (PyTorch checks no shapes there), endless allocation, and a traceback in
    the middle of an epoch."""
    path = folder / "run" / "last.pt"
    change(path, edit)
    before = path.read_bytes()
    assert resume(folder) == 1
    err = capsys.readouterr().err
    assert err.startswith("train.py: ") and "Traceback" not in err
    assert str(path) in err or any(where in err for where in ("/etc/passwd", "/dev/zero", "/proc")), err
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["document", "database"])
def test_recipe_that_names_somebodys_file_as_the_cache_harms_nothing(folder, capsys, kind):
    """Catches a checkpoint that moves or writes a file of its reader's choice: the cache is the one path
    --resume writes to."""
    target = folder / ("thesis.odt" if kind == "document" else "places.sqlite")
    target.write_bytes(b"the only copy" * 1000)
    if kind == "database":
        target.unlink()
        with sqlite3.connect(target) as db:
            db.execute("CREATE TABLE history (url TEXT)")
        db.close()
    before = target.read_bytes()
    change(folder / "run" / "last.pt", put("recipe.cache", str(target)))
    refused(capsys, resume(folder), target, "train.py: ")
    assert target.read_bytes() == before and sorted(folder.glob("*damaged*")) == []


# --------------------------------------------------------------------------------------------------------------------------------
# towers

TOWERS = {
    "hub repository": ("text", "stranger/model"),
    "hub weights": ("vision", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
    "file elsewhere": ("vision", "open_clip:ViT-B-32//etc/passwd"),
    "folder elsewhere": ("text", "/etc/ssl"),
    "path": ("vision", "../../tower"),
}


@pytest.mark.parametrize("kind, name", TOWERS.values(), ids=TOWERS)
def test_tower_named_by_a_stranger_is_refused_by_its_name(folder, capsys, no_hub, kind, name):
    """Catches a checkpoint whose tower's name reads a file or a folder of its reader's and goes on with it,
    or ends in a traceback. No hub answers here: with one, the hub's weights would be fetched, and then have
    to have the hash."""
    change(folder / "run" / "best.pt", put(f"towers.{kind}.name", name))
    refused(capsys, ask(folder), name.removeprefix("open_clip:ViT-B-32/").rstrip("/"), "eval.py: ")


def test_code_in_a_text_towers_folder_is_not_run(minilm, tmp_path):
    """Catches a model folder (from a hub, or named by a checkpoint) whose modules.json names a class in a
    file of its own."""
    folder = Path(shutil.copytree(minilm.path, tmp_path / "tower"))
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w')\nfrom sentence_transformers.models import Transformer as Evil\n"
    )
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "evil.Evil"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="evil"):
        TextEncoder("cpu", str(folder)).encode(["a dog"])
    assert not canary.exists()


# ------------------------------------------------------------------------------------------------------------------------------
# the cache


@pytest.fixture
def cached(tmp_path):
    """(archive, cache, the features it holds)."""
    archive = make_archive(tmp_path / "archive")
    return (
        archive,
        tmp_path / "features.sqlite",
        run(archive, Pixels(), Letters(), tmp_path / "features.sqlite"),
    )


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


SCHEMAS = {
    "view named rows": "ALTER TABLE rows RENAME TO hidden; CREATE VIEW rows AS SELECT key, zeroblob(1 << 29) AS row, crc FROM hidden",
    "trigger on rows": "CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM files; END",
    "view beside": "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    "index on an expression": "CREATE INDEX i ON rows (hex(row))",
    "virtual table": "CREATE VIRTUAL TABLE f USING fts5(t)",
    "column more": "ALTER TABLE rows ADD COLUMN more TEXT DEFAULT 'x'",
}


@pytest.mark.parametrize("sql", SCHEMAS.values(), ids=SCHEMAS)
def test_cache_with_sql_of_its_own_is_moved_aside_and_begun_anew(cached, capsys, sql):
    """Catches a stranger's view or trigger that runs as soon as rows are read or written."""
    archive, cache, before = cached
    with sqlite3.connect(cache) as db:
        db.executescript(sql)
    db.close()
    assert same(run(archive, Pixels(), Letters(), cache), before)
    assert "holds what no feature cache does" in capsys.readouterr().out
    assert cache.with_suffix(".damaged").exists()


def forge(cache, row, where="1"):
    """Put `row` in, under checksums that are right: no damage looks like that."""
    with sqlite3.connect(cache) as db:
        db.create_function(
            "crc", 2, lambda key, row: zlib.crc32(key + (row if isinstance(row, bytes) else b""))
        )
        db.execute(f"UPDATE rows SET row = {row}, crc = crc(key, {row}) WHERE {where}")
    db.close()


ONE = "key = (SELECT key FROM rows ORDER BY length(row), key LIMIT 1)"


@pytest.mark.parametrize(
    "row, where",
    [("zeroblob(10)", ONE), ("zeroblob(11)", "1"), ("zeroblob(0)", "1"), ("zeroblob(0)", ONE)],
    ids=["shorter", "odd", "none", "one without"],
)
def test_cache_rows_of_wrong_length_are_refused(cached, row, where):
    """Catches rows cut at the wrong places: two whose lengths add up right would shift all between them."""
    archive, cache, _ = cached
    forge(cache, row, where)
    with pytest.raises(ValueError, match=f"{cache}: holds rows that no tower gives"):
        run(archive, Pixels(), Letters(), cache)


def test_cache_row_that_is_text_is_encoded_anew(cached, capsys):
    """Catches a TypeError: SQLite keeps any type in any column."""
    archive, cache, before = cached
    forge(cache, "'words'", ONE)
    assert (
        same(run(archive, Pixels(), Letters(), cache), before) and "1 damaged rows" in capsys.readouterr().out
    )


@pytest.mark.parametrize("number", ["7e00", "7c00", "fc00"], ids=["nan", "inf", "-inf"])
def test_cache_rows_that_are_not_finite_are_refused(cached, number):
    """Catches NaN under a right checksum, which would reach the predictor and be blamed on the learning
    rate."""
    archive, cache, _ = cached
    value = bytes.fromhex(number)[::-1].hex()
    forge(cache, f"CAST(substr(row, 1, length(row) - 2) || x'{value}' AS BLOB)", ONE)
    with pytest.raises(ValueError, match=f"{cache}: holds rows that no tower gives"):
        run(archive, Pixels(), Letters(), cache)


def test_cache_with_forged_file_digests_is_not_believed_for_other_types(cached):
    """Catches a TypeError for a digest that is text or a number."""
    archive, cache, before = cached
    with sqlite3.connect(cache) as db:
        db.execute("UPDATE files SET digest = 'text', stat = 7")
    db.close()
    assert same(run(archive, Pixels(), Letters(), cache), before)


@pytest.mark.parametrize("name", ["notes.txt", "photo.jpg", "cache"])
def test_file_that_was_never_a_cache_is_left_alone(cached, tmp_path, name):
    """Catches '--cache photo.jpg' that moves the photograph aside as a damaged cache."""
    archive, _, _ = cached
    (tmp_path / name).write_bytes(b"something else " * 500)
    with pytest.raises(ValueError, match=f"{name}: not a feature cache"):
        run(archive, Pixels(), Letters(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"something else " * 500 and not list(tmp_path.glob("*.damaged"))


def test_predictor_of_the_bounds_is_still_accepted(tmp_path):
    """Catches bounds that refuse honest checkpoints: the smallest and oddest shapes that train.py can
    write."""
    for config in (
        dict(vision_dim=1, text_dim=1, hidden_dim=1),
        dict(vision_dim=7, text_dim=3, hidden_dim=500, members=9),
        {},
    ):
        predictor = Predictor(**config)
        state = dict(predictor=predictor.state_dict(), config=predictor.config, towers={}, recipe={}, epoch=0)
        checkpoint.save(state, tmp_path / "best.pt")
        assert checkpoint.load(tmp_path / "best.pt")["config"] == predictor.config
