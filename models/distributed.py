"""Devices, and several processes that train one predictor as torchrun starts them.

    process = start("auto")                          # Process(rank=0, world=1, device="cpu") without torchrun
    each = parallel(predictor)                       # averages the gradients of all ranks
    rows = each(image[mine], rows=(mine.start, n))   # mine = process.share(n)
    everyone = gather(rows, n)                       # (n, D): own rows with gradient, the others' without

Each rank predicts its share of a batch, and every rank computes the loss of the whole batch. A gradient
therefore reaches the parameters once through each row, on the rank that predicted it: N processes take the
step that one takes."""

import os
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn


class Process(NamedTuple):
    rank: int
    world: int  # number of processes
    device: str

    def share(self, n):
        """The slice of n things that is this rank's. All slices together are range(n), in order."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)


def choose_device(name="auto"):
    """The name of a torch device: for "auto" cuda where there is one, else mps, else cpu; any other name as
    it is. ValueError for a device that is not usable here. CUDA and MPS were never there to run this on."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); take auto or cpu"
        ) from None
    return name


def start(device="auto"):
    """The Process this is. Joins the others when torchrun started this one: NCCL on CUDA, where each takes
    the GPU of its local rank, Gloo elsewhere."""
    device = choose_device(device)
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Process(0, 1, device)
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    else:
        limit_threads()
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=1))  # ranks may finish encoding hours apart
    return Process(dist.get_rank(), dist.get_world_size(), device)


def limit_threads():
    """Share the cores among the processes on this machine, unless OMP_NUM_THREADS says otherwise. Two
    processes of two threads each on two cores slow each other down ten times: OpenMP threads spin while they
    wait."""
    if "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local))


def stop():
    """Leave the other processes. Not after an error: torchrun then ends the others."""
    if dist.is_initialized():
        dist.barrier()  # no rank leaves while another is still in a collective
        dist.destroy_process_group()


class Each(nn.Module):
    """Predictor.each as a forward, which DistributedDataParallel hooks into."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, *inputs, **named):
        return torch.cat(self.predictor.each(*inputs, **named), dim=1)  # (B, members * Dt)


def parallel(predictor):
    """A module that gives `predictor.each(...)` side by side, (B, members * Dt), and whose backward
    pass averages the gradients of all ranks."""
    each = Each(predictor)
    return nn.parallel.DistributedDataParallel(each) if dist.is_initialized() else each


def gather(rows, n):
    """(n, D): the rows (B, D) of every rank in the order of `Process.share`. The gradient of its own rows is
    scaled by the number of ranks, since `parallel` divides by it."""
    if not dist.is_initialized():
        return rows
    rank = dist.get_rank()
    world = dist.get_world_size()
    shares = [Process(number, world, str(rows.device)).share(n) for number in range(world)]
    sizes = [share.stop - share.start for share in shares]
    padded = rows.new_zeros(max(sizes), rows.shape[1])  # all_gather needs equal shapes
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    everyone = [part[:size] for part, size in zip(gathered, sizes)]
    if rows.requires_grad:
        rows.register_hook(lambda grad: grad * world)
    everyone[rank] = rows
    return torch.cat(everyone)


def wait():
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def any_rank(value, device):
    """Whether `value` is true on some rank."""
    if not dist.is_initialized():
        return bool(value)
    found = torch.tensor(float(bool(value)), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())
