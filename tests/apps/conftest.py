"""The page, served for its tests: on a few drawings and a small run, or with --screenshots on a real one."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

import train
from apps.search.index import update
from apps.video.demo import make, plan
from tests.conftest import COLORS, ROOT, SHAPES, Run, draw_shape, make_shapes, write_csv

HOSTILE = "<img src=x onerror=document.title='hacked'>"  # a caption, and without the slash a name
MEGABYTES = 1  # an upload of the tests at most


class Site(NamedTuple):
    """A page that is served, and what a visitor knows of it."""

    url: str
    images: Path  # the indexed folder
    image: str  # a name in it
    text: str  # what to search for
    question: str
    moment: str  # what to find in the video
    video: Path
    loaded: object


@pytest.fixture(scope="session")
def asked_run(tmp_path_factory):
    """A Run that learned captions and answers from 24 drawings, one of them with a hostile caption."""
    folder = tmp_path_factory.mktemp("page")
    archive = make_shapes(folder / "shapes")
    captions = [(name, name.replace("-", " ")[:-4]) for name in archive.names]
    captions += [(name, f"{HOSTILE} {text}") for name, text in captions]
    write_csv(archive.csv, captions)
    rows = [(f"{color}-{shape}.jpg", "What color is it?", color) for color in COLORS for shape in SHAPES]
    questions = write_csv(folder / "questions.csv", rows, ("image_name", "question", "answer"))
    run = Run(folder / "run", archive.csv, archive.images, folder / "f.sqlite", archive.names, set())
    recipe = ["--recipe", "answer", "--epochs", "20", "--hidden", "64", "--questions", str(questions)]
    assert train.main(run.flags(run.folder, *recipe, "--val-fraction", "0")) == 0
    return run


@pytest.fixture(scope="session")
def page_loaded(asked_run, tmp_path_factory):
    """The Loaded of `asked_run` with an index of its drawings, a copy of one of them, one with a hostile
    name, and a video."""
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install -r requirements-page.txt")
    from apps.page.loaded import Loaded

    folder = tmp_path_factory.mktemp("indexed")
    images = shutil.copytree(asked_run.images, folder / "images")
    shutil.copy(images / "red-ellipse.jpg", images / "copy of red-ellipse.jpg")
    shutil.copy(images / "blue-line.jpg", images / f"{HOSTILE}.jpg")
    shots = plan(16, shot_seconds=(4.0, 5.0))
    make(images / "film.mp4", [draw_shape(color, shape) for color, shape in zip(COLORS, SHAPES)], shots)
    update(images, folder / "index.sqlite", asked_run.folder, "cpu", asked_run.cache)
    (images / "not indexed.jpg").write_bytes((images / "blue-line.jpg").read_bytes())
    return Loaded(asked_run.folder, folder / "index.sqlite", "cpu", asked_run.cache)


@pytest.fixture(scope="session")
def site(request):
    """The Site of the tests: of `page_loaded`, or with --screenshots RUN of that run and the archive."""
    run = request.config.getoption("--screenshots")
    if run:
        from apps.page.loaded import Loaded
        from apps.search.store import DEFAULT

        loaded, images = Loaded(run, ROOT / DEFAULT), ROOT / "my_image_archive"
        known = ("10002456.jpg", "a dog on a beach", "Where is this?", "a ship at sea")
        film = ROOT / "runs" / "video.mp4"
    else:
        loaded = request.getfixturevalue("page_loaded")
        images = loaded.index.parent / "images"
        known = ("red-ellipse.jpg", "a red ellipse", "What color is it?", "green")
        film = images / "film.mp4"
    from apps.page.serve import serving

    with serving(loaded, port=None, video=film, megabytes=MEGABYTES) as url:
        yield Site(url.rstrip("/"), images, *known, film, loaded)
