"""models/ranks.py and `torchrun train.py`: several processes take the step that one takes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from models import distributed as ranks
from models import losses
from models import runs as checkpoint
from models.predictor import Predictor

ROOT = Path(__file__).parents[2]
N, M = 7, 15  # images and captions of a batch: neither is a multiple of the ranks


def train_a_little(loss_name):
    """The parameters after five steps of a predictor with two members and dropout, whatever the number of processes."""
    torch.manual_seed(0)
    predictor = Predictor(12, 6, 32, dropout=0.5, input_dropout=0.25, members=2).train()
    image, text = torch.randn(N, 12), F.normalize(torch.randn(M, 6), dim=-1)
    image_of = torch.arange(M) % N
    scale = torch.tensor(1.0, requires_grad=True)
    optimiser = torch.optim.SGD([*predictor.parameters(), scale], lr=0.1)
    each, rank, world = (
        ranks.parallel(predictor),
        int(os.environ.get("RANK", 0)),
        int(os.environ.get("WORLD_SIZE", 1)),
    )
    for _ in range(5):
        mine = ranks.share(N, rank, world)
        rows = ranks.gather(torch.cat(each(image[mine], (mine.start, N)), 1), N)
        loss = (
            sum(getattr(losses, loss_name)(p, text, image_of, scale.exp(), 0.0) for p in rows.chunk(2, 1)) / 2
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.cat([p.detach().flatten() for p in [*predictor.parameters(), scale]])


def worker(rank, world, port, folder):
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    assert ranks.start("cpu") == (rank, world, "cpu")
    found = {name: train_a_little(name) for name in losses.LOSSES}
    found["any"] = torch.tensor([ranks.any_rank(rank == 1, "cpu"), ranks.any_rank(False, "cpu")])
    ranks.wait()
    torch.save(found, f"{folder}/{rank}.pt")
    ranks.stop()


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_and_three_processes_give_the_parameters_of_one(tmp_path):
    """Catches negatives of the own rank alone, a gradient that is averaged twice, and masks that differ from rank to rank."""
    alone = {name: train_a_little(name) for name in losses.LOSSES}
    for world in (2, 3):
        mp.spawn(worker, (world, free_port(), str(tmp_path)), nprocs=world)
        for rank in range(world):
            found = torch.load(tmp_path / f"{rank}.pt")
            for name, parameters in alone.items():
                assert (found[name] - parameters).abs().max() < 1e-6, (world, rank, name)
            assert found["any"].tolist() == [True, False]
    assert (alone["info_nce"] - alone["sigmoid"]).abs().max() > 1e-3


@pytest.mark.parametrize("n, world", [(0, 2), (1, 3), (10, 3), (12, 4)])
def test_shares_are_everything_once_in_order(n, world):
    """Catches rows that no rank or two ranks predict."""
    assert [i for rank in range(world) for i in range(n)[ranks.share(n, rank, world)]] == list(range(n))


def test_without_torchrun_nothing_is_gathered():
    """Catches a single process that waits for others."""
    rows = torch.randn(3, 2, requires_grad=True)
    assert (
        ranks.gather(rows, 3) is rows
        and ranks.start("cpu") == (0, 1, "cpu")
        and not ranks.any_rank(False, "cpu")
    )
    ranks.wait(), ranks.stop()


# ------------------------------------------------------------------------------------------------------- torchrun train.py


def torchrun(processes, *flags, node=()):
    start = [
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        *(node or [f"--master_port={free_port()}"]),
    ]
    command = [
        sys.executable,
        *start,
        "--",
        "train.py",
        *flags,
    ]  # torchrun has a --run-path, and would take --run for it
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )


def flags(archive, run, *more):
    cache = archive.csv.parent / "cache.sqlite"
    return [
        "--csv",
        archive.csv,
        "--images",
        archive.images,
        "--cache",
        cache,
        "--run",
        run,
        "--quiet",
        "--vision",
        "efficientnet-lite0",
        "--hidden",
        16,
        "--batch-size",
        5,
        "--device",
        "cpu",
        "--val-fraction",
        0.3,
        *more,
    ]


def parameters(run, name="last.pt"):
    return torch.cat([value.flatten() for value in checkpoint.load(run / name)["predictor"].values()])


def test_torchrun_trains_what_one_process_trains_and_goes_on_as_one(archive, tmp_path):
    """Catches two logs, two checkpoints, an encoder that runs twice, and a checkpoint that only as many processes can resume."""
    import train

    recipe = ["--loss", "info_nce", "--dropout", 0.5, "--members", 2, "--lr", 0.01]
    assert train.main(list(map(str, flags(archive, tmp_path / "one", *recipe, "--epochs", 4)))) == 0
    job = torchrun(2, *flags(archive, tmp_path / "two", *recipe, "--epochs", 3))
    told, errors = job.communicate(timeout=120)
    assert job.returncode == 0, errors
    assert told.count("best.pt is epoch") == 1 and told.count("efficientnet-lite0") == 1
    assert train.main(list(map(str, flags(archive, tmp_path / "two", "--epochs", 4, "--resume")))) == 0
    assert (
        parameters(tmp_path / "one") - parameters(tmp_path / "two")
    ).abs().max() < 1e-4  # AdamW divides noise by noise
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2, 3, 4]


def test_two_nodes_train_what_one_process_trains(archive, tmp_path):
    """Catches the README's line for two nodes, here two torchrun agents that meet by themselves: a rank taken for its local rank would
    make both print and save, and both train the same share."""
    import train

    recipe = ["--loss", "sigmoid", "--lr", 0.01, "--epochs", 2]
    assert train.main(list(map(str, flags(archive, tmp_path / "one", *recipe)))) == 0
    meet = ["--nnodes=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=1"]
    jobs = [
        torchrun(1, *flags(archive, tmp_path / "two", *recipe), node=[*meet, f"--node_rank={node}"])
        for node in (0, 1)
    ]
    told, errors = zip(*(job.communicate(timeout=120) for job in jobs))
    assert [job.returncode for job in jobs] == [0, 0], errors
    assert "".join(told).count("best.pt is epoch") == 1 and "2 processes" in "".join(told)
    assert (parameters(tmp_path / "one") - parameters(tmp_path / "two")).abs().max() < 1e-4


def test_rank_that_dies_takes_the_job_down_and_resume_goes_on(archive, tmp_path):
    """Catches a job that waits for a dead rank for half an hour, and a run that can't be taken up again."""
    import train

    run = tmp_path / "run"
    job = torchrun(2, *flags(archive, run, "--epochs", 100_000))
    while not (run / "last.pt").exists():
        time.sleep(0.1)
        assert job.poll() is None, job.stderr.read()
    children = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    began = time.monotonic()
    os.kill(int(children[1]), signal.SIGKILL)
    _, errors = job.communicate(timeout=90)
    assert job.returncode != 0 and time.monotonic() - began < 60
    assert "SIGKILL" in errors or "Signal 9" in errors
    epochs = checkpoint.load(run / "last.pt")["epoch"]
    assert train.main(list(map(str, flags(archive, run, "--epochs", epochs + 1, "--resume")))) == 0


@pytest.mark.parametrize("flag", ["--bf16", pytest.param("--compile", marks=pytest.mark.slow)])
def test_flags_for_gpus_train_on_a_cpu_too(archive, tmp_path, flag):
    """Catches a custom layer that neither autocast nor the compiler gets through."""
    import train

    recipe = ["--loss", "info_nce", "--dropout", 0.5, "--members", 2, "--lr", 0.01, "--epochs", 2]
    assert train.main(list(map(str, flags(archive, tmp_path / "run", *recipe, flag)))) == 0
    assert torch.isfinite(parameters(tmp_path / "run")).all()
