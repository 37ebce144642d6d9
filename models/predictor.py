"""The only part that is trained: an image's features in, the embedding of its caption out."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models import onednn


class Predictor(nn.Module):
    """(B, vision_dim) float -> (B, text_dim) unit rows: Linear -> GELU -> Linear -> L2 norm.

    The defaults (CLIP ViT-B/16 to MiniLM, hidden 1024) have 918,912 parameters. `mean` and `std` are buffers
    that standardise the input, zeros and ones until `standardise` is called. In training, `input_dropout` is
    the share of standardised inputs and `dropout` the share of hidden units set to zero. The network is
    replicated `members` times, each with its own weights and its own loss, and the prediction is their mean
    (docs/EXPERIMENTS.md: worth a point).

    >>> Predictor()(torch.randn(2, 512)).norm(dim=-1)
    tensor([1., 1.], grad_fn=...)"""

    def __init__(
        self, vision_dim=512, text_dim=384, hidden_dim=1024, dropout=0.0, input_dropout=0.0, members=1
    ):
        super().__init__()
        self.config = dict(
            vision_dim=vision_dim,
            text_dim=text_dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            input_dropout=input_dropout,
            members=members,
        )
        self.register_buffer("mean", torch.zeros(vision_dim))
        self.register_buffer("std", torch.ones(vision_dim))
        sizes = (vision_dim, hidden_dim, text_dim, dropout, input_dropout)
        self.members = nn.ModuleList(Member(*sizes) for _ in range(members))

    @torch.no_grad()
    def standardise(self, image):
        """Take mean and standard deviation of the inputs from training features (N, vision_dim). A feature
        that never changes keeps deviation 1."""
        std = image.std(0, correction=0)
        self.mean.copy_(image.mean(0))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def each(self, image, places=None, question=None, rows=None):
        """The prediction of each member, a list of (B, text_dim) unit rows. Training takes the loss of each.

        `rows` is (start, total) when `image` holds rows start, start + 1, ... of a batch of `total` rows that
        several processes share (models/distributed.py). ValueError when there is a question."""
        if question is not None:
            what = "this predictor answers one question only, what an image shows"
            raise ValueError(f"{what}; it takes no question")
        x = (image - self.mean) / self.std
        return [F.normalize(member(x, rows), dim=-1) for member in self.members]

    def forward(self, image, places=None, question=None):
        """(B, vision_dim) float -> (B, text_dim) unit rows, the mean of the members. `places` is ignored;
        ValueError when there is a question."""
        return F.normalize(sum(self.each(image, places, question)), dim=-1)  # (B, text_dim)


class Member(nn.Module):
    """Linear -> GELU -> Linear, with dropout before each layer: (B, vision_dim) -> (B, text_dim)."""

    def __init__(self, vision_dim, hidden_dim, text_dim, dropout, input_dropout):
        super().__init__()
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.up = Linear(vision_dim, hidden_dim)
        self.down = Linear(hidden_dim, text_dim)

    def forward(self, x, rows=None):
        x = dropout(x, self.input_dropout, self.training, rows)
        x = F.gelu(self.up(x))  # (B, hidden_dim)
        x = dropout(x, self.dropout, self.training, rows)
        return self.down(x)


# torch's dropout and linear layer, faster on a CPU: together 1.9 times the training steps per second
# (docs/EXPERIMENTS.md).


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
