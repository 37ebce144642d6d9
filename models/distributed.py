"""Several processes that train one predictor, as torchrun starts them: each predicts its share of a batch, the loss sees all of it.

    rank, world, device = start("cpu")               # (0, 1, "cpu") without torchrun
    each = parallel(predictor)                       # averages the gradients of all ranks
    rows = each(image[mine], (mine.start, n))        # list of (B, D), mine = share(n, rank, world)
    everyone = gather(torch.cat(rows, 1), n)         # (n, D): own rows with their gradient, the others' without

Every rank computes the same loss, so its gradient reaches the parameters once through each row, on the rank that predicted it:
N processes take the step that one takes.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


def start(device):
    """(rank, world, device). Joins the other processes when torchrun started this one: NCCL on CUDA, where each takes the GPU of its
    local rank, Gloo elsewhere."""
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1, device
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(
        backend, timeout=timedelta(days=1)
    )  # ranks may end their share of the encoding hours apart
    return dist.get_rank(), dist.get_world_size(), device


def stop():
    """Leave the other processes. Not after an error: torchrun ends the others then."""
    if dist.is_initialized():
        dist.barrier()  # no rank leaves while another is still in a collective
        dist.destroy_process_group()


def share(n, rank, world):
    """The slice of n things that is this rank's; all slices together are range(n), in order."""
    return slice(n * rank // world, n * (rank + 1) // world)


class Each(nn.Module):
    """Predictor.each as a forward, which DistributedDataParallel hooks into."""

    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, image_features, rows=None):
        return self.predictor.each(image_features, rows)


def parallel(predictor):
    """`predictor.each` whose backward pass averages the gradients of all ranks."""
    each = Each(predictor)
    return nn.parallel.DistributedDataParallel(each) if dist.is_initialized() else each


def gather(rows, n):
    """(n, D): the rows (B, D) of every rank in the order of `share`. The gradient of its own rows is scaled by the number of
    ranks, since `parallel` divides by it."""
    if not dist.is_initialized():
        return rows
    rank, world = dist.get_rank(), dist.get_world_size()
    padded = rows.new_zeros(-(-n // world), rows.shape[1])
    padded[: len(rows)] = rows.detach()
    everyone = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(everyone, padded)
    everyone = [found[: len(range(n)[share(n, r, world)])] for r, found in enumerate(everyone)]
    if rows.requires_grad:
        rows.register_hook(lambda grad: grad * world)
    everyone[rank] = rows
    return torch.cat(everyone)


def wait():
    """Until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def any_rank(value, device):
    """Whether `value` is true on some rank."""
    if not dist.is_initialized():
        return bool(value)
    found = torch.tensor(float(bool(value)), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())
