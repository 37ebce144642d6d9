"""Each of the three long jobs, killed at any moment and started again, ends where an undisturbed one does,
bit for bit.

    python -m pytest tests/robustness/test_kill.py -m slow -s        twenty moments each

Starting Python and torch takes seconds, so this file, run as a script, stays warm and forks a child per job.
Half of the moments are calls of a function (Python's or C's), drawn from all that an undisturbed child makes.
The other half are times, which also fall inside a call, such as SQLite's commit."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch

from models import runs
from tests.conftest import ROOT, Archive, Letters, Pixels, make_archive
from tests.conftest import encode as encode_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and waits for signals")
PRELOADED = "train eval apps.search.__main__ models.vljepa timm sentence_transformers matplotlib.figure"
PRELOADED += " torchvision.transforms PIL.JpegImagePlugin filelock"
RECIPE = "--vision efficientnet-lite0 --hidden 16 --batch-size 4 --encode-batch 4 --epochs 4 --loss info_nce"
RECIPE += " --dropout 0.5 --standardise --val-fraction 0.25 --resume"
NEVER = -1  # a call number that counts the calls and sends no signal


def encode(folder):
    archive = Archive(folder / "archive/captions.csv", folder / "archive/images", [])
    features = encode_tiny(archive, Pixels(), Letters(), folder / "features.sqlite", batch_size=2)
    torch.save(features[:3], folder / "features.pt")
    return 0


def flags_of(folder, run):
    paths = dict(csv=folder / "archive/captions.csv", images=folder / "archive/images", run=folder / run)
    paths |= dict(cache=folder / "features.sqlite", device="cpu")
    return [*(f"--{name}={path}" for name, path in paths.items()), "--quiet"]


def training(folder):
    import train

    return train.main([*flags_of(folder, "run"), *RECIPE.split()])


def index(folder):
    from apps.search.__main__ import main

    paths = dict(index=folder / "search.sqlite", run=folder / "trained", cache=folder / "features.sqlite")
    flags = [f"--{name}={path}" for name, path in paths.items()]
    return main(
        ["index", str(folder / "archive/images"), *flags, "--device=cpu", "--quiet", "--batch-size=2"]
    )


def asking(folder):
    import eval

    return eval.main(flags_of(folder, "trained"))


def child(job):
    """Run one job with its output in FOLDER/printed, and send this process a signal at call number `call`."""
    folder, calls, seen = Path(job["folder"]), 0, []

    def count(frame, event, arg):
        nonlocal calls
        if event in ("call", "c_call"):
            calls += 1
            if calls == job["call"]:
                seen.append(time.process_time())
                os.kill(os.getpid(), job["signal"])

    with open(folder / "printed", "w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
    try:
        sys.setprofile(count if job["call"] else None)
        code = globals()[job["name"]](folder)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.setprofile(None)
    sys.stdout.flush()
    sys.stderr.flush()
    seconds = time.process_time() - seen[0] if seen else 0.0
    (folder / "life").write_text(json.dumps([calls, seconds]))
    os._exit(code)


def serve(preload):
    """Read one job per line from stdin, and print one line each: its exit code (minus the signal's number)
    and its seconds. Nothing here may start a thread: a forked child has its locks without the thread."""
    for module in preload:
        __import__(module)
    torch.set_num_threads(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print("ready", flush=True)
    for line in sys.stdin:
        job, began = json.loads(line), time.monotonic()
        pid = os.fork()
        if not pid:
            child(job)
        if job["after"] and signal.sigtimedwait({signal.SIGCHLD}, job["after"]) is None:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        signal.sigtimedwait({signal.SIGCHLD}, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)


class Warm:
    """The process that forks."""

    def __init__(self):
        argv = [sys.executable, __file__, *PRELOADED.split()]
        env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(argv, env=env, cwd=ROOT, **pipes)
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, name, folder, call=0, after=0.0, number=signal.SIGKILL):
        """(exit code, seconds) of a job; `call` and `after` say when it is sent a signal."""
        job = dict(name=name, folder=str(folder), call=call, after=after, signal=number)
        print(json.dumps(job), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def succeeds(self, name, folder, **moment):
        """The seconds of a job that must end with 0."""
        code, seconds = self(name, folder, **moment)
        assert code == 0, (folder / "printed").read_text()
        return seconds


@pytest.fixture(scope="module")
def warm():
    server = Warm()
    yield server
    server.process.stdin.close()
    server.process.wait(60)


@pytest.fixture(scope="module")
def undisturbed(warm, tmp_path_factory):
    """{job: (folder, calls, seconds)} of one run each that nobody disturbs; FOLDER/trained is a run to index
    and evaluate with."""
    found = {}
    for name in ("training", "encode", "index", "asking"):
        folder = tmp_path_factory.mktemp(name)
        make_archive(folder / "archive", count=12)
        if name != "training":
            shutil.copytree(found["training"][0] / "run", folder / "trained")
        seconds = warm.succeeds(name, folder, call=NEVER)
        found[name] = folder, json.loads((folder / "life").read_text())[0], seconds
    return found


def fresh(name, undisturbed, folder):
    """`folder`, with all that a job needs and nothing that it makes."""
    for part in ("archive", "trained"):
        if (undisturbed[name][0] / part).exists():
            shutil.copytree(undisturbed[name][0] / part, folder / part)
    return folder


def rows(path, query):
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute(query).fetchall()


def result(name, folder):
    """All that the job is for, as something that compares bit for bit."""
    if name == "index":
        images = rows(folder / "search.sqlite", "SELECT path, digest, row, sketch FROM images ORDER BY id")
        return images, rows(folder / "search.sqlite", "SELECT value FROM meta WHERE key = 'complete'")
    found = [rows(folder / "features.sqlite", "SELECT key, row FROM rows ORDER BY key")]
    if name == "encode":
        return found + [tensor.numpy().tobytes() for tensor in torch.load(folder / "features.pt")]
    tensors, facts = runs.load_last(folder / "run")
    best, _, record = runs.load_model(folder / "run")
    for state in (tensors, best):
        found.append({name: value.numpy().tobytes() for name, value in state.items() if name != "rng"})
    found.append([facts["epoch"], facts["step"], facts["best"], record["epoch"]])
    log = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    return [*found, [{k: v for k, v in entry.items() if k != "seconds"} for entry in log]]


def clean(name, folder):
    """Nothing of a killed process is left over."""
    if name == "training":
        files = sorted(path.name for path in (folder / "run").rglob("*") if path.is_file())
        assert files == ["config.json", "curves.png", "last.safetensors", "log.jsonl", "model.safetensors"]
        assert not list(folder.glob(".*.lock"))
    assert not list(folder.rglob("*-journal")) and not list(folder.rglob("*.tmp"))


def moments(count, calls, seconds, seed):
    """`count` moments of a life, each in its own equal share of it, by call and by time in turn. Calls are
    counted either way, so that the children are as slow as the one whose `seconds` were measured."""
    draw = random.Random(seed)
    shares = [(i + draw.random()) / count for i in range(count)]
    draw.shuffle(shares)
    return [
        dict(call=1 + int(share * calls)) if i % 2 == 0 else dict(after=share * seconds, call=NEVER)
        for i, share in enumerate(shares)
    ]


STOPS = [(signal.SIGTERM, 0), (signal.SIGINT, 130)]


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["encode", "training", "index"])
def test_job_killed_anywhere_and_started_again_equals_the_undisturbed_one(
    warm, undisturbed, tmp_path, name, count
):
    reference, outcomes = result(name, undisturbed[name][0]), Counter()
    for number, moment in enumerate(moments(count, *undisturbed[name][1:], seed=name)):
        folder = fresh(name, undisturbed, tmp_path / str(number))
        code, _ = warm(name, folder, **moment)
        outcomes["killed" if code == -signal.SIGKILL else "was done before"] += 1
        assert code in (0, -signal.SIGKILL), (folder / "printed").read_text()
        outcomes["left a temporary file"] += any(folder.rglob("*.tmp"))
        runs.load_last(folder / "run")
        if (folder / "run" / runs.WEIGHTS).exists():
            runs.load_model(folder / "run")
        warm.succeeds(name, folder)
        assert result(name, folder) == reference, moment
        clean(name, folder)
    print(f"\n{name}: SIGKILL at {count} moments: {dict(outcomes)}; all equal after a restart, bit for bit")
    assert outcomes["killed"] >= count / 2


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number, code", STOPS, ids=["SIGTERM", "SIGINT"])
def test_training_stopped_anywhere_saves_and_resumes_to_the_same_end(
    warm, undisturbed, tmp_path, number, code, count
):
    folder, calls, _ = undisturbed["training"]
    reference, outcomes, slowest = result("training", folder), Counter(), 0.0
    draw = random.Random(f"{number.name} 1")
    for i in range(count):
        folder = fresh("training", undisturbed, tmp_path / str(i))
        call = 100 + int((i + draw.random()) / count * calls)
        found, _ = warm("training", folder, call=call, number=number)
        printed = (folder / "printed").read_text()
        assert found in (0, code) and "Traceback" not in printed, f"call {call}: {printed}"
        slowest = max(slowest, json.loads((folder / "life").read_text())[1])
        ends = ("stopped after step", "stopped; what is encoded", "the model is that of epoch")
        outcomes[next((end for end in ends if end in printed), printed)] += 1
        warm.succeeds("training", folder)
        assert result("training", folder) == reference
        clean("training", folder)
    print(f"\ntraining: {number.name} at {count} moments: {dict(outcomes)}, {slowest:.1f} s later at most")
    assert slowest < 5  # seconds of processor time


@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_evaluation_interrupted_anywhere_exits_with_130_and_no_traceback(warm, undisturbed, tmp_path, count):
    draw, outcomes = random.Random(0), Counter()
    first = 2000  # the calls before read the flags
    for i in range(count):
        folder = fresh("asking", undisturbed, tmp_path / str(i))
        call = first + int((i + draw.random()) / count * (undisturbed["asking"][1] - first))
        code, _ = warm("asking", folder, call=call, number=signal.SIGINT)
        assert "Traceback" not in (folder / "printed").read_text(), (folder / "printed").read_text()
        outcomes[code] += 1
    print(f"\neval.py: SIGINT at {count} moments: exit codes {dict(outcomes)}")
    assert set(outcomes) <= {0, 130} and outcomes[130]


COLD = """
import os, sys
calls = 0
def count(frame, event, arg):
    global calls
    calls += event in ("call", "c_call")
    if calls == int(sys.argv[1]) and event in ("call", "c_call"):
        os.kill(os.getpid(), int(sys.argv[2]))
import train
sys.setprofile(count)
sys.exit(train.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_signal_while_torch_is_imported_stops_cleanly(tmp_path, count):
    draw = random.Random(1)
    for i in range(count):
        number, code = STOPS[i % 2]
        call = 1000 + draw.randrange(200_000)  # there are twice as many before the missing captions file
        paths = dict(run=tmp_path / "run", cache=tmp_path / "cache", csv=tmp_path / "none.csv")
        argv = [sys.executable, "-c", COLD, str(call), str(int(number))]
        argv += [f"--{name}={path}" for name, path in paths.items()]
        env = os.environ | dict(PYTHONPATH=str(ROOT))
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        assert "stopped" in done.stderr
    print(f"\ntrain.py: SIGTERM and SIGINT at {count} moments of its imports: exit code 0 or 130")


if __name__ == "__main__":
    serve(sys.argv[1:])
