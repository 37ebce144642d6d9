"""Files that strangers make: model folders, private/ folders, towers and caches. Each is refused by name, or
rebuilt; nothing in one is executed, and none of them takes memory that it does not fill."""

import json
import shutil
import sqlite3
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import eval
import train
from models import runs
from models.text import TextEncoder
from models.vljepa import VLJEPA
from tests.conftest import Letters, Pixels, make_archive
from tests.conftest import encode as run

BIG = 10**12
UP, MOMENT = "members.0.up.weight", "optimiser.0.exp_avg"


@pytest.fixture
def folder(tiny_run, tmp_path):
    """A copy of the tiny run's folder, to change."""
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))


def put(key, value):
    """A function that sets config[a][b]... to `value`, for the key 'a.b'."""

    def edit(config):
        *path, last = key.split(".")
        for part in path:
            config = config[part]
        config[last] = value

    return edit


def refused(capsys, code, words, program):
    """The script failed, named the file, and printed no traceback."""
    err = capsys.readouterr().err
    assert code == 1 and err.startswith(program) and "Traceback" not in err and str(words) in err, err


def ask(folder):
    """eval.py's exit code over an image that is never reached."""
    return eval.main(["none.jpg", "--run", str(folder), "--device", "cpu", "--quiet"])


def resume(folder):
    return train.main(["--resume", "--run", str(folder), *"--epochs 20 --quiet --device cpu".split()])


def edit_config(folder, edit):
    config = json.loads((folder / runs.CONFIG).read_text())
    edit(config)
    (folder / runs.CONFIG).write_text(json.dumps(config))


CONFIGS = {
    "hidden_dim of 10^12": put("predictor.hidden_dim", BIG),
    "members of 10^12": put("predictor.members", BIG),
    "vision_dim of 10^12": put("predictor.vision_dim", BIG),
    "negative hidden_dim": put("predictor.hidden_dim", -5),
    "string for hidden_dim": put("predictor.hidden_dim", "16"),
    "setting nobody knows": put("predictor.backdoor", 1),
    "list for the sizes": put("predictor", [1]),
    "string for a tower": put("towers.vision", "efficientnet-lite0"),
    "number for a tower's name": put("towers.vision.name", 7),
    "tower of another hash": put("towers.vision.sha256", "0" * 64),
    "answers in a list": put("answers", ["yes", "no"]),
    "places of 10^12": put("predictor.places_dim", BIG),
    "recipe in words": put("recipe", "classic"),
    "another format": put("format", "vl-jepa 9"),
    "no towers": lambda config: config.pop("towers"),
}


@pytest.mark.parametrize("edit", CONFIGS.values(), ids=CONFIGS)
def test_config_of_a_stranger_is_refused_by_name(folder, capsys, edit):
    edit_config(folder, edit)
    refused(capsys, ask(folder), folder, "eval.py: ")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b'{"format": 1}'])
def test_config_that_is_something_else_is_refused_by_name(folder, capsys, content):
    (folder / runs.CONFIG).write_bytes(content)
    refused(capsys, ask(folder), folder / runs.CONFIG, "eval.py: ")


WEIGHTS = {
    "none": lambda tensors: tensors.clear(),
    "one missing": lambda tensors: tensors.pop(UP),
    "one more": lambda tensors: tensors.update(more=torch.ones(3)),
    "wrong shape": lambda tensors: tensors.update({UP: torch.zeros(3, 5)}),
    "float64": lambda tensors: tensors.update({UP: tensors[UP].double()}),
    "integers": lambda tensors: tensors.update({UP: tensors[UP].long()}),
    "complex": lambda tensors: tensors.update({UP: tensors[UP].to(torch.complex64)}),
    "NaN": lambda tensors: tensors.update({UP: torch.full_like(tensors[UP], float("nan"))}),
}


@pytest.mark.parametrize("edit", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_of_a_stranger_are_refused_by_name(folder, capsys, edit):
    tensors, _, record = runs.load_model(folder)
    edit(tensors)
    runs.save_model(folder, tensors, record)
    refused(capsys, ask(folder), folder / runs.WEIGHTS, "eval.py: ")


DAMAGE = {
    "changed byte": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "cut short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "another file": lambda content: b"PK\3\4" * 99,
}


@pytest.mark.parametrize("edit", DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_of_a_model_folder_is_refused_by_name(folder, capsys, edit):
    for path, work, program in (
        (folder / runs.LAST, resume, "train.py: "),
        (folder / runs.WEIGHTS, ask, "eval.py: "),
    ):
        content = path.read_bytes()
        path.write_bytes(edit(content))
        refused(capsys, work(folder), path, program)
        path.write_bytes(content)


def test_weights_without_a_record_are_refused_by_name(folder, capsys):
    tensors, _, _ = runs.load_model(folder)
    save_file(tensors, folder / runs.WEIGHTS, dict(format="pt"))
    refused(capsys, ask(folder), folder / runs.WEIGHTS, "eval.py: ")


def test_folder_of_the_old_format_is_refused_with_the_way_out(tmp_path, capsys):
    for name in ("best.pt", "last.pt", "log.jsonl"):
        (tmp_path / name).write_bytes(b"PK\3\4")
    for work, program in ((ask, "eval.py: "), (resume, "train.py: ")):
        refused(capsys, work(tmp_path), f"{tmp_path}: a run of an older version", program)


RESUMED = {
    "moment too small": lambda t, facts: t.update({MOMENT: torch.zeros(3)}),
    "moment of another type": lambda t, facts: t.update({MOMENT: t[MOMENT].double()}),
    "no moment": lambda t, facts: t.pop(MOMENT),
    "no parameters": lambda t, facts: t.pop("predictor.members.0.up.weight"),
    "random state too short": lambda t, facts: t.update(rng=torch.zeros(3, dtype=torch.uint8)),
    "no random state": lambda t, facts: t.pop("rng"),
    "history of another length": lambda t, facts: facts.update(history=[]),
    "history in words": lambda t, facts: facts.update(history="epoch one"),
    "step below zero": lambda t, facts: facts.update(step=-1),
    "step in words": lambda t, facts: facts.update(step="none"),
    "hidden of 10^12": lambda t, facts: facts["recipe"].update(hidden=BIG),
    "string for the learning rate": lambda t, facts: facts["recipe"].update(lr="high"),
    "captions file elsewhere": lambda t, facts: facts["recipe"].update(csv="/etc/passwd"),
    "captions from a device": lambda t, facts: facts["recipe"].update(csv="/dev/zero"),
    "images elsewhere": lambda t, facts: facts["recipe"].update(images="/proc"),
    "other training data": lambda t, facts: facts.update(data="0" * 64),
}


@pytest.mark.parametrize("edit", RESUMED.values(), ids=RESUMED)
def test_private_folder_of_a_stranger_is_not_resumed(folder, capsys, edit):
    """PyTorch checks no shapes of moments: a small one crashed the process."""
    tensors, facts = runs.load_last(folder)
    edit(tensors, facts)
    runs.save_last(folder, tensors, facts)
    before = (folder / runs.LAST).read_bytes()
    assert resume(folder) == 1
    err = capsys.readouterr().err
    assert err.startswith("train.py: ") and "Traceback" not in err
    assert any(where in err for where in (str(folder), "/etc/passwd", "/dev/zero", "/proc")), err
    assert (folder / runs.LAST).read_bytes() == before


@pytest.mark.parametrize("kind", ["document", "database"])
def test_recipe_that_names_somebodys_file_as_the_cache_harms_nothing(folder, capsys, kind):
    """The cache is the one path outside the run that --resume writes to."""
    target = folder.parent / ("thesis.odt" if kind == "document" else "places.sqlite")
    if kind == "database":
        with sqlite3.connect(target) as db:
            db.execute("CREATE TABLE history (url TEXT)")
        db.close()
    else:
        target.write_bytes(b"the only copy" * 1000)
    before = target.read_bytes()
    tensors, facts = runs.load_last(folder)
    facts["recipe"]["cache"] = str(target)
    runs.save_last(folder, tensors, facts)
    code = resume(folder)
    refused(capsys, code, target, "train.py: ")
    assert target.read_bytes() == before and sorted(folder.parent.glob("*damaged*")) == []


TOWERS = {
    "hub repository": ("text", "stranger/model"),
    "hub weights": ("vision", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
    "hub model of timm": ("vision", "timm:vit_small_patch14_dinov2.lvd142m"),
    "hub model of transformers": ("vision", "hf:stranger/model"),
    "file elsewhere": ("vision", "open_clip:ViT-B-32//etc/passwd"),
    "folder elsewhere": ("text", "/etc/ssl"),
    "path": ("vision", "../../tower"),
}


@pytest.mark.parametrize(("kind", "name"), TOWERS.values(), ids=TOWERS)
def test_tower_named_by_a_stranger_is_refused_and_never_fetched(
    folder, capsys, no_hub, monkeypatch, kind, name
):
    """Its hash can be compared only after it is fetched, so it is not fetched unless asked for."""
    shutil.rmtree(folder / "private")
    edit_config(folder, put(f"towers.{kind}.name", name))
    monkeypatch.setattr("socket.create_connection", lambda *args, **options: pytest.fail("the hub was asked"))
    with pytest.raises((ValueError, FileNotFoundError)):
        VLJEPA.from_pretrained(folder)
    assert ask(folder) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_code_in_a_text_towers_folder_is_not_run(minilm, tmp_path):
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


@pytest.fixture
def cached(tmp_path):
    """(archive, cache, the features it holds)."""
    archive, cache = make_archive(tmp_path / "archive"), tmp_path / "features.sqlite"
    return archive, cache, run(archive, Pixels(), Letters(), cache)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


SCHEMAS = {
    "view named rows": "ALTER TABLE rows RENAME TO hidden; CREATE VIEW rows AS "
    "SELECT key, zeroblob(1 << 29) AS row, crc FROM hidden",
    "trigger on rows": "CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM files; END",
    "view beside": "CREATE VIEW v AS WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
    "index on an expression": "CREATE INDEX i ON rows (hex(row))",
    "virtual table": "CREATE VIRTUAL TABLE f USING fts5(t)",
    "column more": "ALTER TABLE rows ADD COLUMN more TEXT DEFAULT 'x'",
}


@pytest.mark.parametrize("sql", SCHEMAS.values(), ids=SCHEMAS)
def test_cache_with_sql_of_its_own_is_moved_aside_and_rebuilt(cached, caplog, sql):
    archive, cache, before = cached
    with sqlite3.connect(cache) as db:
        db.executescript(sql)
    db.close()
    assert same(run(archive, Pixels(), Letters(), cache), before)
    assert "holds what no feature cache does" in caplog.text
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
    archive, cache, _ = cached
    forge(cache, row, where)
    with pytest.raises(ValueError, match=f"{cache}: rows that no tower gives"):
        run(archive, Pixels(), Letters(), cache)


def test_cache_row_that_is_text_is_encoded_again(cached, caplog):
    archive, cache, before = cached
    forge(cache, "'words'", ONE)
    assert same(run(archive, Pixels(), Letters(), cache), before) and "1 damaged rows" in caplog.text


@pytest.mark.parametrize("number", ["7e00", "7c00", "fc00"], ids=["nan", "inf", "-inf"])
def test_cache_rows_that_are_not_finite_are_refused(cached, number):
    archive, cache, _ = cached
    value = bytes.fromhex(number)[::-1].hex()
    forge(cache, f"CAST(substr(row, 1, length(row) - 2) || x'{value}' AS BLOB)", ONE)
    with pytest.raises(ValueError, match=f"{cache}: rows that no tower gives"):
        run(archive, Pixels(), Letters(), cache)


def test_cache_with_forged_file_digests_is_not_believed_for_other_types(cached):
    archive, cache, before = cached
    with sqlite3.connect(cache) as db:
        db.execute("UPDATE files SET digest = 'text', stat = 7")
    db.close()
    assert same(run(archive, Pixels(), Letters(), cache), before)


@pytest.mark.parametrize("name", ["notes.txt", "photo.jpg", "cache"])
def test_file_that_was_never_a_cache_is_left_alone(cached, tmp_path, name):
    archive, _, _ = cached
    (tmp_path / name).write_bytes(b"something else " * 500)
    with pytest.raises(ValueError, match=f"{name}: not a feature cache"):
        run(archive, Pixels(), Letters(), tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"something else " * 500 and not list(tmp_path.glob("*.damaged"))
