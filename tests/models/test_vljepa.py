"""models/vljepa.py: a tiny trained run, loaded and asked."""

import shutil

import pytest
import torch
from PIL import Image

import train
from models import runs as checkpoint
from models.vljepa import VLJEPA

LABELS = ["a red square", "a green square", "a blue square"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of one epoch on six plain squares; `run.parent / 'images'` holds them."""
    root = tmp_path_factory.mktemp("vljepa")
    (root / "images").mkdir()
    colours = ("red", "green", "blue", "white", "black", "yellow")
    for colour in colours:
        Image.new("RGB", (40, 30), colour).save(root / "images" / f"{colour}.jpg")
    (root / "captions.csv").write_text(
        "image_name,comment\n" + "".join(f"{c}.jpg,a {c} square\n" for c in colours)
    )
    flags = [
        "--csv",
        root / "captions.csv",
        "--images",
        root / "images",
        "--cache",
        root / "cache.sqlite",
        "--run",
        root / "run",
        "--vision",
        "efficientnet-lite0",
        "--hidden",
        "16",
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
        "0",
        "--quiet",
    ]
    assert train.main(list(map(str, flags))) == 0
    return root / "run"


@pytest.fixture(scope="module")
def model(run):
    return VLJEPA.load(run)


@pytest.fixture
def images(run):
    return [run.parent / "images" / f"{colour}.jpg" for colour in ("red", "green", "blue")]


def changed(run, tmp_path, change):
    """A copy of the run whose best.pt went through `change(state)`."""
    shutil.copytree(run, tmp_path / "run")
    state = checkpoint.load(run / "best.pt")
    change(state)
    checkpoint.save(state, tmp_path / "run" / "best.pt")
    return tmp_path / "run"


def test_load_takes_a_run_folder_or_a_checkpoint(run, model, images):
    """Catches a loader that knows only one of the two, or takes last.pt for the best."""
    for path in (str(run), run / "best.pt", str(run / "best.pt")):
        assert torch.equal(VLJEPA.load(path).encode_image(images[0]), model.encode_image(images[0]))
    assert VLJEPA.load(run / "last.pt").state["epoch"] == 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_device_that_is_not_there_is_named(run):
    """Catches torch's traceback for a GPU that a copied command line asks for."""
    with pytest.raises(ValueError, match="--device cuda: not usable here"):
        VLJEPA.load(run, "cuda")


def test_load_without_a_run_says_to_train_first(tmp_path):
    """Catches a bare 'No such file'."""
    with pytest.raises(FileNotFoundError, match="train first"):
        VLJEPA.load(tmp_path / "nothing")


def test_encode_image_is_the_same_for_a_path_an_image_and_pixels(model, images):
    """Catches a preprocessing that one way in goes through and another does not."""
    with Image.open(images[0]) as image:
        pixels = model.vision.preprocess(image.convert("RGB"))[None]
        ways = [images[0], str(images[0]), [images[0]], image, [image], pixels]
        rows = [model.encode_image(way) for way in ways]
    assert rows[0].shape == (1, 384) and rows[0].dtype == torch.float32
    assert all(torch.equal(row, rows[0]) for row in rows)


def test_encode_image_of_many_is_each_of_them_in_order(model, images):
    """Catches a batch that is shuffled, or images that leak into each other."""
    together = model.encode_image([*images, Image.open(images[0])])
    torch.testing.assert_close(
        together, torch.cat([model.encode_image(path) for path in [*images, images[0]]]), rtol=1e-4, atol=1e-5
    )


def test_encode_image_turns_photographs_upright(model, tmp_path, images):
    """Catches a PIL image that goes round open_image: as a path it would be upright and as an image on its side."""
    image = Image.open(images[0]).copy()
    image.paste("white", (0, 0, 20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    image.save(tmp_path / "turned.png", exif=exif)
    turned = model.encode_image(Image.open(tmp_path / "turned.png"))
    torch.testing.assert_close(
        turned, model.encode_image(image.transpose(Image.Transpose.ROTATE_270)), rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(turned, model.encode_image(image), atol=1e-2)


def test_both_verbs_give_unit_rows(model, images):
    """Catches rows whose products are no cosines."""
    for rows in (model.encode_image(images), model.encode_text(LABELS), model.encode_text("one text")):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(len(rows)))


def test_encode_text_is_the_text_tower(model):
    """Catches captions that go through the predictor, or labels that are read letter by letter."""
    assert torch.equal(model.encode_text(LABELS), model.text.encode(LABELS))
    assert model.encode_text("a red square").shape == (1, 384)


def test_classify_scores_stand_in_the_order_of_the_labels(model, images):
    """Catches scores that were sorted, and a model that learned nothing in twenty epochs of six squares."""
    for i, image in enumerate(images):
        scores = model.classify(image, LABELS)
        assert scores.shape == (3,) and scores.argmax() == i
        torch.testing.assert_close(model.classify(image, LABELS[::-1]), scores.flip(0))
        torch.testing.assert_close(scores, (model.encode_image(image) @ model.encode_text(LABELS).T)[0])


def test_nothing_is_left_to_train_and_dropout_is_off(model, images):
    """Catches a loaded model in training mode, whose answers change from call to call and carry gradients."""
    assert not model.predictor.training and not any(p.requires_grad for p in model.parameters())
    assert not model.encode_image(images[0]).requires_grad


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_another_tower_than_it_was_trained_with_is_refused(run, tmp_path, kind):
    """Catches embeddings of two towers mixed: no error, only wrong answers."""
    path = changed(run, tmp_path, lambda state: state["towers"][kind].update(sha256="0" * 64))
    with pytest.raises(ValueError, match=f"{kind} tower .* of SHA-256 000"):
        VLJEPA.load(path)


def test_checkpoint_without_a_tower_is_refused(run, tmp_path):
    """Catches a bare KeyError."""
    path = changed(run, tmp_path, lambda state: state["towers"].pop("text"))
    with pytest.raises(ValueError, match="names no vision and text tower"):
        VLJEPA.load(path)


@pytest.mark.parametrize("change", [dict(hidden_dim=17), dict(text_dim=100), dict(depth=3)], ids=str)
def test_configuration_that_does_not_fit_the_parameters_is_refused(run, tmp_path, change):
    """Catches torch's traceback, or a TypeError for a setting that a later version wrote; the file has to be named."""
    path = changed(run, tmp_path, lambda state: state["config"].update(change))
    with pytest.raises(ValueError, match="best.pt"):
        VLJEPA.load(path)


@pytest.fixture
def shared(model, tmp_path, no_hub):
    """The folder `save_pretrained` writes, with no network to help."""
    model.save_pretrained(tmp_path / "shared")
    return tmp_path / "shared"


def test_shared_folder_gives_the_same_model_offline(run, model, shared, images, tmp_path):
    """Catches a round trip that rounds, and a shared model that can't be shared again."""
    again = VLJEPA.from_pretrained(shared)
    assert all(
        torch.equal(v, again.predictor.state_dict()[k]) for k, v in model.predictor.state_dict().items()
    )
    assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert torch.equal(VLJEPA.load(shared).encode_image(images), model.encode_image(images))
    again.save_pretrained(tmp_path / "again")
    files = sorted(p.name for p in shared.iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert all((shared / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)


def test_shared_folder_tells_what_it_is_and_not_whose(run, model, shared):
    """Catches a card without the facts, and one that publishes the names of private photographs or folders."""
    told = (shared / "README.md").read_text()
    for tower in model.state["towers"].values():
        assert tower["name"] in told and tower["sha256"] in told
    assert (
        "6 images with 6 captions" in told
        and "| loss | info_nce |" in told
        and "no image was held out" in told
    )
    everything = told + (shared / "config.json").read_text()
    assert "red.jpg" not in everything and str(run.parent) not in everything


def test_card_has_the_results_it_is_given(model):
    """Catches intervals or directions that change places."""
    ways = ("text_retrieval", "image_retrieval")
    values = {f"{way}_recall@{k}": (i * 30 + k) / 100 for i, way in enumerate(ways) for k in (1, 5, 10)}
    results = dict(
        dataset="dev",
        images=7,
        captions=35,
        metrics=values,
        interval_95={k: (v - 0.01, v + 0.01) for k, v in values.items()},
    )
    told = model.generate_model_card(results).text
    assert "| image to text | 1.0 (0.0 to 2.0) | 5.0 (4.0 to 6.0) | 10.0 (9.0 to 11.0) |" in told
    assert "| text to image | 31.0 (30.0 to 32.0) |" in told and "7 images and 35 captions of dev" in told


def test_saving_over_another_model_replaces_its_card(model, shared):
    """Catches a card that tells of the model that was there before."""
    (shared / "README.md").write_text("another model")
    model.save_pretrained(shared)
    assert "another model" not in (shared / "README.md").read_text()


def test_shared_folder_that_was_changed_is_refused(model, shared):
    """Catches weights or towers that are not those of the configuration."""
    config = (shared / "config.json").read_text()
    (shared / "config.json").write_text(config.replace(model.state["towers"]["vision"]["sha256"], "0" * 64))
    with pytest.raises(ValueError, match="don't mix"):
        VLJEPA.load(shared)
    (shared / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json"):
        VLJEPA.load(shared)
    (shared / "config.json").write_text(config)
    weights = (shared / "model.safetensors").read_bytes()
    (shared / "model.safetensors").write_bytes(weights[:100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        VLJEPA.load(shared)
    (shared / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        VLJEPA.load(shared)


def test_push_uploads_the_folder(model, monkeypatch):
    """Catches a push that sends nothing, or more than the three files."""
    from huggingface_hub import hub_mixin

    sent = {}

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, private, exist_ok):
            return type("Url", (), dict(repo_id=repo_id))

        def upload_folder(self, repo_id, folder_path, **rest):
            sent[repo_id] = sorted(p.name for p in folder_path.iterdir())
            return "url"

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    assert model.push_to_hub("me/squares") == "url"
    assert sent == {"me/squares": ["README.md", "config.json", "model.safetensors"]}
