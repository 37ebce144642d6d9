"""models/vljepa.py: a trained run, loaded, asked, saved and shared."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from models import runs
from models.vljepa import VLJEPA
from tests.conftest import draw_shape

LABELS = ["a red line", "a green ellipse", "a pink rectangle"]


@pytest.fixture(scope="module")
def model(tiny_run):
    return VLJEPA.load(tiny_run.folder)


@pytest.fixture
def images(tiny_run):
    return [tiny_run.images / name for name in tiny_run.names[:3]]


@pytest.fixture
def copied(tiny_run, tmp_path):
    """A copy of the run folder, to change."""
    return shutil.copytree(tiny_run.folder, tmp_path / "run")


def test_load_without_a_run_names_the_folder_and_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.*train first"):
        VLJEPA.load(tmp_path / "nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_load_names_a_device_that_is_not_there(tiny_run):
    with pytest.raises(ValueError, match="--device cuda"):
        VLJEPA.load(tiny_run.folder, "cuda")


def test_encode_image_is_the_same_for_a_path_an_image_and_pixels(model, images):
    with Image.open(images[0]) as image:
        pixels = model.vision.preprocess(image.convert("RGB"))[None]
        rows = [
            model.encode_image(way)
            for way in (images[0], str(images[0]), [images[0]], image, [image], pixels)
        ]
    assert rows[0].shape == (1, 384) and rows[0].dtype == torch.float32
    assert all(torch.equal(row, rows[0]) for row in rows)


def test_encode_image_keeps_the_order_of_a_batch(model, images):
    together = model.encode_image([*images, Image.open(images[0])])
    alone = torch.cat([model.encode_image(path) for path in [*images, images[0]]])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_encode_image_turns_photos_upright(model, tmp_path):
    image = draw_shape("red", "triangle")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    rows = model.encode_image([tmp_path / "turned.png", Image.open(tmp_path / "turned.png")])
    torch.testing.assert_close(rows[0], rows[1])
    assert not torch.allclose(rows[0], model.encode_image(image)[0], atol=1e-3)


def test_both_verbs_give_unit_rows_without_gradients(model, images):
    rows = torch.cat([model.encode_image(images), model.encode_text(LABELS), model.encode_text("one")])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))
    assert not rows.requires_grad and not any(p.requires_grad for p in model.parameters())
    assert not model.predictor.training


def test_classify_is_the_cosine_with_each_label(model, tiny_run):
    image = tiny_run.images / "red-line.jpg"  # trained on
    scores = model.classify(image, LABELS)
    expected = (model.encode_image(image) @ model.encode_text(LABELS).T)[0]
    torch.testing.assert_close(scores, expected)
    assert scores.argmax() == 0


def test_training_images_and_captions_are_known_from_the_run_folder(model, tiny_run):
    texts, rows = model.captions(tiny_run.cache)
    assert model.trained_on == tiny_run.trained_on and model.knows_training_images
    assert len(texts) == len(set(texts)) == 2 * len(tiny_run.trained_on)
    torch.testing.assert_close(rows, model.encode_text(texts).cpu(), rtol=0, atol=1e-3)  # kept as float16
    assert set(model.held_out().image_names) == set(tiny_run.names) - tiny_run.trained_on


def test_captions_say_when_their_file_is_gone(copied, tiny_run, monkeypatch):
    moved = VLJEPA.load(copied)
    monkeypatch.setitem(moved.recipe, "csv", "gone.csv")
    with pytest.raises(ValueError, match="gone.csv"):
        moved.captions(tiny_run.cache)


def test_run_folder_is_a_model_folder(tiny_run, model, images, tmp_path):
    """Without private/ it loads to the same bits, knows no training image, and says so."""
    shutil.copytree(tiny_run.folder, tmp_path / "shared", ignore=shutil.ignore_patterns("private"))
    shared = VLJEPA.from_pretrained(tmp_path / "shared")
    assert torch.equal(shared.encode_image(images), model.encode_image(images))
    assert shared.identity == model.identity and not shared.knows_training_images
    for ask in (lambda: shared.trained_on, shared.captions, shared.held_out):
        with pytest.raises(ValueError, match="shared.*does not name"):
            ask()


def test_public_files_hold_no_path_and_no_name_of_a_training_image(tiny_run):
    for name in ("config.json", "model.safetensors"):
        content = (tiny_run.folder / name).read_bytes()
        assert str(tiny_run.images.parent).encode() not in content
        assert not [image for image in tiny_run.names if image.encode() in content]


def test_save_pretrained_round_trip_is_exact_and_writes_a_card(model, images, tmp_path):
    model.save_pretrained(tmp_path / "shared")
    shared = VLJEPA.from_pretrained(tmp_path / "shared")
    assert torch.equal(shared.encode_image(images), model.encode_image(images))
    assert (shared.config, shared.record, shared.identity) == (model.config, model.record, model.identity)
    card = (tmp_path / "shared" / "README.md").read_text()
    low, high = model.record["held_out"]["interval_95"]["text_retrieval_recall@1"]
    for fact in (
        model.config["towers"]["vision"]["sha256"],
        model.config["data"],
        f"({100 * low:.1f} to {100 * high:.1f})",
    ):
        assert fact in card


def test_card_has_the_results_it_is_given(model):
    ways = ("text_retrieval", "image_retrieval")
    values = {f"{way}_recall@{k}": (i * 30 + k) / 100 for i, way in enumerate(ways) for k in (1, 5, 10)}
    intervals = {key: (value - 0.01, value + 0.01) for key, value in values.items()}
    results = dict(dataset="dev", images=7, captions=35, metrics=values, interval_95=intervals)
    card = model.generate_model_card(results).text
    assert "| image to text | 1.0 (0.0 to 2.0) | 5.0 (4.0 to 6.0) | 10.0 (9.0 to 11.0) |" in card
    assert "| text to image | 31.0 (30.0 to 32.0) |" in card
    assert "7 images and 35 captions of dev" in card


def test_push_uploads_the_two_public_files_and_the_card(model, monkeypatch):
    from huggingface_hub import hub_mixin

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path, **_):
            return sorted(path.name for path in folder_path.iterdir())

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    assert model.push_to_hub("me/shapes") == ["README.md", "config.json", "model.safetensors"]


def test_saving_over_another_model_replaces_its_card(model, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "README.md").write_text("another model")
    model.save_pretrained(tmp_path / "shared")
    assert "another model" not in (tmp_path / "shared" / "README.md").read_text()


def test_identity_changes_with_a_weight(model, tiny_run):
    other = VLJEPA.load(tiny_run.folder)
    assert other.identity == model.identity
    changed = VLJEPA.load(tiny_run.folder)
    next(changed.predictor.parameters())[0, 0] += 1
    assert changed.identity != model.identity


@pytest.mark.parametrize("change", [dict(hidden_dim=17), dict(text_dim=100), dict(depth=3)], ids=str)
def test_sizes_that_do_not_fit_the_weights_are_refused(change, copied):
    config = json.loads((copied / runs.CONFIG).read_text())
    config["predictor"] |= change
    (copied / runs.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=str(copied / runs.WEIGHTS)):
        VLJEPA.load(copied)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_another_tower_is_refused_by_its_hash(kind, copied):
    config = json.loads((copied / runs.CONFIG).read_text())
    config["towers"][kind]["sha256"] = "0" * 64
    (copied / runs.CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{kind} tower.*{'0' * 64}"):
        VLJEPA.load(copied)


def test_predictor_that_takes_no_question_refuses_one(model):
    with pytest.raises(ValueError, match="question"):
        model.predict(torch.zeros(1, model.vision.dim), question=torch.zeros(1, 384))
