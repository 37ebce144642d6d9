"""What several test files share: tiny archives, towers without weights, and, once per session, the real
towers, a CLIP checkpoint of random weights and a trained run."""

import csv
import logging
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from models.dataset import VisionTextDataset
from models.features import encode_archive

ROOT = Path(__file__).parents[1]
COLORS = ("red", "green", "blue", "yellow", "black", "pink")
SHAPES = ("ellipse", "rectangle", "triangle", "line")


class Archive(NamedTuple):
    csv: Path
    images: Path
    names: list  # of the images, in order


class Run(NamedTuple):
    folder: Path
    csv: Path
    images: Path
    cache: Path
    names: list  # of all images
    trained_on: set  # of names

    def flags(self, run, *more):
        """The flags of train.py that train on the same archive, into another run folder."""
        return [
            *("--csv", str(self.csv), "--images", str(self.images), "--cache", str(self.cache)),
            *("--run", str(run), "--vision", "efficientnet-lite0", "--val-fraction", "0.3", "--quiet", *more),
        ]


def picture(seed, size=(48, 32)):
    """A smooth little image that differs from seed to seed: JPEG keeps it nearly as it is."""
    image = Image.linear_gradient("L").resize(size).rotate(40 * seed).convert("RGB")
    color = ((37 * seed) % 256, (91 * seed + 80) % 256, (53 * seed + 160) % 256)
    ImageDraw.Draw(image).ellipse((4 + 3 * seed % 20, 4, 24 + 3 * seed % 20, 28), fill=color)
    return image


def draw_shape(color, shape):
    """A 48 x 48 image of one shape on white."""
    image = Image.new("RGB", (48, 48), "white")
    pen = ImageDraw.Draw(image)
    if shape == "triangle":
        pen.polygon([(24, 6), (42, 42), (6, 42)], fill=color)
    elif shape == "line":
        pen.line((8, 8, 40, 40), fill=color, width=6)
    else:
        getattr(pen, shape)((8, 8, 40, 40), fill=color)
    return image


def write_csv(path, rows, header=("image_name", "comment")):
    """Write a captions file; returns its path."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def make_archive(folder, count=8):
    """`count` JPEGs with two captions each, one of them the same for all images."""
    (folder / "images").mkdir(parents=True)
    names = [f"{i:03}.jpg" for i in range(count)]
    rows = []
    for i, name in enumerate(names):
        picture(i).save(folder / "images" / name, quality=95)
        rows += [(name, f"a disc of colour {i}"), (name, "a disc")]
    return Archive(write_csv(folder / "captions.csv", rows), folder / "images", names)


def make_shapes(folder):
    """24 JPEGs of a shape in a color, with two captions each."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for color in COLORS:
        for shape in SHAPES:
            name = f"{color}-{shape}.jpg"
            draw_shape(color, shape).save(folder / "images" / name)
            rows += [(name, f"a {color} {shape}"), (name, f"the drawing shows one {shape} that is {color}")]
    names = list(dict.fromkeys(name for name, _ in rows))
    return Archive(write_csv(folder / "captions.csv", rows), folder / "images", names)


class Pixels:
    """An image tower without weights: fixed random projections of the thumbnail. Counts what it encodes;
    `stop` is called instead of the batch of that number."""

    clip_frames, has_text = 1, False

    def __init__(self, name="pixels", stop_at=None, stop=None):
        self.name = self.public_name = self.key = name
        self.sha256 = "0" * 64
        self.seen = self.batches = 0
        self.stop_at, self.stop = stop_at, stop
        self.dim = 24
        self.matrix = torch.randn(3 * 8 * 8, self.dim, generator=torch.Generator().manual_seed(len(name)))

    @property
    def parts(self):
        return (self,)

    def preprocess(self, image):
        return torch.tensor(list(image.resize((8, 8)).tobytes())).view(8, 8, 3).permute(2, 0, 1) / 255

    def encode(self, images):
        self.batches += 1
        if self.batches == self.stop_at:
            self.stop()
        self.seen += len(images)
        return F.normalize(torch.stack([image.flatten() @ self.matrix for image in images]), dim=-1)

    def release(self):
        pass


class Letters:
    """A text tower without weights: counts of letters."""

    name = public_name = key = "letters"
    sha256, dim = "1" * 64, 26

    def __init__(self):
        self.seen = 0

    def encode(self, texts):
        self.seen += len(texts)
        counts = [[1.0 + text.count(chr(i)) for i in range(97, 123)] for text in texts]
        return F.normalize(torch.tensor(counts), dim=-1)

    def encode_tokens(self, texts):
        """A token per word."""
        return [self.encode(text.split()) for text in texts]

    def release(self):
        pass


def load(archive, **options):
    return VisionTextDataset(archive.csv, None, archive.images, **options)


def encode(archive, vision, text, cache, **options):
    return encode_archive(load(archive), vision, text, cache=cache, quiet=True, workers=2, **options)


@pytest.fixture(autouse=True)
def counts_are_logged():
    """Undo what a script with --quiet set in an earlier test."""
    logging.getLogger("models").setLevel(logging.INFO)


@pytest.fixture(scope="session")
def example_image():
    """A real photograph in the public domain, RGB."""
    from skimage import data

    return Image.fromarray(data.astronaut())


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path / "archive")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """A run of train.py on 24 drawn shapes, with the packaged tower; read-only, so copy its folder to change
    something."""
    import train
    from models import runs

    folder = tmp_path_factory.mktemp("tiny")
    shapes = make_shapes(folder / "shapes")
    run = Run(folder / "run", shapes.csv, shapes.images, folder / "features.sqlite", shapes.names, set())
    assert train.main(run.flags(run.folder, "--epochs", "12", "--lr", "1e-3", "--batch-size", "8")) == 0
    return run._replace(trained_on=set(runs.load_private(run.folder)[1]))


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
    """An empty Hugging Face cache and a hub that refuses connections, whatever the machine has; returns the
    cache folder."""
    from huggingface_hub import constants

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")  # port 1: refused at once
    return tmp_path / "hub"


def pytest_addoption(parser):
    what = "drive the page with this run, .cache/search.sqlite and runs/video.mp4; write docs/pictures/page_*"
    parser.addoption("--screenshots", metavar="RUN", help=what)
