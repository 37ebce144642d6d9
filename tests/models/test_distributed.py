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

N, M = 7, 15  # images and captions of a batch: neither is a multiple of the number of processes
RECIPE = "--hidden 16 --batch-size 5 --lr 0.01 --epochs 3".split()


def train_a_little(loss_of, process):
    """The parameters after five steps of two members with dropout, whatever the number of processes."""
    torch.manual_seed(0)
    predictor = Predictor(12, 6, 32, dropout=0.5, input_dropout=0.25, members=2).train()
    image, text = torch.randn(N, 12), F.normalize(torch.randn(M, 6), dim=-1)
    image_of = torch.arange(M) % N
    scale = torch.tensor(1.0, requires_grad=True)
    optimiser = torch.optim.SGD([*predictor.parameters(), scale], lr=0.1)
    each, mine = distributed.parallel(predictor), process.share(N)
    for _ in range(5):
        rows = distributed.gather(each(image[mine], (mine.start, N)), N)
        loss = sum(loss_of(member, text, image_of, scale.exp(), 0.0) for member in rows.chunk(2, 1)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in [*predictor.parameters(), scale]])


def train_all(process):
    return {name: train_a_little(getattr(losses, name), process) for name in losses.LOSSES}


def worker(rank, ports, folder):
    """The parameters as each of two processes, then as each of three, into `folder`/WORLD-RANK.pt."""
    torch.set_num_threads(1)
    for world, port in ports.items():
        if rank >= world:
            continue
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
        process = distributed.start("cpu")
        assert process == (rank, world, "cpu")
        found = train_all(process)
        found["any"] = torch.tensor([distributed.any_rank(value, "cpu") for value in (rank == 1, False)])
        torch.save(found, f"{folder}/{world}-{rank}.pt")
        distributed.stop()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_and_three_processes_give_the_parameters_of_one(tmp_path):
    alone = train_all(distributed.Process(0, 1, "cpu"))
    mp.spawn(worker, ({2: free_port(), 3: free_port()}, str(tmp_path)), nprocs=3)
    for world in (2, 3):
        for rank in range(world):
            found = torch.load(tmp_path / f"{world}-{rank}.pt")
            assert found.pop("any").tolist() == [True, False]
            for name, parameters in alone.items():
                assert (found[name] - parameters).abs().max() < 1e-6, (world, rank, name)
    assert (alone["info_nce"] - alone["sigmoid"]).abs().max() > 1e-3


@pytest.mark.parametrize("n, world", [(0, 2), (1, 3), (10, 3), (12, 4)])
def test_shares_are_everything_once_in_order(n, world):
    shares = [distributed.Process(rank, world, "cpu").share(n) for rank in range(world)]
    assert [i for share in shares for i in range(n)[share]] == list(range(n))


def test_without_torchrun_nothing_is_gathered():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(rows, 3) is rows and distributed.start("cpu") == (0, 1, "cpu")
    assert not distributed.any_rank(False, "cpu") and distributed.any_rank([2], "cpu")
    distributed.wait()
    distributed.stop()


# torchrun train.py


@pytest.fixture(scope="module")
def one(tiny_run, tmp_path_factory):
    """The parameters that one process trains."""
    run = tmp_path_factory.mktemp("one") / "run"
    assert train.main(tiny_run.flags(run, *RECIPE, "--loss", "sigmoid")) == 0
    return parameters(run)


def parameters(run):
    tensors = runs.load_last(run)[0]
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if name.startswith("predictor.")])


def torchrun(processes, flags, *agent):
    agent = agent or (f"--master_port={free_port()}",)
    start = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", *agent]
    command = [sys.executable, *start, "--", "train.py", *flags]  # torchrun has flags that begin with --run
    one_thread = os.environ | dict(OMP_NUM_THREADS="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=ROOT, env=one_thread, **pipes)


def test_torchrun_trains_what_one_process_trains_and_one_resumes_it(tiny_run, one, tmp_path):
    """With new features: each image is encoded once, each line is printed once."""
    flags = tiny_run.flags(tmp_path / "run", *RECIPE, "--loss", "sigmoid", "--cache", str(tmp_path / "cache"))
    out, err = (job := torchrun(2, [*flags, "--epochs", "2"])).communicate(timeout=120)
    assert job.returncode == 0, err
    assert out.count("the model is that of epoch") == out.count("efficientnet-lite0") == 1
    assert "2 processes" in out
    assert train.main([*flags, "--resume"]) == 0
    assert (parameters(tmp_path / "run") - one).abs().max() < 1e-4  # AdamW divides noise by noise
    log = (tmp_path / "run" / runs.LOG).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1, 2, 3]


@pytest.mark.slow
def test_two_nodes_train_what_one_process_trains(tiny_run, one, tmp_path):
    """Two torchrun agents of one process each, where a rank is not the local rank."""
    meet = ["--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=1"]
    flags = tiny_run.flags(tmp_path / "run", *RECIPE, "--loss", "sigmoid")
    jobs = [torchrun(1, flags, *meet, f"--node_rank={node}") for node in (0, 1)]
    out, err = zip(*(job.communicate(timeout=120) for job in jobs))
    assert [job.returncode for job in jobs] == [0, 0], err
    assert "".join(out).count("the model is that of epoch") == 1
    assert (parameters(tmp_path / "run") - one).abs().max() < 1e-4


@pytest.mark.slow
def test_process_that_dies_ends_the_job_and_resume_continues(tiny_run, tmp_path):
    run = tmp_path / "run"
    job = torchrun(2, tiny_run.flags(run, *RECIPE, "--epochs", "100000"))
    while not (run / runs.LAST).exists():
        time.sleep(0.1)
        assert job.poll() is None, job.stderr.read()
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[1]), signal.SIGKILL)
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0 and ("SIGKILL" in err or "Signal 9" in err)
    epochs = runs.load_last(run)[1]["epoch"] + 1
    assert train.main(tiny_run.flags(run, *RECIPE, "--resume", "--epochs", str(epochs))) == 0


@pytest.mark.parametrize("flag", ["--bf16", pytest.param("--compile", marks=pytest.mark.slow)])
def test_flags_for_gpus_train_on_a_cpu_too(tiny_run, tmp_path, flag):
    more = ["--loss", "info_nce", "--dropout", "0.5", "--members", "2", "--epochs", "2", flag]
    assert train.main(tiny_run.flags(tmp_path / "run", *RECIPE, *more)) == 0
    assert torch.isfinite(parameters(tmp_path / "run")).all()
