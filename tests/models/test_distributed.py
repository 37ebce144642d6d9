"""models/distributed.py and `torchrun train.py`: several processes take the step that one takes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

import train
from models import distributed, losses, runs
from models.predictor import Predictor
from tests.conftest import ROOT

N, M = 7, 15  # images and captions of a batch: neither is a multiple of the ranks
RECIPE = "--loss info_nce --dropout 0.5 --members 2 --lr 0.003 --text-head residual --views 1".split()


def train_a_little(loss_name, process):
    """The parameters after five steps of a predictor with two members, dropout and a text head, whatever the
    number of processes."""
    torch.manual_seed(0)
    predictor = Predictor(12, 6, 32, 0.5, 0.25, members=2, text_head="residual").train()
    image, text, image_of = torch.randn(N, 12), F.normalize(torch.randn(M, 6), dim=-1), torch.arange(M) % N
    scale = torch.tensor(1.0, requires_grad=True)
    optimiser = torch.optim.SGD([*predictor.parameters(), scale], lr=0.1)
    each, loss_of = distributed.parallel(predictor), getattr(losses, loss_name)
    for _ in range(5):
        mine = process.share(N)
        rows = distributed.gather(each(image[mine], rows=(mine.start, N)), N)
        target = predictor.project_text(text)
        loss = sum(loss_of(member, target, image_of, scale.exp(), 0.0) for member in rows.chunk(2, 1)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in [*predictor.parameters(), scale]])


def worker(rank, world, port, folder):
    numbers = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ |= {name: str(value) for name, value in numbers.items()}
    torch.set_num_threads(1)
    process = distributed.start("cpu")
    assert process == (rank, world, "cpu")
    found = {name: train_a_little(name, process) for name in losses.LOSSES}
    flags = [distributed.any_rank(rank == 1, "cpu"), distributed.any_rank(False, "cpu")]
    distributed.wait()
    torch.save(found | dict(any=torch.tensor(flags)), f"{folder}/{rank}.pt")
    distributed.stop()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_and_three_processes_give_the_parameters_of_one(tmp_path):
    alone = {name: train_a_little(name, distributed.Process(0, 1, "cpu")) for name in losses.LOSSES}
    for world in (2, 3):
        mp.spawn(worker, (world, free_port(), str(tmp_path)), nprocs=world)
        for rank in range(world):
            found = torch.load(tmp_path / f"{rank}.pt")
            for name, parameters in alone.items():
                assert (found[name] - parameters).abs().max() < 1e-6, (world, rank, name)
            assert found["any"].tolist() == [True, False]
    assert (alone["info_nce"] - alone["sigmoid"]).abs().max() > 1e-3


@pytest.mark.parametrize(("n", "world"), [(0, 2), (1, 3), (10, 3), (12, 4)])
def test_shares_are_everything_once_in_order(n, world):
    shares = [distributed.Process(rank, world, "cpu").share(n) for rank in range(world)]
    assert [i for share in shares for i in range(n)[share]] == list(range(n))


def test_without_torchrun_nothing_is_gathered():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(rows, 3) is rows and distributed.start("cpu") == (0, 1, "cpu")
    assert not distributed.any_rank(False, "cpu")
    distributed.wait()
    distributed.stop()


def torchrun(processes, flags, node=()):
    """A started `torchrun ... -- train.py FLAGS`."""
    node = node or [f"--master_port={free_port()}"]
    # Without --, torchrun takes --run for its own --run-path.
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        *node,
        "--",
        "train.py",
    ]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    environment = os.environ | dict(OMP_NUM_THREADS="1")
    return subprocess.Popen([*start, *flags], cwd=ROOT, text=True, env=environment, **pipes)


@pytest.fixture
def flags(tiny_run, tmp_path):
    """flags(run name, *more): train.py on the tiny archive."""

    def flags(run, *more):
        small = "--hidden 16 --batch-size 5 --device cpu".split()
        return tiny_run.flags(tmp_path / run, *small, *map(str, more))

    return flags


def parameters(run):
    return torch.cat(
        [value.flatten() for name, value in runs.load_last(run)[0].items() if name.startswith("predictor.")]
    )


def difference(tmp_path):
    return (parameters(tmp_path / "one") - parameters(tmp_path / "two")).abs().max()


def test_torchrun_trains_what_one_process_trains_and_resumes_as_one(flags, tmp_path):
    assert train.main(flags("one", *RECIPE, "--epochs", 4)) == 0
    job = torchrun(2, flags("two", *RECIPE, "--epochs", 3))
    out, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert out.count("the model is that of epoch") == 1 and out.count("efficientnet-lite0") == 1
    assert train.main(flags("two", "--epochs", 4, "--resume")) == 0
    assert difference(tmp_path) < 1e-4  # AdamW divides noise by noise
    log = [json.loads(line) for line in (tmp_path / "two" / runs.LOG).read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_nodes_train_what_one_process_trains(flags, tmp_path):
    """As in docs/scale.md, with two torchrun agents on one machine."""
    recipe = ["--loss", "sigmoid", "--lr", "0.01", "--epochs", 2]
    assert train.main(flags("one", *recipe)) == 0
    meet = ["--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=1"]
    jobs = [torchrun(1, flags("two", *recipe), [*meet, f"--node_rank={node}"]) for node in (0, 1)]
    outs, errors = zip(*(job.communicate(timeout=120) for job in jobs))
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert "".join(outs).count("the model is that of epoch") == 1 and "2 processes" in "".join(outs)
    assert difference(tmp_path) < 1e-4


@pytest.mark.slow
def test_rank_that_dies_stops_the_job_and_resume_continues(flags, tmp_path):
    job = torchrun(2, flags("run", "--epochs", 100_000))
    while not (tmp_path / "run" / runs.LAST).exists():
        time.sleep(0.1)
        assert job.poll() is None, job.stderr.read()
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    began = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=90)
    assert job.returncode != 0 and time.monotonic() - began < 60
    assert "SIGKILL" in errors or "Signal 9" in errors
    epoch = runs.load_last(tmp_path / "run")[1]["epoch"]
    assert train.main(flags("run", "--epochs", epoch + 1, "--resume")) == 0


@pytest.mark.parametrize("flag", ["--bf16", pytest.param("--compile", marks=pytest.mark.slow)])
def test_flags_for_gpus_train_on_a_cpu_too(flags, tmp_path, flag):
    assert train.main(flags("run", *RECIPE, "--epochs", 2, flag)) == 0
    assert torch.isfinite(parameters(tmp_path / "run")).all()
