"""Every kind of file a stranger may bring (tests/corpus.py): a right result or one clear error, never anything else.

python -m pytest tests/test_corpus.py              the corpus, and train.py and eval.py over all of it
python -m pytest tests/test_corpus.py -m slow      a minute of fuzzing, and the largest image there may be
"""

import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import eval
import train
from models import runs as checkpoint
from models.dataset import MAX_PIXELS, VisionTextDataset, open_image, read_captions
from tests.corpus import __main__ as corpus

ROOT = Path(__file__).parents[2]
WHOLE = corpus.whole()
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata


def bad(outcomes):
    return [(name, outcome) for _, name, outcome in outcomes if outcome not in ("right", "error")]


def run_corpus(*flags):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.corpus", "--json", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---------------------------------------------------------------------------------------------------------------- the corpus


@pytest.fixture(scope="module")
def report():
    return run_corpus()


def test_corpus_gives_a_right_result_or_a_clear_error(report):
    """Catches wrong pixels or rows, an error without path or reason, a traceback, a hang and a crash: any of 900 files."""
    assert bad(report["outcomes"]) == []


def test_corpus_is_as_large_as_it_is_said_to_be(report):
    """Catches a corpus that shrank, or a kind of file of which nothing is tried."""
    kinds = [kind for kind, _, _ in report["outcomes"]]
    assert (
        sum(kind in corpus.IMAGE_KINDS for kind in kinds) >= 700
        and sum(kind in corpus.CAPTION_KINDS for kind in kinds) >= 100
    )
    assert set(kinds) == set(corpus.IMAGE_KINDS + corpus.CAPTION_KINDS)


def test_corpus_takes_little_memory(report):
    """Catches a bomb that goes off: each asks for 300 MB or far more, by its header or in a compressed chunk."""
    assert report["peak"] < 200 << 20


def test_trial_names_hangs_crashes_and_tracebacks(tmp_path):
    """Catches a harness that lets the very things through it is there to see."""

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

    outcomes, _ = corpus.trial(["fine", "hang", "crash", "fine", "traceback", "memory"], examine, limit=0.5)
    assert [o.split(":")[0] for o in outcomes] == [
        "right",
        "HANG",
        "CRASH",
        "right",
        "TRACEBACK",
        "TRACEBACK",
    ]


def test_examine_sees_wrong_pixels(tmp_path):
    """Catches a comparison that anything passes: mirrored, turned, channels swapped, grey, one value off by two."""
    path = tmp_path / "a.png"
    one_off = corpus.RGB.copy()
    one_off[7, 9, 1] += 2
    for wrong in (
        corpus.RGB[:, ::-1],
        corpus.RGB[:, :, ::-1],
        corpus.RGB.swapaxes(0, 1),
        corpus.three(corpus.GREY),
        one_off,
    ):
        for end, options in corpus.FINE.items():
            path.write_bytes(corpus.saved(np.ascontiguousarray(wrong), **options))
            case = corpus.Case("sizes", path, corpus.RGB, None, corpus.LOSSY.get(f"plain.{end}", 0))
            assert corpus.examine(case).startswith("WRONG") or (wrong is one_off and case.close)
            assert corpus.examine(case._replace(want=corpus.PLAIN)) == "right"


# ---------------------------------------------------------------------------------------------------- train.py, eval.py, data set


def test_train_and_eval_over_the_corpus_use_exactly_the_good_images(tmp_path, capsys):
    """Catches a run of hours that one file ends, an image left out without a word, or a bad one listed without its line."""
    images, table = tmp_path / "images", tmp_path / "captions.csv"
    cases = [
        case
        for case in corpus.make_images(images, mutations=1)
        if not case.path.name.startswith("unreadable")
    ]
    outcomes, _ = corpus.trial(cases)
    good = [
        str(case.path.relative_to(images)) for case, outcome in zip(cases, outcomes) if outcome == "right"
    ][::4]
    damaged = [
        str(case.path.relative_to(images)) for case, outcome in zip(cases, outcomes) if outcome == "error"
    ]
    absent = [
        name for name in damaged if not os.path.isfile(images / name)
    ]  # not a file at all: told before one is opened
    flags = [
        "--csv",
        str(table),
        "--images",
        str(images),
        "--cache",
        str(tmp_path / "cache"),
        "--quiet",
        "--device",
        "cpu",
    ]
    more = [
        "--vision",
        "efficientnet-lite0",
        "--epochs",
        "1",
        "--hidden",
        "8",
        "--val-fraction",
        "0",
        "--run",
        str(tmp_path / "run"),
    ]

    def write(names):
        """{image name: line} of a captions file over these images."""
        with open(table, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(
                [("image_name", "comment"), *((name, f"picture {i % 7}") for i, name in enumerate(names))]
            )
        return {row.image_name: row.line for row in read_captions(table)}

    lines = write(damaged + good)
    with pytest.raises(ValueError, match=f"{len(absent)} of {len(lines)} images can't be used") as error:
        VisionTextDataset(table, None, images)
    assert all(f"\n  line {lines[name]}: {name}: " in str(error.value) for name in absent) and len(absent) > 8

    damaged = [name for name in damaged if name not in absent]
    lines = write(sorted(damaged + good))
    assert train.main([*flags, *more]) == 1
    said = capsys.readouterr().err
    assert f"{len(damaged)} of {len(lines)} images can't be used" in said and len(damaged) > 300
    assert all(f"\n  line {lines[name]}: {name}: {images}/" in said for name in damaged)
    assert not any(f": {name}: " in said for name in good)

    write(sorted(damaged + good + absent))
    assert train.main([*flags, *more, "--skip-bad"]) == 0
    assert checkpoint.load(tmp_path / "run" / "best.pt")["trained_on"] == sorted(good)
    assert eval.main([*flags, "--run", str(tmp_path / "run"), "--skip-bad"]) == 0
    assert f"{table}: {len(good)} images," in capsys.readouterr().out


def test_dataset_lists_files_that_may_not_be_read():
    """Catches a file of another user that ends the run later, when features/ reads it, in spite of --skip-bad."""
    with tempfile.TemporaryDirectory() as folder:
        folder, root = Path(folder), os.geteuid() == 0
        folder.chmod(0o755)
        for name in ("a.jpg", "b.jpg"):
            (folder / name).write_bytes(WHOLE["plain.jpg"])
        (folder / "b.jpg").chmod(0)
        table = folder / "captions.csv"
        table.write_text("image_name,comment\na.jpg,x\nb.jpg,y\n")
        if root:  # may read anything; nobody may not
            os.seteuid(65534)
        try:
            with pytest.raises(ValueError, match=r"1 of 2 images(?s:.)*line 3: b\.jpg: .*ermission"):
                VisionTextDataset(table, None, folder)
            assert VisionTextDataset(table, None, folder, skip_bad=True).image_names == ["a.jpg"]
        finally:
            if root:
                os.seteuid(0)


def test_dataset_names_a_file_of_the_other_unicode_form(tmp_path):
    """Catches 'no such file' about a name that looks the same on screen: made on a Mac, unpacked on Linux."""
    (tmp_path / "cafe\u0301.jpg").write_bytes(WHOLE["plain.jpg"])
    (tmp_path / "captions.csv").write_text(
        "image_name,comment\ncaf\u00e9.jpg,x\ngone.jpg,y\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match="Unicode form; rename it") as error:
        VisionTextDataset(tmp_path / "captions.csv", None, tmp_path)
    assert str(error.value).endswith("gone.jpg: no such file")


def test_upright_rgb_leaves_its_argument_alone():
    """Catches turning the caller's own image in place, twice upright at the second call."""
    from models.dataset import upright_rgb

    image = Image.open(
        io.BytesIO(
            corpus.saved(np.ascontiguousarray(corpus.STORED[6](corpus.RGB)), "PNG", exif=corpus.exif(6))
        )
    )
    for _ in range(2):
        assert np.array_equal(upright_rgb(image), corpus.RGB)


# -------------------------------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
def test_corpus_of_many_mutations():
    """Catches what 8 changes a format miss: 150 of each of 22."""
    assert bad(run_corpus("--mutations", "150")["outcomes"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "I;16"])
def test_open_image_of_the_most_pixels_takes_little_over_a_gigabyte(mode, tmp_path):
    """Catches copies of copies: several threads decode at once, and each may get an image of the limit (0.36 GB as RGB)."""
    side = int(MAX_PIXELS**0.5)
    Image.new(mode, (side, side)).save(tmp_path / "large.png", compress_level=1)
    code = (
        "import resource, sys; from models.dataset import open_image; open_image(sys.argv[1]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.png")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert int(done.stdout) * 1024 < 1.2e9


HOW = st.sampled_from(["set", "flip", "cut", "double", "fill"])
CHANGES = st.tuples(st.floats(0, 1, exclude_max=True), HOW, st.binary(min_size=1, max_size=8))


def change(content, changes):
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


FUZZ = dict(deadline=10_000, suppress_health_check=list(HealthCheck), database=None)


@pytest.mark.slow
@settings(max_examples=8000, **FUZZ)
@given(
    kind=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(CHANGES, max_size=6),
    head=st.none() | st.integers(1, 400),
)
def test_fuzz_open_image(kind, changes, head):
    """Catches any exception but ValueError, a mode but RGB, and 10 s for one small file; `head` keeps the changes near the beginning."""
    content = WHOLE[kind]
    content = change(content[:head], changes) + content[head:] if head else change(content, changes)
    try:
        assert open_image(io.BytesIO(content)).mode == "RGB"
    except ValueError as error:
        assert str(error).startswith("image: ") and len(str(error)) < 1000


TABLES = [
    data if isinstance(data, bytes) else data.encode()
    for _, _, data, _ in [*corpus.good_captions(), *corpus.refused_captions()]
]
TABLES = sorted({data for data in TABLES if len(data) < 5000})


@pytest.mark.slow
@settings(max_examples=8000, **FUZZ)
@given(
    content=st.binary(max_size=200)
    | st.builds(change, st.sampled_from(TABLES), st.lists(CHANGES, max_size=6)),
    skip_bad=st.booleans(),
)
def test_fuzz_read_captions(tmp_path_factory, content, skip_bad):
    """Catches any exception but ValueError, an error without the path, and rows that are empty, unstripped or out of order."""
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content)
    try:
        rows = read_captions(path, skip_bad=skip_bad)
    except ValueError as error:
        assert str(error).startswith(str(path))
        return
    assert rows and all(
        row.image_name.strip() == row.image_name != "" and row.caption.strip() == row.caption != ""
        for row in rows
    )
    numbers = [row.line for row in rows]
    assert numbers == sorted(set(numbers)) and numbers[0] > 1


@pytest.mark.slow
@settings(max_examples=300, **FUZZ)
@given(seed=st.integers(0, 2**32))
def test_fuzz_every_mutation_is_a_right_result_or_a_clear_error(tmp_path_factory, seed):
    """Catches wrong pixels of a damaged file that still decodes: held against Pillow's own plain decode."""
    name = sorted(WHOLE)[seed % len(WHOLE)]
    path = tmp_path_factory.getbasetemp() / f"fuzz {name}"
    path.write_bytes(corpus.mutated(WHOLE[name], random.Random(seed)))
    assert corpus.examine(corpus.Case("mutated", path, corpus.PLAIN, ".")) in ("right", "error")
