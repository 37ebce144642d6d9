"""How to time: calls in turns, whole processes with their memory, and which machine it was."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

WATCHED = "tools.bench.watched"


class Row(NamedTuple):
    """One line of the table. A ratio above 1 is better than the peer."""

    what: str
    value: float | None
    against: str = ""
    ratio: float | None = None


class Process(NamedTuple):
    """What a whole Python process took."""

    seconds: float
    peak: float  # GB resident
    own: float  # GB at most of memory that no file backs: the system drops the other pages when it needs room


def timed(function):
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def side_by_side(functions, repeats):
    """Median seconds of each function. They run in turns: a slow moment of the machine affects all."""
    rounds = [[timed(function) for function in functions] for _ in range(repeats + 1)]
    return [statistics.median(seconds) for seconds in zip(*rounds[1:])]  # the first round warms up


def median(function, repeats):
    """Median seconds of a call, after one to warm up."""
    return side_by_side([function], repeats)[0]


def process(*command, **environment):
    """Run `python SCRIPT ...` and return its Process. Raises CalledProcessError when it fails."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", WATCHED, *map(str, command)],
        check=True,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - began
    return Process(seconds, *json.loads(done.stderr.splitlines()[-1]))


def cpu():
    """(model name, what it multiplies with) of this machine's CPU, from /proc/cpuinfo where there is one."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    info = {key.strip(): value for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = info.get("flags", "").split()
    if "avx512f" in flags:
        kind = "AVX-512 with bf16" if "avx512_bf16" in flags else "AVX-512 without bf16"
    else:
        kind = "AVX2 only" if "avx2" in flags else "no AVX2"
    if limit := os.environ.get("ONEDNN_MAX_CPU_ISA"):
        kind += f", oneDNN limited to {limit}"
    return info.get("model name", platform.processor()).strip(), kind


def commit():
    """The short hash of this repository's commit, with a + when files differ; "unknown" without git."""
    try:
        run = [["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "-uno"]]
        head, changed = (subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in run)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.strip() + "+" * bool(changed)


def machine():
    """One line: CPU, threads, torch and commit."""
    import torch

    name, kind = cpu()
    threads = torch.get_num_threads()
    return f"{name} ({kind}), {threads} threads, torch {torch.__version__}, commit {commit()}"
