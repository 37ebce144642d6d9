"""What the world does to a run: a full disk, a folder that may not be written, files that vanish or change,
two runs at once."""

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

import train
from models import runs
from models.features import encode_archive
from models.files import stamp
from tests.conftest import ROOT, Letters, Pixels, load, make_archive, picture
from tests.conftest import encode as run

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="only root mounts file systems and becomes another user",
)

LAST = Path(runs.LAST)


def flags(archive, folder, *more):
    paths = dict(csv=archive.csv, images=archive.images, cache=folder / "features.sqlite", run=folder / "run")
    options = (
        "--quiet --device cpu --vision efficientnet-lite0 --hidden 16 --batch-size 4 --val-fraction 0.25"
    )
    return [
        *(f"--{name}={path}" for name, path in paths.items()),
        *options.split(),
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
    return all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True))


def assert_same_end(run, straight):
    """The parameters of the last epoch are equal, bit for bit."""
    (a, _), (b, _) = runs.load_last(run), runs.load_last(straight)
    assert [name for name in a if name.startswith("predictor") and not torch.equal(a[name], b[name])] == []


def everything(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return make_archive(tmp_path_factory.mktemp("faults") / "archive", count=12)


@pytest.fixture(scope="module")
def trained(archive, tmp_path_factory):
    """FOLDER/run of two epochs, FOLDER/straight of four that nothing disturbed, FOLDER/features.sqlite with
    all rows."""
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


@posix
def test_checkpoint_that_does_not_fit_is_named_and_the_old_one_stays(copy):
    before = everything(copy / "run")
    saved = runs.load_last(copy / "run")
    with no_file_larger_than(20_000), pytest.raises((OSError, ValueError), match="last.safetensors"):
        runs.save_last(copy / "run", *saved)
    assert everything(copy / "run") == before


@posix
def test_training_on_a_full_disk_fails_by_name_and_resumes_to_the_same_end(archive, copy, capsys):
    before = (copy / "run" / LAST).read_bytes()
    with no_file_larger_than(20_000):
        # The checkpoint, or the cache when images this young have to be looked at again.
        fails(capsys, flags(archive, copy, "--resume", "--epochs", "4"), copy)
    assert (copy / "run" / LAST).read_bytes() == before and not list(copy.rglob("*.tmp"))
    assert train.main(flags(archive, copy, "--resume", "--epochs", "4")) == 0
    assert_same_end(copy / "run", copy / "straight")


@posix
def test_cache_on_a_full_disk_keeps_what_was_encoded(archive, tmp_path):
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
        if (disk / "run").exists():
            runs.load_last(disk / "run")
    (disk / "filler").unlink()
    assert train.main(argv) == 0 and 1 in stages
    assert_same_end(disk / "run", trained / "straight")


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_log_that_cannot_be_written_is_named(copy):
    (copy / "full").mkdir()
    (copy / "full" / runs.LOG).symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"{copy}/full/log.jsonl.*No space left"):
        runs.log(copy / "full", dict(epoch=1))


@root
def test_read_only_disk_serves_a_warm_cache_and_refuses_the_rest_by_name(archive, disk, capsys):
    first = run(archive, Pixels(), Letters(), disk / "features.sqlite")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert same(run(archive, Pixels(), Letters(), disk / "features.sqlite"), first)
    for cache in (disk / "features.sqlite", disk / "new.sqlite"):
        with pytest.raises(OSError, match=str(cache)):
            run(archive, Pixels("another"), Letters(), cache)
    fails(capsys, flags(archive, disk), "Read-only", disk)


@root
@pytest.mark.parametrize(
    "closed",
    ["images/004.jpg", "captions.csv", "features.sqlite", "run/private/last.safetensors", "run", "."],
)
def test_what_may_not_be_read_or_written_is_named(archive, trained, capsys, closed):
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


def test_image_that_vanishes_is_named(archive, tmp_path):
    there = make_archive(tmp_path / "there")
    dataset = load(there)
    (there.images / "003.jpg").unlink()
    with pytest.raises(OSError, match="003.jpg"):
        encode_archive(dataset, Pixels(), Letters(), None, quiet=True)


def test_image_that_vanishes_while_others_are_encoded_is_named_and_the_rest_is_kept(tmp_path):
    there, cache = make_archive(tmp_path / "there"), tmp_path / "features.sqlite"
    content = (there.images / "001.jpg").read_bytes()
    with pytest.raises(ValueError, match="line 4: .*001.jpg"):
        run(there, Pixels(stop_at=2, stop=(there.images / "001.jpg").unlink), Letters(), cache, batch_size=1)
    (there.images / "001.jpg").write_bytes(content)
    vision = Pixels()
    assert (
        same(run(there, vision, Letters(), cache), run(there, Pixels(), Letters(), None)) and vision.seen == 1
    )


def test_image_that_changes_while_others_are_encoded_never_stands_under_its_old_content(tmp_path):
    there, cache = make_archive(tmp_path / "there"), tmp_path / "features.sqlite"
    path = there.images / "001.jpg"
    old, stat = path.read_bytes(), path.stat()
    picture(50).save(tmp_path / "other.jpg", quality=40)
    new = (tmp_path / "other.jpg").read_bytes()
    new += bytes(len(old) - len(new))

    def change():
        path.write_bytes(new)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    with pytest.raises(ValueError, match="001.jpg: changed while it was encoded"):
        run(there, Pixels(stop_at=2, stop=change), Letters(), cache, batch_size=1)
    assert len(new) == len(old) and same(
        run(there, Pixels(), Letters(), cache), run(there, Pixels(), Letters(), None)
    )
    path.write_bytes(old)
    assert same(run(there, Pixels(), Letters(), cache), run(there, Pixels(), Letters(), None))


def test_young_file_is_read_again_and_an_old_one_is_not(tmp_path):
    (tmp_path / "young").write_bytes(b"just now")
    os.utime(tmp_path / "young", (1, 1))  # its own time says 1970, its change time does not
    assert stamp(tmp_path / "young") != stamp(tmp_path / "young")
    old = Path(torch.__file__)  # as old as the installation
    assert stamp(old) == stamp(old)
    (tmp_path / "future").write_bytes(b"from 2100")
    os.utime(tmp_path / "future", (4e9, 4e9))
    assert stamp(tmp_path / "future") != stamp(tmp_path / "future")


def test_images_from_the_future_give_the_same_features(tmp_path):
    there, cache = make_archive(tmp_path / "there"), tmp_path / "features.sqlite"
    for name in there.names:
        os.utime(there.images / name, (4e9, 4e9))
    first = run(there, Pixels(), Letters(), cache)
    vision = Pixels()
    assert same(run(there, vision, Letters(), cache), first) and vision.seen == 0


@posix
def test_second_run_on_a_folder_names_the_first_and_a_killed_one_does_not_block(archive, copy, capsys):
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with runs.hold(copy / "run"):
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
        assert everything(copy / "run") == before and not (copy / "run.1").exists()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert train.main(flags(archive, copy, "--resume", "--epochs", "4")) == 0
    assert_same_end(copy / "run", copy / "straight")
    assert not list(copy.glob(".*"))


def test_lock_is_let_go_whatever_ends_the_run(tmp_path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), runs.hold(tmp_path / "a"), runs.hold(tmp_path / "b"):
            raise error
    assert os.listdir(tmp_path) == []


@posix
def test_save_killed_before_its_end_leaves_the_old_file_and_the_next_start_clears_up(copy):
    """All bytes are written, and the file does not have its name yet."""
    before = (copy / "run" / LAST).read_bytes()
    pid = os.fork()
    if not pid:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        runs.save_last(copy / "run", *runs.load_last(copy / "run"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    (left,) = (copy / "run" / "private").glob(".last.safetensors.*.tmp")
    assert (copy / "run" / LAST).read_bytes() == before
    with runs.hold(copy / "run"):
        assert not left.exists() and (copy / "run" / LAST).read_bytes() == before


def test_start_clears_what_a_killed_save_left_and_nothing_else(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".last.safetensors.4711.tmp", ".config.json.1.tmp", "notes.tmp", ".hidden", "log.jsonl"):
        (tmp_path / "run" / name).write_text("x")
    with runs.hold(tmp_path / "run"):
        assert sorted(os.listdir(tmp_path / "run")) == [".hidden", "log.jsonl", "notes.tmp"]


@pytest.mark.parametrize("replaced", [0, 1, 2, 3, 5, 6])
def test_run_stopped_at_any_of_its_first_files_ends_the_same(
    archive, trained, tmp_path, monkeypatch, replaced
):
    """The calls of os.replace: set_aside, config.json, log.jsonl, then the two files of each epoch."""
    run, replace, calls = tmp_path / "run", os.replace, []
    shutil.copy(trained / "features.sqlite", tmp_path)
    shutil.copytree(trained / "run", run)

    def stop(old, new):
        calls.append(old)
        if len(calls) > replaced:
            raise KeyboardInterrupt
        replace(old, new)

    argv = flags(archive, tmp_path, "--epochs", "4")
    monkeypatch.setattr(os, "replace", stop)
    assert train.main(argv) == 130
    monkeypatch.undo()
    kept = tmp_path / "run.1" if replaced else run
    assert (kept / LAST).read_bytes() == (trained / "run" / LAST).read_bytes()
    assert train.main([*argv, "--resume"]) == 0
    assert_same_end(run, trained / "straight")


def test_features_depend_on_neither_batch_size_nor_workers(archive, lite0, minilm):
    one = encode_archive(load(archive), lite0, minilm, None, batch_size=1, workers=1, quiet=True)
    for batch_size, workers in ((5, 4), (32, 2)):
        other = encode_archive(
            load(archive), lite0, minilm, None, batch_size=batch_size, workers=workers, quiet=True
        )
        for a, b in zip(one[:2], other[:2]):
            assert ((a - b).abs() <= 2**-10 * a.abs() + 1e-5).all() and (a - b).abs().mean() < 1e-6


def test_usage_errors_exit_with_2_and_failures_with_1_on_stderr(archive, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--epochs", "many"])
    assert stop.value.code == 2
    capsys.readouterr()
    fails(capsys, flags(archive, tmp_path, "--csv", str(tmp_path / "none.csv")), "none.csv")


def test_quiet_says_nothing_on_stderr_and_without_it_the_work_is_seen(archive, tmp_path, capsys):
    run(archive, Pixels(), Letters(), tmp_path / "a.sqlite")
    assert capsys.readouterr().err == ""
    encode_archive(load(archive), Pixels(), Letters(), tmp_path / "b.sqlite")
    err = capsys.readouterr().err
    for what in ("image files", "images, checked", "images, pixels", "captions, letters"):
        assert f"{what}: 100%" in err and "it/s" in err.replace("/s", "it/s")
