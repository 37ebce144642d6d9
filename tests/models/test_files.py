import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from models import files
from tests.conftest import ROOT


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_replacing_keeps_the_old_file_after_an_error(tmp_path, error):
    path = tmp_path / "new folder" / "log.jsonl"
    with files.replacing(path) as new:
        new.write_text("old")
    with pytest.raises(error, match="log.jsonl" if error is OSError else "half"):
        with files.replacing(path) as new:
            new.write_text("new")
            raise error("half way")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["log.jsonl"]


def test_replacing_names_the_file_that_nothing_was_written_to(tmp_path):
    with pytest.raises(OSError, match="figure.png"):
        with files.replacing(tmp_path / "figure.png"):
            pass


KILLED = """
import os, signal, sys
from models.files import replacing
with replacing(sys.argv[1]) as new:
    new.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_leftovers_of_a_killed_process_go_when_they_are_stale(tmp_path):
    path = tmp_path / "model [1].bin"
    path.write_text("old")
    assert subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT).returncode == -signal.SIGKILL
    (leftover,) = set(tmp_path.iterdir()) - {path}
    other = tmp_path / ".other.bin.123.tmp"
    other.touch()
    for age, left in ((0, True), (7200, False)):
        os.utime(leftover, (time.time() - age,) * 2)
        os.utime(other, (1, 1))
        with files.replacing(path) as new:
            assert path.read_text() in ("old", "new")
            new.write_text("new")
        assert leftover.exists() == left and path.read_text() == "new" and other.exists()
    files.clear_leftovers(tmp_path)
    assert os.listdir(tmp_path) == [path.name]


def test_many_writers_of_one_file_leave_one_whole_version(tmp_path):
    """Threads stand for processes: each may see another's temporary file disappear."""
    path, failed = tmp_path / "shared", []

    def work(letter):
        try:
            for _ in range(100):
                with files.replacing(path) as new:
                    new.write_text(letter * 1000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=letter) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and path.read_text() in {letter * 1000 for letter in "abcd"}
    assert os.listdir(tmp_path) == ["shared"]


def test_stamp_of_an_old_file_changes_with_the_file_only(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("one")
    assert files.stamp(path) != files.stamp(path)  # young
    now = time.time_ns()
    monkeypatch.setattr(files.time, "time_ns", lambda: now + 3 * 10**9)
    old = files.stamp(path)
    assert files.stamp(path.stat()) == old and files.YOUNG not in old
    os.utime(path, ns=(0, now + 10**12))  # a file from the future
    assert files.YOUNG in files.stamp(path)
    path.write_text("two")
    os.utime(path, ns=(0, 0))
    monkeypatch.setattr(files.time, "time_ns", lambda: now + 10**11)
    assert files.stamp(path) not in ("", old)


def test_sha256_printable_and_packed(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert files.printable("caf\xe9\x1b[2J\udcff\n") == "caf\xe9\\x1b[2J\\udcff\\n"
    texts = ["", "caf\xe9 \U0001f600", "\udcff"]
    assert files.unpacked(files.packed(texts)) == texts and files.unpacked(files.packed([])) == []
