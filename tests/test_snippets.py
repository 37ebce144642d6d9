"""The README's Python blocks, run as they are written, with CLIP's architecture in a Hugging Face cache made here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from torch.utils.data import DataLoader

import eval as evaluate
import train
from models.dataset import VisionTextDataset
from models.predictor import Predictor
from models.text import TextEncoder
from models.vision import VisionEncoder, choose

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
NAMES = sorted(path.name for path in (ROOT / "my_image_archive").iterdir())[:4]  # 10002456.jpg among them


@pytest.fixture(scope="module")
def cached_clip(clip_file, tmp_path_factory):
    """A Hugging Face cache that holds a CLIP ViT-B/16 of random weights where OpenAI's would be."""
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--timm--vit_base_patch16_clip_224.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").symlink_to(clip_file)
    return cache


@pytest.fixture
def place(cached_clip, tmp_path, monkeypatch):
    """A folder with a few of the archive's images and their captions, CLIP cached; the current folder of the test."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cached_clip))
    (tmp_path / "my_image_archive").mkdir()
    lines = (ROOT / "unique_caption.csv").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines[1:] if line.split(",")[0] in NAMES]
    (tmp_path / "unique_caption.csv").write_text("\n".join([lines[0], *kept]) + "\n", encoding="utf-8")
    for name in NAMES:
        shutil.copy(ROOT / "my_image_archive" / name, tmp_path / "my_image_archive" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_auto_takes_clip_when_it_is_cached(place):
    """Catches an `auto` that goes on with the packaged tower although CLIP is there."""
    assert choose("auto")[0] == "clip-vit-b-16"


def test_encoding_by_clip_imports_no_open_clip(cached_clip):
    """Catches seconds of imports where the weights alone are needed, and the tower's network made twice."""
    code = (
        "import sys, torch; from models.vision import VisionEncoder\n"
        "vision = VisionEncoder(); print(vision.encode(torch.zeros(2, 3, 224, 224)).shape)\n"
        "print([m for m in ('open_clip', 'timm', 'torchvision', 'transformers') if m in sys.modules])"
    )
    environment = os.environ | dict(HF_HUB_CACHE=str(cached_clip))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["torch.Size([2, 512])", "[]"]


def test_training_loop_of_the_readme_runs_as_written(place):
    """Catches a public name or default that changed: the loop uses every one of them, and its loss has to reach the predictor."""
    (loop,) = [block for block in BLOCKS if "DataLoader(dataset" in block]
    names = dict(
        VisionEncoder=VisionEncoder,
        TextEncoder=TextEncoder,
        Predictor=Predictor,
        VisionTextDataset=VisionTextDataset,
        DataLoader=DataLoader,
        torch=torch,
        device="cpu",
    )
    exec(loop, names)  # noqa: S102
    names["loss"].backward()
    assert names["vision_emb"].shape == (len(NAMES), 512) and names["text_emb"].shape == (len(NAMES), 384)
    assert all(parameter.grad.abs().sum() > 0 for parameter in names["predictor"].parameters())


def test_scripts_and_snippet_run_with_clip(place, capsys):
    """Catches whatever only the packaged tower was tried with: train with CLIP, ask in Python as the README does, and the
    retrieval table with CLIP's own zero-shot row."""
    assert train.main(["--epochs", "1", "--val-fraction", "0.5", "--seed", "1", "--quiet"]) == 0
    assert "clip-vit-b-16: CLIP's weights are in the Hugging Face cache" in capsys.readouterr().out
    snippets = [block for block in BLOCKS if "VLJEPA.load" in block]
    assert len(snippets) == 2  # in your own code, and sharing
    for name, source in (("a.jpg", NAMES[0]), ("b.jpg", NAMES[1])):
        shutil.copy(place / "my_image_archive" / source, place / name)
    for snippet in snippets:
        exec(snippet, {})  # noqa: S102
    assert (place / "shared" / "mine" / "README.md").is_file()
    assert evaluate.main(["--csv", "unique_caption.csv", "--json", "table.json", "--quiet"]) == 0
    assert "clip-vit-b-16, zero-shot" in capsys.readouterr().out
