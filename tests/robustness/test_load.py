"""100,000 captions of 20,000 images through train.py, eval.py and the search.

    python -m pytest tests/robustness/test_load.py -m slow -s     minutes; prints seconds and memory

The 20,000 images are hard links to the 1,000 that come with the repository, so each tower sees 1,000
contents; everything else (names, rows, index, metrics) meets 20,000. Of the 100,000 captions 5,000 are
distinct: a text tower encodes some hundred per second."""

import csv
import os
import shutil
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, write_csv

IMAGES, CAPTIONS = 20_000, 100_000
LIMIT = 2e9  # bytes of peak resident memory, of each process

RUN = """
import runpy, sys
script, report, *sys.argv[1:] = sys.argv[1:]
code = 0
try:
    runpy.run_module(script, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code
with open("/proc/self/status") as status, open(report, "w") as file:
    file.write(next(line for line in status if line.startswith("VmHWM")).split()[1])
sys.exit(code)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with images/ and captions.csv."""
    folder = tmp_path_factory.mktemp("load")
    (folder / "images").mkdir()
    photographs = sorted((ROOT / "my_image_archive").glob("*.jpg"))[:1000]
    names = [f"{i:05}.jpg" for i in range(IMAGES)]
    for i, name in enumerate(names):
        try:
            os.link(photographs[i % len(photographs)], folder / "images" / name)
        except OSError:  # another file system
            shutil.copy(photographs[i % len(photographs)], folder / "images" / name)
    captions = {}
    with open(ROOT / "caption.csv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image_name"], []).append(row["comment"])
    rows = []
    for i, name in enumerate(names):
        own = captions[photographs[i % len(photographs)].name]
        # The number keeps the captions of an image apart, and the distinct texts few.
        rows += [(name, f"{own[k % len(own)]}, {k + 1}") for k in range(CAPTIONS // IMAGES)]
    write_csv(folder / "captions.csv", rows)
    return folder


def step(folder, module, *arguments):
    """(seconds, peak bytes, standard output) of `python -m module arguments`, run as a user would."""
    report, began = folder / "peak", time.perf_counter()
    argv = [sys.executable, "-c", RUN, module, str(report), *map(str, arguments)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, peak = time.perf_counter() - began, int(report.read_text()) * 1024
    print(f"{module:12} {' '.join(map(str, arguments))[:60]:60} {seconds:7.1f} s {peak / 1e9:6.2f} GB")
    return seconds, peak, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of /proc")
def test_hundred_thousand_captions_of_twenty_thousand_images_stay_under_two_gigabytes(large):
    print()
    cache, model = ["--cache", large / "features.sqlite", "--quiet"], ["--run", large / "run"]
    data = ["--csv", large / "captions.csv", "--images", large / "images", "--device", "cpu", *cache, *model]
    training = [*data, "--vision", "efficientnet-lite0-stages", "--recipe", "retrieval"]
    search = ["--index", large / "search.sqlite", *model]
    indexing = ("apps.search.__main__", "index", large / "images", *search, *cache)
    steps = [
        ("train", *training, "--epochs", 2),
        ("train", *training, "--epochs", 3, "--resume"),  # with a warm cache
        ("eval", *data, "--held-out"),
        indexing,
        indexing,  # nothing new
        ("apps.search.__main__", "find", "two persons at a table", *search),
    ]
    seen = [step(large, *arguments) for arguments in steps]
    assert f"{IMAGES:,} indexed" in seen[3][2] and "0 new" in seen[4][2]
    assert max(peak for _, peak, _ in seen) < LIMIT
