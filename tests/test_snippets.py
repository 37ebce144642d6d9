"""The Python blocks of README.md and docs/ run as they are written, and both scripts run with CLIP."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

import eval as evaluate
import train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
]
LOOPS = [block for block in BLOCKS if "DataLoader(dataset" in block]
WITH_A_RUN = [block for block in BLOCKS if "VLJEPA" in block]
NAMES = sorted(path.name for path in (ROOT / "my_image_archive").iterdir())[:4]  # 10002456.jpg among them


@pytest.fixture(scope="module")
def clip_cache(clip_file, tmp_path_factory):
    """A Hugging Face cache that holds a CLIP ViT-B/16 with random weights in the place of OpenAI's."""
    cache = tmp_path_factory.mktemp("hub")
    repository, commit = cache / "models--timm--vit_base_patch16_clip_224.openai", "0" * 40
    snapshot = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").symlink_to(clip_file)
    return cache


@pytest.fixture
def clip(clip_cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(clip_cache))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder of the test: four images of the archive with their captions, and a.jpg and b.jpg."""
    (tmp_path / "my_image_archive").mkdir()
    for name, copy in zip(NAMES, ("a.jpg", "b.jpg", None, None)):
        for target in filter(None, (f"my_image_archive/{name}", copy)):
            shutil.copy(ROOT / "my_image_archive" / name, tmp_path / target)
    header, *lines = (ROOT / "unique_caption.csv").read_text("utf-8").splitlines()
    kept = [line for line in lines if line.split(",")[0] in NAMES]
    (tmp_path / "unique_caption.csv").write_text("\n".join([header, *kept]) + "\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_clip_imports_no_library_of_towers(clip_cache):
    code = (
        "import sys, torch; from models.vision import VisionEncoder\n"
        "vision = VisionEncoder(); print(vision.encode(torch.zeros(2, 3, 224, 224)).shape)\n"
        "print([m for m in ('open_clip', 'timm', 'torchvision', 'transformers') if m in sys.modules])"
    )
    command, env = [sys.executable, "-c", code], os.environ | dict(HF_HUB_CACHE=str(clip_cache))
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["torch.Size([2, 512])", "[]"]


def test_training_loop_runs_as_written(place, clip):
    (loop,), names = LOOPS, {}
    exec(loop, names)  # noqa: S102
    assert names["vision_emb"].shape == (len(NAMES), 512) and names["text_emb"].shape == (len(NAMES), 384)
    assert all(parameter.grad.abs().sum() > 0 for parameter in names["predictor"].parameters())


def test_scripts_run_with_clip(place, clip, capfd):
    assert train.main(["--epochs", "1", "--val-fraction", "0.5", "--seed", "1", "--quiet"]) == 0
    assert "clip-vit-b-16: " in "".join(capfd.readouterr())  # auto takes CLIP where it is cached
    assert evaluate.main(["--csv", "unique_caption.csv", "--quiet"]) == 0
    assert "clip-vit-b-16, zero-shot" in capfd.readouterr().out


def test_readme_shows_a_trained_model():
    assert WITH_A_RUN


@pytest.mark.parametrize("snippet", WITH_A_RUN)
def test_snippet_runs_as_written(snippet, place, tiny_run):
    shutil.copytree(tiny_run.folder, place / "runs" / "default")
    exec(snippet, {})  # noqa: S102
    if "save_pretrained" in snippet:
        assert list(place.glob("shared/*/model.safetensors"))
