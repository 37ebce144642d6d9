"""apps/export.py, models/exported.py and `eval.py --onnx`: a tiny trained run as ONNX, in this process."""

import io
import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import make_archive
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_images

import eval as evaluate
import train
from apps import export
from models import runs as checkpoint
from models.onnx_file import Exported, ExportedTower
from models.predictor import Predictor
from models.text import TextEncoder
from models.vision import VisionEncoder
from models.vljepa import VLJEPA

PHOTOS = [
    Image.fromarray(array)
    for array in (data.astronaut(), data.astronaut()[::-1, 100:200], *load_sample_images().images)
]


class World:
    """A trained run of which some images are held out, and its two exported files."""

    def __init__(self, root):
        self.root, self.archive, self.run, self.cache = (
            root,
            make_archive(root / "archive", 16),
            root / "run",
            root / "cache.sqlite",
        )
        self.flags = [
            "--csv",
            self.archive.csv,
            "--images",
            self.archive.images,
            "--cache",
            self.cache,
            "--quiet",
        ]
        flags = [
            "--run",
            self.run,
            "--vision",
            "efficientnet-lite0",
            "--hidden",
            "64",
            "--epochs",
            "20",
            "--lr",
            "0.01",
            "--loss",
            "info_nce",
            "--standardise",
            "--device",
            "cpu",
            "--val-fraction",
            "0.4",
        ]
        assert train.main(list(map(str, self.flags + flags))) == 0
        self.onnx, self.int8 = root / "näme.onnx", root / "näme.int8.onnx"
        with redirect_stdout(io.StringIO()) as table:
            assert self.export("--run", self.run, "--out", self.onnx) == 0
        self.table, self.model = table.getvalue(), VLJEPA.load(self.run)

    def export(self, *flags):
        return export.main([*map(str, flags), "--cache", str(self.cache), "--quiet", "--repeats", "1"])

    def eval(self, *flags):
        return evaluate.main([*map(str, flags), "--cache", str(self.cache), "--device", "cpu", "--quiet"])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("export"))


def changed(world, path, change):
    """A copy at `path` of the float32 file, gone through `change(proto, metadata)`; metadata are str -> str."""
    proto = onnx.load(world.onnx)
    facts = {fact.key: fact.value for fact in proto.metadata_props}
    change(proto, facts)
    onnx.helper.set_model_props(proto, facts)
    path.write_bytes(proto.SerializeToString())
    return path


def with_tower(world, folder, name):
    """A run folder of an untrained predictor on another image tower."""
    state = checkpoint.load(world.run / "best.pt")
    tower = VisionEncoder("cpu", name)
    torch.manual_seed(0)
    predictor = Predictor(tower.dim, hidden_dim=32)
    predictor.standardise(torch.randn(50, tower.dim) / tower.dim**0.5)
    state |= dict(config=predictor.config, predictor=predictor.state_dict())
    state["towers"]["vision"] = dict(name=name, sha256=tower.sha256)
    checkpoint.save({key: value for key, value in state.items() if key != "format"}, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """The name of a small ViT of open_clip with random weights in a file."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = open_clip.create_model("ViT-S-32-alt").visual.state_dict()
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file({f"visual.{key}": value.contiguous() for key, value in weights.items()}, path)
    return f"open_clip:ViT-S-32-alt/{path}"


# The files


@pytest.mark.parametrize("count", [1, 3, 4])
def test_onnx_gives_the_embeddings_of_torch(world, count):
    """Catches an export that fixed the batch size, left out a norm, or prepares pixels differently."""
    mine, theirs = world.model.encode_image(PHOTOS[:count]), Exported(world.onnx).encode_image(PHOTOS[:count])
    assert theirs.shape == (count, 384) and theirs.dtype == torch.float32
    torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-5)


def test_int8_is_near_and_smaller(world):
    """Catches weights that were quantised to nonsense, and an int8 file that holds float32."""
    rows, mine = Exported(world.int8).encode_image(PHOTOS), world.model.encode_image(PHOTOS)
    assert (rows * mine).sum(1).min() > 0.99
    assert {tensor.data_type for tensor in onnx.load(world.int8).graph.initializer} >= {onnx.TensorProto.INT8}
    assert world.int8.stat().st_size < world.onnx.stat().st_size - 3 * 1280 * 64


def test_int8_row_does_not_depend_on_its_neighbours(world):
    """Catches scales of dynamic int8 taken over a batch: the same image would be another row beside another image."""
    model = Exported(world.int8)
    assert torch.equal(model.encode_image(PHOTOS), torch.cat([model.encode_image(photo) for photo in PHOTOS]))


def test_joined_towers_and_a_vit_are_exported(world, vit, tmp_path):
    """Catches an export that knows one tower: joined towers take one flat row of pixels, and a ViT is all matrix products."""
    model = VLJEPA.load(with_tower(world, tmp_path / "run", f"efficientnet-lite0+{vit}"))
    path, int8 = tmp_path / "m.onnx", tmp_path / "m.int8.onnx"
    export.to_onnx(model, path)
    export.quantise(path, int8, export.facts(model))
    mine = model.encode_image(PHOTOS)
    torch.testing.assert_close(Exported(path).encode_image(PHOTOS), mine, rtol=0, atol=1e-5)
    assert (Exported(int8).encode_image(PHOTOS) * mine).sum(1).min() > 0.99
    assert int8.stat().st_size < 0.5 * path.stat().st_size


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite0-stages+efficientnet-lite2"])
def test_pixels_are_those_of_the_tower_to_the_bit(world, tmp_path, name):
    """Catches a second preprocessing, which drifts from the first."""
    tower = VisionEncoder("cpu", name)
    specs = [
        {key: part.spec[key] for key in ("size", "mean", "std", "resize")} for part in tower.parts or [tower]
    ]
    exported = ExportedTower(world.onnx, None, json.loads(json.dumps(specs)), name)
    for image in [
        *PHOTOS,
        Image.new("RGB", (3, 400), "red"),
        Image.effect_noise((261, 259), 90).convert("RGB"),
    ]:
        assert torch.equal(exported.preprocess(image), tower.preprocess(image))


def test_the_file_says_what_it_is_and_nothing_private(world):
    """Catches names of training images, or paths of the machine it was made on, in a file made to be given away."""
    facts = {fact.key: fact.value for fact in onnx.load(world.int8).metadata_props}
    state, best = json.loads(facts["state"]), checkpoint.load(world.run / "best.pt")
    assert (
        facts["format"] == "vl-jepa onnx 1"
        and state["towers"] == best["towers"]
        and len(state["predictor_sha256"]) == 64
    )
    assert state["recipe"]["run"] == "run" and state["recipe"]["epochs"] == 20
    for path in (world.onnx, world.int8):
        content = path.read_bytes()
        for private in (
            str(world.root),
            str(Path(export.__file__).parent),
            "site-packages",
            best["trained_on"][0],
        ):
            assert private.encode() not in content


def test_export_that_disagrees_is_refused(world):
    """Catches a check that passes anything: here the exported predictor is a little off the one it is compared with."""
    other = VLJEPA.load(world.run)
    assert export.check(other, Exported(world.onnx), "m.onnx") < 1e-5
    with torch.no_grad():
        other.predictor.members[0][-1].bias[0] += 1
    with pytest.raises(ValueError, match="m.onnx: not written"):
        export.check(other, Exported(world.onnx), "m.onnx")


def test_failed_export_leaves_what_was_there(world, tmp_path, capsys):
    """Catches a file that is opened before it is known whether the rest will work."""
    (tmp_path / "m.onnx").write_bytes(b"old")
    assert world.export("--run", world.run, "--out", tmp_path / "m.onnx", "--csv", tmp_path / "none.csv") == 1
    assert world.export("--run", tmp_path / "nothing", "--out", tmp_path / "m.onnx") == 1
    err = capsys.readouterr().err
    assert "none.csv" in err and "train first" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"m.onnx": b"old"}


def test_out_has_to_be_an_onnx_file(world):
    """Catches an export over a photograph."""
    with pytest.raises(SystemExit) as left:
        world.export("--run", world.run, "--out", "photo.jpg")
    assert left.value.code == 2


# The table


def test_table_is_over_held_out_images(world):
    """Catches numbers over images the run was trained on, and columns that are not there."""
    held_out = set(world.archive.names) - set(checkpoint.load(world.run / "best.pt")["trained_on"])
    assert f"{2 * len(held_out)} captions of {len(held_out)} images" in world.table and 1 < len(held_out) < 16
    for row in ("file, MB", "ms an image", "cosine to torch", "image to text R@1", "text to image R@10"):
        assert any(line.startswith(row) and len(line.split()) > 4 for line in world.table.splitlines()), row


def test_csv_of_training_images_alone_is_refused(world, tmp_path, capsys):
    """Catches a flattering comparison."""
    seen = checkpoint.load(world.run / "best.pt")["trained_on"]
    (tmp_path / "seen.csv").write_text("image_name,comment\n" + "".join(f"{name},a disc\n" for name in seen))
    assert world.export("--run", world.run, "--out", tmp_path / "m.onnx", "--csv", tmp_path / "seen.csv") == 1
    assert "seen.csv: 0 of its" in capsys.readouterr().err


def test_difference_is_the_paired_bootstrap_written_as_loops():
    """Catches intervals of two independent draws, captions counted apart from their image, and a wrong sign."""
    generator = np.random.default_rng(0)
    image_of = np.repeat(np.arange(30), generator.integers(1, 5, 30))
    one, two = ([generator.integers(0, 15, len(image_of)), generator.integers(0, 15, 30)] for _ in range(2))
    found = export.difference(
        *([torch.tensor(rank) for rank in ranks] for ranks in (one, two)),
        torch.tensor(image_of),
        draws=200,
        seed=3,
    )
    draw = torch.randint(30, (200, 30), generator=torch.Generator().manual_seed(3)).tolist()
    for k in (1, 5, 10):
        drawn = {"text": [], "image": []}
        for images in [list(range(30)), *draw]:
            captions = [c for image in images for c in np.flatnonzero(image_of == image)]
            drawn["text"].append(
                sum(two[1][i] < k for i in images) / 30 - sum(one[1][i] < k for i in images) / 30
            )
            drawn["image"].append(
                (sum(two[0][c] < k for c in captions) - sum(one[0][c] < k for c in captions)) / len(captions)
            )
        for way, (whole, *rest) in drawn.items():
            assert found[f"{way}_retrieval_recall@{k}"] == pytest.approx(
                [whole, *np.quantile(rest, [0.025, 0.975])]
            )


# eval.py --onnx


def test_eval_answers_as_from_the_run(world, capsys):
    """Catches labels or images that go another way through an exported file."""
    asked = [
        world.archive.images / "000.jpg",
        "--labels",
        "a disc of colour 0",
        "a disc",
        "an elephant",
        "--json",
    ]
    scores = []
    for model in (["--run", world.run], ["--onnx", world.onnx]):
        assert world.eval(*asked, *model) == 0
        scores.append(list(json.loads(capsys.readouterr().out)[0]["scores"].values()))
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)


def test_eval_needs_no_image_tower(world, tmp_path, capsys):
    """Catches an answer for which torch's image tower is looked for after all: here no such tower exists."""

    def rename(proto, facts):
        facts["state"] = facts["state"].replace("efficientnet-lite0", "no-such-tower")

    path = changed(world, tmp_path / "m.onnx", rename)
    for flags in ([world.archive.images / "000.jpg", "--labels", "a disc", "a dog"], world.flags[:4]):
        assert world.eval(*flags, "--onnx", path) == 0
    assert "no-such-tower" in capsys.readouterr().out


def test_eval_retrieval_is_that_of_the_run(world, tmp_path, capsys):
    """Catches embeddings of the file that are put through a predictor again, or a cached row of another file."""
    found = {}
    for flag, model in (("--run", world.run), ("--onnx", world.onnx), ("--onnx", world.int8)):
        assert world.eval(*world.flags[:4], flag, model, "--json", tmp_path / "result.json") == 0
        found[model] = json.loads((tmp_path / "result.json").read_text())
    assert found[world.onnx]["metrics"] == pytest.approx(found[world.run]["metrics"])
    assert (
        found[world.onnx]["pretrained"] == str(world.onnx)
        and "untrained predictor" not in found[world.onnx]["rows"]
    )
    assert "does not name the images it was trained on" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags", [["--run", "runs/other"], ["--held-out"], ["--hub-correction"]], ids=lambda flags: flags[0]
)
def test_flags_that_do_not_go_with_onnx_are_usage_errors(world, flags):
    """Catches a flag that is read and does nothing."""
    with pytest.raises(SystemExit) as left:
        evaluate.main(["--onnx", str(world.onnx), *flags])
    assert left.value.code == 2


def outside(proto, facts):
    tensor = next(tensor for tensor in proto.graph.initializer if len(tensor.raw_data) > 1000)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def outside_in_a_constant(proto, facts):
    node = onnx.helper.make_node(
        "Constant", [], ["unused"], value=onnx.helper.make_tensor("t", onnx.TensorProto.FLOAT, [1], [1.0])
    )
    outside_tensor = node.attribute[0].t
    outside_tensor.ClearField("float_data")
    outside_tensor.external_data.add(key="location", value="/etc/passwd")
    proto.graph.node.append(node)


CHANGES = {
    "foreign": (lambda proto, facts: facts.clear(), "format is None"),
    "another version": (lambda proto, facts: facts.update(format="vl-jepa onnx 2"), "onnx 2"),
    "state is no JSON": (lambda proto, facts: facts.update(state="{"), "JSONDecodeError"),
    "no towers": (lambda proto, facts: facts.update(state="{}"), "KeyError"),
    "state is a list": (lambda proto, facts: facts.update(state="[]"), "TypeError"),
    "no preprocessing": (lambda proto, facts: facts.update(preprocess="[]"), "IndexError"),
    "other pixels": (
        lambda proto, facts: facts.update(preprocess=facts["preprocess"].replace("224", "96")),
        "224",
    ),
    "means of text": (
        lambda proto, facts: facts.update(preprocess=facts["preprocess"].replace("0.498", '"a", 0.498')),
        "TypeError",
    ),
    "a graph of holes": (lambda proto, facts: proto.graph.node.pop(), "not a whole model"),
    "weights elsewhere": (outside, "other files"),
    "a constant elsewhere": (outside_in_a_constant, "other files"),
    "another text tower": (
        lambda proto, facts: facts.update(state=facts["state"].replace(TextEncoder().sha256, "0" * 64)),
        "text tower",
    ),
}


@pytest.mark.parametrize("change, told", CHANGES.values(), ids=CHANGES)
def test_file_that_is_not_this_project_s_is_refused(world, tmp_path, capsys, change, told):
    """Catches a traceback of ONNX Runtime, an answer from embeddings that don't mix, and a stranger's file that has others read."""
    path = changed(world, tmp_path / "m.onnx", change)
    assert world.eval(world.archive.images / "000.jpg", "--onnx", path) == 1
    captured = capsys.readouterr()
    assert (
        str(path) in captured.err
        and told in captured.err
        and len(captured.err.splitlines()) == 1
        and captured.out == ""
    )


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"PK\3\4 not a model", "a third", "all but a byte"], ids=str
)
def test_damaged_file_is_one_error(world, tmp_path, capsys, content):
    """Catches a traceback over half a download."""
    whole = world.onnx.read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(
        {"a third": whole[: len(whole) // 3], "all but a byte": whole[:-1]}.get(content, content)
    )
    assert world.eval(world.archive.images / "000.jpg", "--onnx", path) == 1
    captured = capsys.readouterr()
    assert str(path) in captured.err and len(captured.err.splitlines()) == 1


def test_missing_file_and_folder_are_errors(world, tmp_path, capsys):
    """Catches a traceback over a name typed wrong."""
    for path in (tmp_path / "none.onnx", tmp_path):
        assert world.eval("--onnx", path) == 1
        assert str(path) in capsys.readouterr().err


def test_weights_that_give_no_numbers_are_refused(world, tmp_path, capsys):
    """Catches scores of nan printed as an answer."""

    def spoil(proto, facts):
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) > 1000:
                tensor.raw_data = np.full(len(tensor.raw_data) // 4, np.nan, np.float32).tobytes()

    path = changed(world, tmp_path / "m.onnx", spoil)
    assert world.eval(world.archive.images / "000.jpg", "--onnx", path) == 1
    assert "non-finite" in capsys.readouterr().err


def test_file_that_moved_answers_the_same(world, tmp_path):
    """Catches weights left in a second file beside it."""
    shutil.copy(world.int8, tmp_path / "moved.onnx")
    assert torch.equal(
        Exported(tmp_path / "moved.onnx").encode_image(PHOTOS[0]),
        Exported(world.int8).encode_image(PHOTOS[0]),
    )
