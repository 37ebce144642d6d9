"""What the world does to a run: a full disk, a folder that may not be written, files that vanish or change, two runs at once.

python -m pytest tests/test_faults.py -v        a line a fault
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Letters, Pixels, load, make_archive, picture, run

import train
from models import runs as checkpoint
from models.features import encode_archive
from models.features.cache import stamp_of

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="only root mounts file systems and becomes another user",
)

ROOT = Path(__file__).parents[2]


def flags(archive, folder, *more):
    paths = dict(csv=archive.csv, images=archive.images, cache=folder / "features.sqlite", run=folder / "run")
    return [
        *(f"--{name}={path}" for name, path in paths.items()),
        "--quiet",
        "--device",
        "cpu",
        "--vision",
        "efficientnet-lite0",
        "--hidden",
        "16",
        "--batch-size",
        "4",
        "--val-fraction",
        "0.25",
        "--loss",
        "info_nce",
        *more,
    ]


def fails(capsys, argv, *words):
    """train.py ends with 1 and says each word on stderr, in place of a traceback."""
    capsys.readouterr()
    assert train.main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("train.py: ") and "Traceback" not in err
    for word in words:
        assert str(word) in err, err
    return err


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def parameters(path):
    return list(checkpoint.load(path)["predictor"].values())


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("faults") / "archive", count=12)


@pytest.fixture(scope="module")
def trained(archive, tmp_path_factory):
    """FOLDER/run of two epochs, FOLDER/straight of four that nothing disturbed, FOLDER/features.sqlite with all rows."""
    folder = tmp_path_factory.mktemp("trained")
    assert train.main(flags(archive, folder, "--epochs", "4")) == 0
    os.rename(folder / "run", folder / "straight")
    assert train.main(flags(archive, folder, "--epochs", "2")) == 0
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of `trained` to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"can't mount a file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def no_file_larger_than(size):
    """Writes beyond `size` bytes of a file fail, as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def nobody():
    """As a user who owns nothing. Skips where that user could not import a package either."""
    closed = [
        path
        for path in (Path(torch.__file__), ROOT / "train.py")
        for path in path.parents
        if not path.stat().st_mode & 0o001
    ]
    if closed:
        pytest.skip(f"Python's packages or this folder are closed to other users ({closed[0]})")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# -------------------------------------------------------------------------------------------------------------------- a full disk


@posix
def test_checkpoint_that_does_not_fit_is_named_and_the_old_one_stays(copy):
    """Catches torch's 'unexpected pos 832 vs 726', which is all it says of a full disk, and a temporary file that fills it."""
    before = everything(copy / "run")
    state = checkpoint.load(copy / "run" / "last.pt")
    with no_file_larger_than(20_000), pytest.raises(OSError, match="last.pt: can't be saved .*too large"):
        checkpoint.save(state, copy / "run" / "last.pt")
    assert everything(copy / "run") == before


@posix
def test_training_on_a_full_disk_fails_by_name_and_resumes_to_the_same_end(archive, copy, capsys):
    """Catches a traceback, and a last.pt that the failed save took along."""
    before = (copy / "run" / "last.pt").read_bytes()
    with no_file_larger_than(20_000):
        # The checkpoint, or the cache when images this young have to be looked at again.
        fails(capsys, flags(archive, copy, "--resume", "--epochs", "4"), copy)
    assert (copy / "run" / "last.pt").read_bytes() == before and not list(copy.rglob("*.tmp"))
    assert train.main(flags(archive, copy, "--resume", "--epochs", "4")) == 0
    assert same(parameters(copy / "run" / "last.pt"), parameters(copy / "straight" / "last.pt"))


@posix
def test_cache_on_a_full_disk_keeps_what_was_encoded(archive, tmp_path):
    """Catches a bare sqlite3.OperationalError, and rows lost or half written when the disk fills up on the way."""
    cache, vision = tmp_path / "features.sqlite", Pixels()
    dataset = load(archive)
    encode_archive(dataset, Pixels("first"), Letters(), cache, quiet=True)
    with (
        no_file_larger_than(cache.stat().st_size + 4096),
        pytest.raises(OSError, match=f"{cache}: .*what was encoded before is kept"),
    ):
        run(make_archive(tmp_path / "more", count=60), vision, Letters(), cache, batch_size=1)
    kept = vision.seen
    vision = Pixels()
    more = load(archive._replace(csv=tmp_path / "more" / "captions.csv", images=tmp_path / "more" / "images"))
    again = encode_archive(more, vision, Letters(), cache, batch_size=1, quiet=True)
    assert (
        same(again, encode_archive(more, Pixels(), Letters(), None, quiet=True))
        and 0 < vision.seen
        and vision.seen + kept <= 61
    )


@root
def test_disk_that_fills_up_leaves_all_whole_and_the_same_line_goes_on(archive, trained, disk, capsys):
    """Catches whatever a real ENOSPC does that a limit on the size of files does not; with ever more room."""
    argv = flags(archive, disk, "--epochs", "4", "--resume")
    stages = set()
    for free in (0, 200_000):
        (disk / "filler").write_bytes(b"")
        used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())
        (disk / "filler").write_bytes(bytes(max(0, 2_097_152 - used - free)))
        capsys.readouterr()
        code, err = train.main(argv), capsys.readouterr().err
        assert code == 0 or "Traceback" not in err and str(disk) in err, err
        stages.add(code)
        for path in disk.glob("run/*.pt"):
            checkpoint.load(path)
    (disk / "filler").unlink()
    assert train.main(argv) == 0 and 1 in stages
    assert same(parameters(disk / "run" / "last.pt"), parameters(trained / "straight" / "last.pt"))


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_log_that_cannot_be_written_names_the_run(archive, copy, capsys):
    """Catches '[Errno 28] No space left on device' without a place: an open file's error names none."""
    (copy / "run" / "log.jsonl").unlink()
    (copy / "run" / "log.jsonl").symlink_to("/dev/full")
    fails(capsys, flags(archive, copy, "--resume", "--epochs", "3"), "No space left", copy / "run")
    assert checkpoint.load(copy / "run" / "last.pt")["epoch"] >= 2


# ------------------------------------------------------------------------------------------------------- read-only and not allowed


@root
def test_read_only_disk_serves_a_warm_cache_and_refuses_the_rest_by_name(archive, disk, capsys):
    """Catches a cache that is written to when there is nothing new, and errors that name no file."""
    first = run(archive, Pixels(), Letters(), disk / "features.sqlite")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert same(run(archive, Pixels(), Letters(), disk / "features.sqlite"), first)
    for cache in (disk / "features.sqlite", disk / "new.sqlite"):
        with pytest.raises(OSError, match=str(cache)):
            run(archive, Pixels("another"), Letters(), cache)
    fails(capsys, flags(archive, disk), "Read-only", disk)


@root
@pytest.mark.parametrize(
    "closed", ["images/004.jpg", "captions.csv", "features.sqlite", "run/last.pt", "run", "."]
)
def test_what_may_not_be_read_or_written_is_named(archive, trained, capsys, closed):
    """Catches 'damaged' or 'not there' said of what belongs to another user, and a traceback."""
    with tempfile.TemporaryDirectory() as folder:  # all of pytest's own folders are root's
        folder = Path(folder)
        shutil.copytree(archive.csv.parent, folder, dirs_exist_ok=True)
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o777)
        (folder / closed).chmod(0o555 if (folder / closed).is_dir() else 0)
        before = everything(folder / "run")
        there = archive._replace(csv=folder / "captions.csv", images=folder / "images")
        with nobody():
            said = fails(capsys, flags(there, folder, "--resume", "--epochs", "3"), folder / closed)
        assert "ermission" in said or "read" in said or "unable to open" in said
        assert everything(folder / "run") == before


# --------------------------------------------------------------------------------------------------- files that vanish or change


def test_image_that_vanishes_is_named(archive, tmp_path):
    """Catches a crash far from the file, between the look at its name and the read of its content."""
    there = make_archive(tmp_path / "there")
    dataset = load(there)
    (there.images / "003.jpg").unlink()
    with pytest.raises(OSError, match="003.jpg"):
        encode_archive(dataset, Pixels(), Letters(), None, quiet=True)


def test_image_that_vanishes_while_others_are_encoded_is_named_and_the_rest_is_kept(tmp_path):
    """Catches hours of encoding lost to one file that somebody moved."""
    there, cache = make_archive(tmp_path / "there"), tmp_path / "features.sqlite"
    content = (there.images / "000.jpg").read_bytes()
    with pytest.raises(ValueError, match="line 2: .*000.jpg"):
        run(there, Pixels(stop_at=2, stop=(there.images / "000.jpg").unlink), Letters(), cache, batch_size=1)
    (there.images / "000.jpg").write_bytes(content)
    vision = Pixels()
    assert (
        same(run(there, vision, Letters(), cache), run(there, Pixels(), Letters(), None)) and vision.seen == 1
    )


def test_image_that_changes_while_others_are_encoded_never_stands_under_its_old_content(tmp_path):
    """Catches a row of the new pixels kept for ever under the digest of the old: size and time stamp are put back, too."""
    there, cache = make_archive(tmp_path / "there"), tmp_path / "features.sqlite"
    path = there.images / "000.jpg"
    old, stat = path.read_bytes(), path.stat()
    picture(50).save(tmp_path / "other.jpg", quality=40)
    new = (tmp_path / "other.jpg").read_bytes()
    new += bytes(len(old) - len(new))

    def change():
        path.write_bytes(new)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(ValueError, match="000.jpg: changed while it was encoded"):
        run(there, Pixels(stop_at=2, stop=change), Letters(), cache, batch_size=1)
    assert len(new) == len(old) and same(
        run(there, Pixels(), Letters(), cache), run(there, Pixels(), Letters(), None)
    )
    path.write_bytes(old)
    assert same(run(there, Pixels(), Letters(), cache), run(there, Pixels(), Letters(), None))


def test_young_file_is_read_again_and_an_old_one_is_not(tmp_path):
    """Catches a file that changes twice within one tick of a coarse clock (2 s on FAT) and keeps its size: the stamp of the first
    look would vouch for the second content. A clock that was put back makes files of the future, which are read each time."""
    (tmp_path / "young").write_bytes(b"just now")
    os.utime(tmp_path / "young", (1, 1))  # its own time says 1970, its change time does not
    assert stamp_of(tmp_path / "young") != stamp_of(tmp_path / "young")
    old = Path(torch.__file__)  # as old as the installation
    assert stamp_of(old) == stamp_of(old)
    (tmp_path / "future").write_bytes(b"from 2100")
    os.utime(tmp_path / "future", (4e9, 4e9))
    assert stamp_of(tmp_path / "future") != stamp_of(tmp_path / "future")


def test_images_from_the_future_give_the_same_features(tmp_path):
    """Catches arithmetic on times: here the clock stood wrong when the images were taken, and is right again."""
    there, cache = make_archive(tmp_path / "there"), tmp_path / "features.sqlite"
    for name in there.names:
        os.utime(there.images / name, (4e9, 4e9))
    first = run(there, Pixels(), Letters(), cache)
    vision = Pixels()
    assert same(run(there, vision, Letters(), cache), first) and vision.seen == 0


# ------------------------------------------------------------------------------------------------------------------- two at once


@posix
def test_second_run_on_a_folder_names_the_first_and_a_killed_one_does_not_block(archive, copy, capsys):
    """Catches two processes that write one last.pt in turn, and a lock that has to be deleted by hand after a kill."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with checkpoint.alone(copy / "run"):
            os.write(writer, b"x")
            signal.pause()
    try:
        os.read(reader, 1)
        before = everything(copy / "run")
        for resume in (["--resume"], []):
            fails(
                capsys,
                flags(archive, copy, "--epochs", "3", *resume),
                copy / "run",
                f"process {pid}",
                "another --run",
            )
        assert everything(copy / "run") == before and not (copy / "run.previous").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert train.main(flags(archive, copy, "--resume", "--epochs", "4")) == 0
    assert same(parameters(copy / "run" / "last.pt"), parameters(copy / "straight" / "last.pt"))
    assert not list(copy.glob(".*"))


def test_lock_is_let_go_whatever_ends_the_run(tmp_path):
    """Catches a lock that an error leaves behind, and one for all folders together."""
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), checkpoint.alone(tmp_path / "a"), checkpoint.alone(tmp_path / "b"):
            raise error
    assert os.listdir(tmp_path) == []


@posix
def test_save_killed_before_its_end_leaves_the_old_checkpoint_and_the_next_start_clears_up(copy):
    """Catches the moment that random kills rarely hit: all bytes are written, and the file does not have its name yet."""
    before = (copy / "run" / "last.pt").read_bytes()
    pid = os.fork()
    if not pid:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.save(checkpoint.load(copy / "run" / "last.pt"), copy / "run" / "last.pt")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert (copy / "run" / f".last.pt.{pid}.tmp").exists() and (
        copy / "run" / "last.pt"
    ).read_bytes() == before
    with checkpoint.alone(copy / "run"):
        assert sorted(os.listdir(copy / "run")) == ["best.pt", "curves.png", "last.pt", "log.jsonl"]


def test_start_clears_what_a_killed_save_left_and_nothing_else(tmp_path):
    """Catches a disk that fills with .last.pt.PID.tmp, and a clearing that takes a user's files along."""
    (tmp_path / "run").mkdir()
    for name in (".last.pt.4711.tmp", ".best.pt.1.tmp", "notes.tmp", ".hidden", "log.jsonl"):
        (tmp_path / "run" / name).write_text("x")
    with checkpoint.alone(tmp_path / "run"):
        assert sorted(os.listdir(tmp_path / "run")) == [".hidden", "log.jsonl", "notes.tmp"]


# -------------------------------------------------------------------------------------------------------------- the earlier run


def test_run_stopped_before_it_saved_does_not_cost_the_one_before(archive, copy):
    """Catches a day's training in RUN.previous deleted for the sake of an empty folder, by starting twice."""
    good = (copy / "run" / "last.pt").read_bytes()
    os.rename(copy / "run", copy / "run.previous")
    (copy / "run").mkdir()
    (copy / "run" / "log.jsonl").write_text("")  # so far a killed start came
    assert train.main(flags(archive, copy, "--epochs", "1")) == 0
    assert (copy / "run.previous" / "last.pt").read_bytes() == good


def test_half_deleted_previous_run_does_not_block_the_next(archive, copy):
    """Catches 'holds files and no log.jsonl' said of what this program itself was killed in deleting: the log goes last."""
    (copy / "run.previous").mkdir()
    (copy / "run.previous" / "log.jsonl").write_text("")
    (copy / "run.previous" / "best.pt").write_text("")
    before = (copy / "run" / "last.pt").read_bytes()
    assert train.main(flags(archive, copy, "--epochs", "1")) == 0
    assert (copy / "run.previous" / "last.pt").read_bytes() == before


# ------------------------------------------------------------------------------------------------------------------ the same again


def test_features_depend_on_neither_batch_size_nor_workers(archive, lite0, minilm):
    """Catches a tower whose rows depend on their neighbours, and a race between the threads that decode: at most a last place of
    the float16 they are kept in."""
    one = encode_archive(load(archive), lite0, minilm, None, batch_size=1, workers=1, quiet=True)
    for batch_size, workers in ((5, 4), (32, 2)):
        other = encode_archive(
            load(archive), lite0, minilm, None, batch_size=batch_size, workers=workers, quiet=True
        )
        for a, b in zip(one[:2], other[:2]):
            assert ((a - b).abs() <= 2**-10 * a.abs() + 1e-5).all() and (a - b).abs().mean() < 1e-6


def test_usage_errors_exit_with_2_and_failures_with_1_on_stderr(archive, tmp_path, capsys):
    """Catches a script that a job file can't tell apart from success."""
    with pytest.raises(SystemExit) as stop:
        train.main(["--epochs", "many"])
    assert stop.value.code == 2
    capsys.readouterr()
    fails(capsys, flags(archive, tmp_path, "--csv", str(tmp_path / "none.csv")), "none.csv")


def test_quiet_says_nothing_on_stderr_and_without_it_the_work_is_seen(archive, tmp_path, capsys):
    """Catches hours without a sign of life, and bars that a log file has to swallow."""
    run(archive, Pixels(), Letters(), tmp_path / "a.sqlite")
    assert capsys.readouterr().err == ""
    encode_archive(load(archive), Pixels(), Letters(), tmp_path / "b.sqlite")
    err = capsys.readouterr().err
    for what in ("image files", "images, checked", "images, pixels", "captions, letters"):
        assert f"{what}: 100%" in err and "it/s" in err.replace("/s", "it/s")
