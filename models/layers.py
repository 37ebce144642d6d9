"""torch's dropout and linear layer, faster on a CPU: together 1.9 times the training steps per second
(docs/EXPERIMENTS.md)."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models import onednn


def dropout(x, p, training, rows=None):
    """F.dropout of x (B, D). On a CPU it draws one random byte per element, which is faster than torch's one
    number per element on one core; `p` is rounded to a multiple of 1/256 there.

    With `rows` (start, total), x holds rows start, start + 1, ... of a batch of `total`. The mask of the
    whole batch is then drawn, so all processes drop what one process would."""
    below = round(256 * p)  # an element is dropped where its byte is below this
    if x.device.type != "cpu" or not training or below in (0, 256) or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    width = x.shape[-1]
    start, total = rows or (0, x.numel() // width)
    words = torch.empty(math.ceil(total * width / 8), dtype=torch.int64)  # 8 random bytes each
    random_bytes = words.random_(-(2**63), None).view(torch.uint8)
    own = random_bytes[start * width :][: x.numel()].view(x.shape)
    kept = own >= below
    return x * kept * (256 / (256 - below))


class Linear(nn.Linear):
    """nn.Linear for (B, D), through oneDNN on a CPU, whose float32 product is twice as fast as MKL's on
    AMD."""

    def forward(self, x):
        if not onednn.usable(x.detach()) or x.ndim != 2 or not len(x) or x.dtype != torch.float32:
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return onednn.linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x = onednn.linear(grad, weight.T) if ctx.needs_input_grad[0] else None
        to_weight = onednn.linear(grad.T, x.T) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, grad.sum(0)
