"""What several test files share: a tiny archive, towers without weights, and (each made once a session) the real towers and a
CLIP checkpoint of random weights."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from models.dataset import VisionTextDataset
from models.features import encode_archive


class Archive(NamedTuple):
    csv: Path
    images: Path
    names: list  # of the images, in order


def picture(seed, size=(48, 32)):
    """A smooth little picture that differs from seed to seed: JPEG keeps it nearly as it is."""
    image = Image.linear_gradient("L").resize(size).rotate(40 * seed).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse(
        (4 + 3 * seed % 20, 4, 24 + 3 * seed % 20, 28),
        fill=((37 * seed) % 256, (91 * seed + 80) % 256, (53 * seed + 160) % 256),
    )
    return image


def make_archive(folder, count=8):
    """`count` JPEGs with two captions each, one of them the same for all images."""
    (folder / "images").mkdir(parents=True)
    names = [f"{i:03}.jpg" for i in range(count)]
    for i, name in enumerate(names):
        picture(i).save(folder / "images" / name, quality=95)
    lines = [
        f"{name},{caption}" for i, name in enumerate(names) for caption in (f"a disc of colour {i}", "a disc")
    ]
    (folder / "captions.csv").write_text("image_name,comment\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return Archive(folder / "captions.csv", folder / "images", names)


class Pixels:
    """An image tower without weights: fixed random projections of the thumbnail. Counts what it encodes; `stop` is called
    in place of the batch of that number."""

    def __init__(self, name="pixels", stop_at=None, stop=None):
        self.name, self.key, self.seen, self.batches, self.stop_at, self.stop = (
            name,
            name,
            0,
            0,
            stop_at,
            stop,
        )
        self.matrix = torch.randn(3 * 8 * 8, 24, generator=torch.Generator().manual_seed(len(name)))

    def preprocess(self, image):
        return torch.tensor(list(image.resize((8, 8)).tobytes())).view(8, 8, 3).permute(2, 0, 1) / 255

    def encode(self, images):
        self.batches += 1
        if self.batches == self.stop_at:
            self.stop()
        self.seen += len(images)
        return F.normalize(torch.stack([image.flatten() @ self.matrix for image in images]), dim=-1)


class Letters:
    """A text tower without weights: counts of letters."""

    name = key = "letters"

    def __init__(self):
        self.seen = 0

    def encode(self, texts):
        self.seen += len(texts)
        return F.normalize(
            torch.tensor([[1.0 + text.count(chr(i)) for i in range(97, 123)] for text in texts]), dim=-1
        )


def load(archive, **options):
    return VisionTextDataset(archive.csv, None, archive.images, **options)


def run(archive, vision, text, cache, **options):
    return encode_archive(load(archive), vision, text, cache=cache, quiet=True, workers=2, **options)


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path / "archive")


@pytest.fixture(scope="session")
def clip_model():
    """open_clip's own whole ViT-B-16-quickgelu, in eval mode; random weights, the same every time."""
    import open_clip

    torch.manual_seed(0)
    return open_clip.create_model("ViT-B-16-quickgelu").eval()


@pytest.fixture(scope="session")
def clip_file(clip_model, tmp_path_factory):
    """`clip_model` as a .safetensors file, as open_clip's repositories on the hub hold it."""
    from safetensors.torch import save_file

    path = tmp_path_factory.mktemp("clip") / "open_clip_model.safetensors"
    save_file({key: value.contiguous() for key, value in clip_model.state_dict().items()}, path)
    yield path
    path.unlink()  # 600 MB, and pytest keeps the folders of three sessions


@pytest.fixture(scope="session")
def lite0():
    from models.vision import VisionEncoder

    return VisionEncoder("cpu", "efficientnet-lite0")


@pytest.fixture(scope="session")
def minilm():
    from models.text import TextEncoder

    return TextEncoder("cpu")


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An empty Hugging Face cache and a hub nobody answers at, whatever the machine has; returns the cache folder."""
    from huggingface_hub import constants

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # port 1: refused at once
    return tmp_path / "hub"
