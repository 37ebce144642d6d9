"""The only part that is trained: an image's embedding in, the embedding of its caption out."""

import torch
import torch.nn.functional as F
from torch import nn


class Predictor(nn.Module):
    """(B, vision_dim) float -> (B, text_dim) unit rows: Linear -> GELU -> Linear -> L2 norm.

    The defaults (CLIP ViT-B/16 to MiniLM, hidden 1024) have 918,912 parameters. `mean` and `std` are buffers that
    standardise the input, zeros and ones until `standardise` is called. In training, `input_dropout` is the share of
    standardised inputs and `dropout` the share of hidden units set to zero. With several `members` the network stands there
    as often, each with its own weights and its own loss, and the prediction is their mean (EXPERIMENTS.md: worth a point).

    >>> Predictor()(torch.randn(2, 512)).norm(dim=-1)
    tensor([1., 1.], grad_fn=...)
    """

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
        self.members = nn.ModuleList(
            nn.Sequential(
                Dropout(input_dropout),
                Linear(vision_dim, hidden_dim),
                nn.GELU(),
                Dropout(dropout),
                Linear(hidden_dim, text_dim),
            )
            for _ in range(members)
        )

    @torch.no_grad()
    def standardise(self, image_features):
        """Take mean and standard deviation of the inputs from training features (N, vision_dim). A feature that never
        changes keeps deviation 1."""
        std = image_features.std(0, correction=0)
        self.mean.copy_(image_features.mean(0))
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def each(self, image_features, rows=None):
        """What each member says, for the loss: a list of (B, text_dim) unit rows. `rows` (start, total): these are rows
        start, start + 1, ... of a batch of `total`, the rest of which other processes predict (models/ranks.py)."""
        for dropout in (layer for member in self.members for layer in member if isinstance(layer, Dropout)):
            dropout.rows = rows
        x = (image_features - self.mean) / self.std
        return [F.normalize(member(x), dim=-1) for member in self.members]

    def forward(self, image_features):
        return F.normalize(sum(self.each(image_features)), dim=-1)  # (B, text_dim)


# The same two layers as torch's, faster on a CPU: together 1.9 x the training steps a second (EXPERIMENTS.md).


class Dropout(nn.Dropout):
    """With a mask of random bytes, so `p` is rounded to a multiple of 1/256. torch draws one number an element, on one core.
    Where `rows` (start, total) is set, the mask is that part of the mask of `total` rows."""

    rows = None

    def forward(self, x):
        below = round(256 * self.p)
        if x.device.type != "cpu" or not self.training or below in (0, 256) or torch.compiler.is_compiling():
            return super().forward(x)
        start, total = self.rows or (0, x.numel() // x.shape[-1])
        width = x.shape[-1]
        words = torch.empty(-(-total * width // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[start * width :][: x.numel()].view(x.shape) >= below
        return x * kept * (256 / (256 - below))


class Linear(nn.Linear):
    """nn.Linear through oneDNN, whose float32 product is twice as fast as MKL's on AMD."""

    def forward(self, x):
        plain = (
            x.device.type != "cpu"
            or x.ndim != 2
            or not len(x)
            or x.dtype != torch.float32
            or not torch.backends.mkldnn.is_available()
        )
        if plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(x)
        return _Product.apply(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        to_x = _product(grad, weight.T) if ctx.needs_input_grad[0] else None
        to_weight = _product(grad.T, x.T) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, grad.sum(0)


def _product(x, weight, bias=None):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
