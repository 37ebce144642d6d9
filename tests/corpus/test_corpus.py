"""Every kind of file of tests/corpus gives a right result or one clear error; -m slow adds fuzzing."""

import io
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import eval
import train
from models import runs
from models.dataset import MAX_PIXELS, VisionTextDataset, open_image, read_rows, upright_rgb
from tests.conftest import ROOT, write_csv
from tests.corpus import captions, images
from tests.corpus.__main__ import KINDS
from tests.corpus.bad_images import mutated
from tests.corpus.encoders import FINE, GREY, LOSSY, RGB, exif, saved, stored, three, whole
from tests.corpus.trial import NOBODY, PLAIN, Came, Case, examine, trial

WHOLE = whole()
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata


def run_corpus(*flags):
    """What `python -m tests.corpus` prints. A process of its own, since its children start as large as it
    is."""
    argv = [sys.executable, "-W", "ignore", "-m", "tests.corpus", *flags]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_corpus_gives_a_right_result_or_a_clear_error_in_little_memory():
    printed = run_corpus()
    rows = re.findall(r"^\| (.+?) \| (\d+) \|", printed, re.M)
    counts = {kind: int(files) for kind, files in rows}
    assert set(counts) == {*chain(*KINDS.values()), "**all**"} and min(counts.values()) >= 5
    assert re.findall(r"\| \*\*all\*\* \| (\d+) ", printed) == ["793", "109", "72"]
    # A bomb asks for 300 MB or far more, in its header or in a compressed chunk.
    assert int(re.search(r"resident memory (\d+) MB", printed)[1]) < 200


def test_trial_names_hangs_crashes_and_tracebacks():
    def examine(case):
        if case == "hang":
            os.read(os.pipe()[0], 1)
        if case == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "traceback":
            raise KeyError(case)
        if case == "memory":
            bytearray(8 << 30)
        return "right"

    outcomes, _ = trial(["fine", "hang", "crash", "fine", "traceback", "memory"], examine, limit=0.5)
    found = [outcome.split(":")[0] for outcome in outcomes]
    assert found == ["right", "HANG", "CRASH", "right", "TRACEBACK", "TRACEBACK"]


def test_examine_detects_wrong_pixels(tmp_path):
    path = tmp_path / "a.png"
    one_off = RGB.copy()
    one_off[7, 9, 1] += 2
    for wrong in (RGB[:, ::-1], RGB[:, :, ::-1], RGB.swapaxes(0, 1), three(GREY), one_off):
        for end, options in FINE.items():
            path.write_bytes(saved(np.ascontiguousarray(wrong), **options))
            case = Case("sizes", path, RGB, None, LOSSY.get(f"plain.{end}", 0))
            assert examine(case).startswith("WRONG") or (wrong is one_off and case.close)
            assert examine(case._replace(want=PLAIN)) == "right"


def test_examine_detects_what_is_lost_uncounted(tmp_path):
    outcomes = []
    for came in (Came([1, 2], 2), Came([1, 2], 3), Came([1, 3], 3), [1, 2], [1]):
        case = Case("tars", tmp_path, [1, 2], read=lambda _, came=came: came, seen=3 * isinstance(came, Came))
        outcomes.append(examine(case).split(":")[0])
    assert outcomes == ["UNCOUNTED", "right", "WRONG ROWS", "right", "UNCOUNTED"]


def test_train_and_eval_over_the_corpus_use_exactly_the_good_images(tmp_path, capsys):
    folder, table = tmp_path / "images", tmp_path / "captions.csv"
    cases = [case for case in images.make_images(folder, 1) if not case.path.name.startswith("unreadable")]
    names = {"right": [], "error": []}
    for case, outcome in zip(cases, trial(cases)[0]):
        names[outcome].append(str(case.path.relative_to(folder)))
    good, bad = names["right"][::8], names["error"]
    absent = [name for name in bad if not os.path.isfile(folder / name)]  # found before any file is opened
    damaged = [name for name in bad if name not in absent]
    flags = ["--csv", str(table), "--images", str(folder), "--cache", str(tmp_path / "cache"), "--quiet"]
    flags += ["--run", str(tmp_path / "run"), "--device", "cpu"]
    more = "--vision efficientnet-lite0 --epochs 1 --hidden 8 --val-fraction 0".split()

    def lines_of(names):
        write_csv(table, [(name, f"image {i % 7}") for i, name in enumerate(names)])
        return {row.image_name: row.line for row in read_rows(table)}

    lines = lines_of(damaged + good + absent)
    with pytest.raises(ValueError, match=f"{len(absent)} of {len(lines)} images") as error:
        VisionTextDataset(table, None, folder)
    assert all(f"\n  line {lines[name]}: {name}: " in str(error.value) for name in absent) and len(absent) > 8

    lines = lines_of(sorted(damaged + good))
    assert train.main([*flags, *more]) == 1
    printed = capsys.readouterr().err
    assert f"{len(damaged)} of {len(lines)} images" in printed and len(damaged) > 300
    named = [name for name in damaged if f"\n  line {lines[name]}: {name}: {folder}/" in printed]
    alike = sum(map(int, re.findall(r"^  and (\d+) more$", printed, re.M)))
    assert len(named) + alike == len(damaged) and len(named) > 150
    assert not any(f": {name}: " in printed for name in good)

    lines_of(sorted(damaged + good + absent))
    assert train.main([*flags, *more, "--skip-bad"]) == 0
    assert runs.load_private(tmp_path / "run")[1] == sorted(good)
    assert eval.main([*flags, "--skip-bad"]) == 0
    assert f"{table}: {len(good)} images," in capsys.readouterr().out


def test_dataset_lists_files_that_may_not_be_read():
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        folder, root = Path(folder), os.geteuid() == 0
        folder.chmod(0o755)
        for name in ("a.jpg", "b.jpg"):
            (folder / name).write_bytes(WHOLE["plain.jpg"])
        (folder / "b.jpg").chmod(0)
        table = write_csv(folder / "captions.csv", [("a.jpg", "x"), ("b.jpg", "y")])
        if root:
            os.seteuid(NOBODY)
        try:
            with pytest.raises(ValueError, match=r"1 of 2 images(?s:.)*line 3: b\.jpg: .*ermission"):
                VisionTextDataset(table, None, folder)
            assert VisionTextDataset(table, None, folder, skip_bad=True).image_names == ["a.jpg"]
        finally:
            if root:
                os.seteuid(0)


def test_upright_rgb_leaves_its_argument_alone():
    image = Image.open(io.BytesIO(saved(stored(RGB, 6), "PNG", exif=exif(6))))
    for _ in range(2):
        assert np.array_equal(upright_rgb(image), RGB)


@pytest.mark.slow
def test_corpus_of_many_mutations():
    run_corpus("--mutations", "150")


# Not getrusage, whose maximum is that of this process when the new one starts.
PEAK = """
import re, sys; from models.dataset import open_image; open_image(sys.argv[1])
print(re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().expandtabs())[1])
"""


def peak(path):
    """The largest resident memory, in bytes, of a process that opens an image."""
    argv = [sys.executable, "-c", PEAK, str(path)]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "I;16"])
def test_open_image_of_the_most_pixels_takes_little_over_a_gigabyte(mode, tmp_path):
    """Several threads decode at once, and each may get an image of the limit: 0.36 GB as RGB."""
    side = int(MAX_PIXELS**0.5)
    path = tmp_path / "large.png"
    Image.new(mode, (side, side)).save(path, compress_level=1)
    assert peak(path) < 1.2e9


@pytest.mark.slow
@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
def test_open_image_of_200_megapixels_takes_less_than_a_gigabyte(progressive, tmp_path):
    """python -m pytest tests/corpus -m slow -k 200_megapixels -s"""
    path = tmp_path / "phone.jpg"
    image = Image.effect_noise((2040, 1530), 60).resize((16_320, 12_240)).convert("RGB")
    image.save(path, quality=90, progressive=progressive)
    resident = peak(path)
    print(f"\n200 megapixels, progressive {progressive}: {resident / 1e6:,.0f} MB")
    assert resident < 1e9


HOW = st.sampled_from(["set", "flip", "cut", "double", "fill"])
CHANGES = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), HOW, st.binary(min_size=1, max_size=8)), max_size=6
)
FUZZ = dict(deadline=10_000, suppress_health_check=list(HealthCheck), database=None)


def change(content, changes):
    """`content` with each change (place from 0 to 1, how, bytes)."""
    content = bytearray(content)
    for place, how, value in changes:
        at = int(place * len(content))
        if how == "set":
            content[at : at + len(value)] = value
        elif how == "flip" and content:
            content[at] ^= value[0]
        elif how == "cut":
            del content[at : at + 4 * value[0]]
        elif how == "double":
            content[at:at] = content[at : at + len(value)]
        elif how == "fill":
            content[at : at + 16 * len(value)] = value[:1] * 16 * len(value)
    return bytes(content)


@pytest.mark.slow
@settings(max_examples=5000, **FUZZ)
@given(kind=st.sampled_from(sorted(WHOLE)), changes=CHANGES, head=st.none() | st.integers(1, 400))
def test_fuzz_open_image(kind, changes, head):
    """`head` keeps the changes in the first bytes."""
    content = WHOLE[kind]
    content = change(content[:head], changes) + content[head:] if head else change(content, changes)
    try:
        assert open_image(io.BytesIO(content)).mode == "RGB"
    except ValueError as error:
        assert str(error).startswith("image: ") and len(str(error)) < 1000


FILES = [file for files in (*captions.GOOD.values(), *captions.BAD.values()) for file in files()]
TABLES = {data if isinstance(data, bytes) else data.encode() for _, data, _ in FILES if len(data) < 5000}


@pytest.mark.slow
@settings(max_examples=5000, **FUZZ)
@given(
    content=st.binary(max_size=200) | st.builds(change, st.sampled_from(sorted(TABLES)), CHANGES),
    skip_bad=st.booleans(),
)
def test_fuzz_read_rows(tmp_path_factory, content, skip_bad):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content)
    try:
        rows = read_rows(path, skip_bad=skip_bad)
    except ValueError as error:
        assert str(error).startswith(str(path))
        return
    assert rows and all(field.strip() == field != "" for row in rows for field in (row.image_name, row.text))
    numbers = [row.line for row in rows]
    assert numbers == sorted(set(numbers)) and numbers[0] > 1


@pytest.mark.slow
@settings(max_examples=300, **FUZZ)
@given(seed=st.integers(0, 2**32))
def test_fuzz_every_mutation_is_a_right_result_or_a_clear_error(tmp_path_factory, seed):
    name = random.Random(seed).choice(sorted(WHOLE))
    path = tmp_path_factory.getbasetemp() / f"fuzz {name}"
    path.write_bytes(mutated(WHOLE[name], seed))
    assert examine(Case("mutated", path, PLAIN, ".")) in ("right", "error")
