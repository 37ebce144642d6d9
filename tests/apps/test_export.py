"""apps/export, models/onnx_file.py and `eval.py --onnx`: the tiny run as ONNX, exported once."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from skimage import data

import eval as evaluate
from apps.export import __main__ as export
from apps.export import graph
from models.onnx_file import Exported, preprocessing
from models.predictor import Predictor
from models.text import TextEncoder
from models.vision import VisionEncoder
from models.vljepa import VLJEPA
from tests.conftest import write_csv

ASTRONAUT = data.astronaut()
PHOTOS = [
    Image.fromarray(array) for array in (ASTRONAUT, ASTRONAUT[::-1, 100:200], ASTRONAUT[:300], data.coffee())
]


@pytest.fixture(scope="module")
def world(tiny_run, tmp_path_factory):
    """The tiny run, its two exported files and the table that was printed."""
    root = tmp_path_factory.mktemp("export")
    out = root / "näme.onnx"
    where = ["--run", tiny_run.folder, "--cache", tiny_run.cache, "--quiet", "--repeats", "1"]
    with redirect_stdout(io.StringIO()) as table:
        assert export.main([*map(str, where), "--out", str(out)]) == 0
    model = VLJEPA.load(tiny_run.folder)
    return SimpleNamespace(
        run=tiny_run, onnx=out, int8=root / "näme.int8.onnx", table=table.getvalue(), model=model
    )


def call_eval(world, *flags):
    where = ("--cache", world.run.cache, "--device", "cpu", "--quiet")
    return evaluate.main([*map(str, flags), *map(str, where)])


def changed(world, path, change):
    """A copy at `path` of the float32 file after `change(proto, metadata)`; metadata are str -> str."""
    proto = onnx.load(world.onnx)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    change(proto, metadata)
    onnx.helper.set_model_props(proto, metadata)
    path.write_bytes(proto.SerializeToString())
    return path


# The files


@pytest.mark.parametrize("count", [1, 3])
def test_onnx_gives_the_embeddings_of_torch(world, count):
    """Catches an export that fixed the batch size, left out a norm, or prepares pixels differently."""
    ours, theirs = world.model.encode_image(PHOTOS[:count]), Exported(world.onnx).encode_image(PHOTOS[:count])
    assert theirs.shape == (count, 384) and theirs.dtype == torch.float32
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_int8_is_near_smaller_and_independent_of_neighbours(world):
    exported = Exported(world.int8)
    rows = exported.encode_image(PHOTOS)
    assert (rows * world.model.encode_image(PHOTOS)).sum(1).min() > 0.99
    assert {tensor.data_type for tensor in onnx.load(world.int8).graph.initializer} >= {onnx.TensorProto.INT8}
    assert world.int8.stat().st_size < world.onnx.stat().st_size
    assert torch.equal(rows, torch.cat([exported.encode_image(photo) for photo in PHOTOS]))


@pytest.fixture(scope="module")
def vits(tmp_path_factory):
    """The name of two small ViTs of open_clip, joined, with random weights in files."""
    import open_clip
    from safetensors.torch import save_file

    folder, names = tmp_path_factory.mktemp("vit"), []
    for size in (64, 96):
        name = f"tiny-vit-{size}"
        vision = dict(image_size=size, layers=1, width=128, head_width=64, patch_size=16)
        text = dict(context_length=8, vocab_size=49408, width=32, heads=1, layers=1)
        (folder / f"{name}.json").write_text(json.dumps(dict(embed_dim=64, vision_cfg=vision, text_cfg=text)))
        open_clip.add_model_config(folder / f"{name}.json")
        torch.manual_seed(size)
        weights = open_clip.create_model(name).visual.state_dict()
        save_file(
            {f"visual.{key}": w.contiguous() for key, w in weights.items()}, folder / f"{size}.safetensors"
        )
        names.append(f"open_clip:{name}/{folder / f'{size}.safetensors'}")
    return "+".join(names)


def test_joined_vits_are_exported(world, vits, tmp_path):
    """Joined towers take one flat row of pixels, and a ViT is mostly matrix products."""
    tower = VisionEncoder("cpu", vits)
    torch.manual_seed(0)
    predictor = Predictor(tower.dim, hidden_dim=32)
    predictor.standardise(torch.randn(50, tower.dim) / tower.dim**0.5)
    towers = world.model.config["towers"] | dict(vision=dict(name=tower.name, sha256=tower.sha256))
    config = world.model.config | dict(predictor=predictor.config, towers=towers)
    model = VLJEPA(predictor, tower, world.model.text, config, world.model.record)
    path, int8 = tmp_path / "m.onnx", tmp_path / "m.int8.onnx"
    graph.write(model, path)
    graph.quantise(path, int8)
    rows = model.encode_image(PHOTOS)
    torch.testing.assert_close(Exported(path).encode_image(PHOTOS), rows, rtol=0, atol=1e-5)
    assert (Exported(int8).encode_image(PHOTOS) * rows).sum(1).min() > 0.99
    assert int8.stat().st_size < 0.7 * path.stat().st_size


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-stages+efficientnet-lite2"])
def test_pixels_are_those_of_the_tower_to_the_bit(name):
    tower = VisionEncoder("cpu", name)
    specs = [part.pixel_spec for part in tower.parts]
    preprocess = preprocessing(json.loads(json.dumps(specs)))
    for image in [*PHOTOS, Image.new("RGB", (3, 400), "red")]:
        assert torch.equal(preprocess(image), tower.preprocess(image))


def test_file_holds_the_public_facts_and_nothing_private(world):
    """Catches names of training images, and paths of the machine it was made on."""
    facts = {entry.key: entry.value for entry in onnx.load(world.int8).metadata_props}
    assert json.loads(facts["config"]) == json.loads(json.dumps(world.model.config))
    assert json.loads(facts["identity"]) == world.model.identity
    run = world.run
    private = (run.folder.parent, run.images, Path(export.__file__).parent, "site-packages", *run.trained_on)
    for path in (world.onnx, world.int8):
        content = path.read_bytes()
        assert not [text for text in private if str(text).encode() in content]


def test_file_that_disagrees_with_torch_is_refused(world):
    """The exported model is a little off the one it is compared with: in a bias, and in the size of
    pixels."""
    other, exported = VLJEPA.load(world.run.folder), Exported(world.onnx)
    assert graph.check(other, exported, "m.onnx") < 1e-5
    preprocess, specs = exported.vision.preprocess, [part.pixel_spec for part in other.vision.parts]
    exported.vision.preprocess = preprocessing([spec | dict(scale=spec["size"] + 20) for spec in specs])
    with pytest.raises(ValueError, match="m.onnx: not written"):
        graph.check(other, exported, "m.onnx")
    exported.vision.preprocess = preprocess
    with torch.no_grad():
        next(p for name, p in reversed(list(other.predictor.named_parameters())) if p.ndim == 1)[0] += 1
    with pytest.raises(ValueError, match="m.onnx: not written"):
        graph.check(other, exported, "m.onnx")


def test_export_that_fails_keeps_what_was_there(world, tmp_path, capsys):
    out, none, seen = tmp_path / "m.onnx", tmp_path / "none", tmp_path / "seen.csv"
    out.write_bytes(b"old")
    write_csv(seen, [(name, "a disc") for name in world.run.trained_on])
    for flags, named in (
        (("--run", world.run.folder, "--csv", none), none),
        (("--run", none), none),
        (("--run", world.run.folder, "--csv", seen), seen),  # would flatter
    ):
        assert export.main([*map(str, flags), "--out", str(out), "--quiet"]) == 1
        assert str(named) in capsys.readouterr().err
    assert out.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_out_has_to_end_in_onnx():
    """Catches an export over a photograph."""
    with pytest.raises(SystemExit, match="2"):
        export.main(["--out", "photo.jpg"])


# The tables


def test_tables_are_over_held_out_images(world):
    held_out = len(world.run.names) - len(world.run.trained_on)
    lines = world.table.splitlines()
    assert any(f" captions of {held_out} images" in line for line in lines) and held_out > 1
    for name, count in (("torch", 2), ("onnx", 2), ("int8 ", 3), ("  95 % interval", 2)):
        assert len([line for line in lines if line.startswith(name)]) == count, name


def test_difference_is_the_paired_difference_of_hit_rates():
    """Catches a wrong sign, captions counted apart from their image, and intervals of two independent
    draws."""
    generator = np.random.default_rng(0)
    image_of = np.repeat(np.arange(30), generator.integers(1, 5, 30))
    one, two = ([generator.integers(0, 15, n) for n in (len(image_of), 30)] for _ in range(2))
    tensors = [[torch.tensor(rank) for rank in ranks] for ranks in (one, two)]
    change, bounds = export.difference(*tensors, torch.tensor(image_of))
    for k in (1, 5, 10):
        for way, before, after in (("image", one[0], two[0]), ("text", one[1], two[1])):
            key = f"{way}_retrieval_recall@{k}"
            assert change[key] == pytest.approx((after < k).mean() - (before < k).mean())
            assert bounds[key][0] < change[key] < bounds[key][1]
    same, zero = export.difference(tensors[0], tensors[0], torch.tensor(image_of))
    assert set(same.values()) == {0.0} and set(zero.values()) == {(0.0, 0.0)}


# eval.py --onnx


def test_eval_answers_as_from_the_run(world, capsys):
    asked = (
        world.run.images / world.run.names[0],
        "--labels",
        "a red disc",
        "a disc",
        "an elephant",
        "--json",
    )
    scores = []
    for model in (("--run", world.run.folder), ("--onnx", world.onnx)):
        assert call_eval(world, *asked, *model) == 0
        scores.append(list(json.loads(capsys.readouterr().out)[0]["scores"].values()))
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)


def test_eval_needs_no_image_tower(world, tmp_path, capsys):
    """No such tower exists."""
    name = world.model.vision.name
    path = changed(
        world,
        tmp_path / "m.onnx",
        lambda proto, facts: facts.update(config=facts["config"].replace(name, "none")),
    )
    assert call_eval(world, world.run.images / world.run.names[0], "--onnx", path) == 0
    assert "Prediction: " in capsys.readouterr().out


def test_eval_retrieval_is_that_of_the_run(world, tmp_path, capsys):
    """Catches predictions that go through a predictor again, and a cached row of another file."""
    found = {}
    for flag, model in (("--run", world.run.folder), ("--onnx", world.onnx), ("--onnx", world.int8)):
        data_set = ("--csv", world.run.csv, "--images", world.run.images)
        assert call_eval(world, *data_set, flag, model, "--json", tmp_path / "result.json") == 0
        found[model] = json.loads((tmp_path / "result.json").read_text())
    assert found[world.onnx]["metrics"] == pytest.approx(found[world.run.folder]["metrics"])
    assert found[world.onnx]["pretrained"] == str(world.onnx)
    assert "untrained predictor" not in found[world.onnx]["rows"]


@pytest.mark.parametrize("flags", [["--run", "runs/other"], ["--held-out"], ["--hub-correction"]], ids=str)
def test_eval_flags_that_need_the_run_are_usage_errors(world, flags):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(["--onnx", str(world.onnx), *flags])


def outside(proto, facts):
    tensor = next(tensor for tensor in proto.graph.initializer if len(tensor.raw_data) > 1000)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def outside_in_a_constant(proto, facts):
    value = onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [1.0])
    node = onnx.helper.make_node("Constant", [], ["unused"], value=value)
    node.attribute[0].t.ClearField("float_data")
    node.attribute[0].t.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.append(node)


def replace(key, old, new):
    return lambda proto, facts: facts.update({key: facts[key].replace(old, new)})


CHANGES = {
    "foreign": (lambda proto, facts: facts.clear(), "format is None"),
    "another version": (lambda proto, facts: facts.update(format="vl-jepa onnx 1"), "onnx 1"),
    "config is not JSON": (lambda proto, facts: facts.update(config="{"), "JSONDecodeError"),
    "no towers": (lambda proto, facts: facts.update(config="{}"), "KeyError"),
    "config is a list": (lambda proto, facts: facts.update(config="[]"), "TypeError"),
    "no preprocessing": (lambda proto, facts: facts.update(preprocess="[]"), "IndexError"),
    "other pixels": (replace("preprocess", "224", "96"), "224"),
    "pixels without end": (replace("preprocess", '"size": 224', '"size": 224, "scale": 99999'), "99999"),
    "means of text": (replace("preprocess", "0.498", '"a", 0.498'), "ValueError"),
    "a graph with holes": (lambda proto, facts: proto.graph.node.pop(), "not a whole model"),
    "another text tower": (replace("config", TextEncoder().sha256, "0" * 64), "the text tower"),
    "weights elsewhere": (outside, "other files"),
    "a constant elsewhere": (outside_in_a_constant, "other files"),
}


@pytest.mark.parametrize("change, reason", CHANGES.values(), ids=CHANGES)
def test_foreign_file_is_refused(world, tmp_path, change, reason):
    """Catches a traceback of ONNX Runtime, and a stranger's file that has other files read."""
    path = changed(world, tmp_path / "m.onnx", change)
    with pytest.raises(ValueError, match=f"m.onnx: .*{reason}"):
        Exported(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"PK\3\4 not a model", 1 / 3, -1], ids=str)
def test_damaged_file_is_refused(world, tmp_path, content):
    """A number: that share of a good file, or all but a byte."""
    whole, path = world.onnx.read_bytes(), tmp_path / "m.onnx"
    if not isinstance(content, bytes):
        content = whole[: int(len(whole) * content) if content > 0 else content]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="m.onnx: "):
        Exported(path)


def spoil(proto, facts):
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > 1000:
            tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()


def test_weights_that_are_not_finite_are_one_error_of_eval(world, tmp_path, capsys):
    path = changed(world, tmp_path / "m.onnx", spoil)
    assert call_eval(world, world.run.images / world.run.names[0], "--onnx", path) == 1
    out, err = capsys.readouterr()
    assert str(path) in err and len(err.splitlines()) == 1 and out == ""


def test_missing_file_and_folder_are_one_error_of_eval(world, tmp_path, capsys):
    for path in (tmp_path / "none.onnx", tmp_path):
        assert call_eval(world, "--onnx", path) == 1
        assert str(path) in capsys.readouterr().err


def test_file_that_moved_answers_the_same(world, tmp_path):
    """Catches weights left in a second file beside it."""
    moved = shutil.copy(world.int8, tmp_path / "moved.onnx")
    rows = [Exported(path).encode_image(PHOTOS[0]) for path in (moved, world.int8)]
    assert torch.equal(*rows)
