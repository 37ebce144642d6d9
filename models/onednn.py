"""Fast layers for CPUs, from the private oneDNN operators of torch that torch.compile emits. This is the only
file that touches them.

    weight = pack(weight, rows=4096)              # once: in the order the kernels read it
    y = linear(x, weight, bias, after="gelu")     # (..., in) -> (..., out), activation fused in
    y = linear_add(x, weight, bias, residual)
    y = conv2d(x, weight, bias, stride=2, relu6=True)

Each operator is probed once per dtype against torch's public layer. Where it is missing, changed or wrong,
the public layer runs instead, which is said once through `logging`. docs/speed.md has what each kernel
gains, on AVX-512 and on AVX2."""

import logging
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

log = logging.getLogger(__name__)
ACTIVATIONS = {"none": lambda x: x, "gelu": F.gelu, "swish": F.silu}


def usable(x, *weights):
    """Whether a layer of these tensors can go through oneDNN at all: on a CPU, with a torch that was built
    with it, without a gradient (the operators have none), outside autocast and torch.compile, which choose
    kernels themselves."""
    return (
        x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def linear(x, weight, bias=None, after="none"):
    """F.linear, then "none", "gelu" (the exact one) or "swish". x (..., in), weight (out, in) as it is or
    from `pack`."""
    if usable(x, weight, bias) and works("linear", x.dtype):
        return _linear(x, weight, bias, after)
    return ACTIVATIONS[after](F.linear(x, _unpacked(weight), bias))


def linear_add(x, weight, bias, other):
    """F.linear(x, weight, bias) + other, with `other` (..., out)."""
    if usable(x, weight, bias, other) and works("linear_add", x.dtype):
        return _linear_add(x, weight, bias, other)
    return F.linear(x, _unpacked(weight), bias) + other


def pack(weight, rows):
    """`weight` (out, in) in the order the kernels of `linear` and `linear_add` read it fastest for about
    `rows` rows of input. What comes back is for these two functions alone: it cannot be saved or copied.
    Where an operator is missing it is `weight` itself."""
    if usable(weight) and all(works(name, weight.dtype) for name in ("linear", "linear_add", "pack")):
        return _pack(weight, rows)
    return weight


def _unpacked(weight):
    return weight.to_dense() if weight.is_mkldnn else weight


class Linear(nn.Module):
    """nn.Linear with given weights. With `rows`, they are packed for about that many rows of input where that
    is possible."""

    def __init__(self, weight, bias, rows=0, dtype=torch.float32):
        super().__init__()
        weight = weight.detach().to(dtype)
        packed = pack(weight, rows) if rows else weight
        # A packed tensor has no storage that a parameter could be saved or copied from.
        self.weight = packed if packed.is_mkldnn else nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)

    def forward(self, x, after="none"):
        """(..., in) -> (..., out), then the activation `after`."""
        return linear(x, self.weight, self.bias, after)

    def add(self, x, other):
        """The same plus `other` (..., out)."""
        return linear_add(x, self.weight, self.bias, other)


def conv2d(x, weight, bias, stride=1, padding=0, groups=1, relu6=False):
    """F.conv2d, then ReLU6 where asked for. x (B, C, H, W), weight (C', C / groups, k, k); channels_last is
    fastest."""
    if usable(x, weight, bias) and works("conv2d", x.dtype):
        return _conv2d(x, weight, bias, stride, padding, groups, relu6)
    x = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    return F.relu6(x) if relu6 else x


@cache
def works(name, dtype=torch.float32):
    """Whether an operator is there and agrees with the public layer on a small input of this dtype. Probed
    once; a failure is logged."""
    try:
        with torch.no_grad():
            found, expected = PROBES[name](dtype)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        agrees = torch.allclose(found.float(), expected.float(), tolerance, tolerance)
        wrong = None if agrees else "gives other numbers"
    except (AttributeError, RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        wrong = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if wrong:
        instead = "torch's own layer is used, which is slower"
        log.warning("oneDNN's %s in %s is not usable here (%s); %s", name, dtype, wrong, instead)
    return wrong is None


def _linear(x, weight, bias, after):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "none" if after == "gelu" else "")


def _linear_add(x, weight, bias, other):
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, bias, "add")


def _pack(weight, rows):
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def _conv2d(x, weight, bias, stride, padding, groups, relu6):
    activation = ("hardtanh", [0.0, 6.0]) if relu6 else ("none", [])
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, [padding] * 2, [stride] * 2, [1, 1], groups, *activation, ""
    )


def _inputs(dtype, *shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def _probe_linear(dtype):
    x, weight, bias = _inputs(dtype, (3, 8), (4, 8), (4,))
    found = [_linear(x, weight, None, "none")]
    expected = [F.linear(x, weight)]
    for after, activation in ACTIVATIONS.items():
        found.append(_linear(x, weight, bias, after))
        expected.append(activation(F.linear(x, weight, bias)))
    return torch.cat(found), torch.cat(expected)


def _probe_linear_add(dtype):
    x, weight, bias, other = _inputs(dtype, (3, 8), (4, 8), (4,), (3, 4))
    return _linear_add(x, weight, bias, other), F.linear(x, weight, bias) + other


def _probe_pack(dtype):
    x, weight, bias = _inputs(dtype, (3, 8), (4, 8), (4,))
    return _linear(x, _pack(weight, 3), bias, "none"), F.linear(x, weight, bias)


def _probe_conv2d(dtype):
    x, weight, bias = _inputs(dtype, (2, 4, 6, 6), (4, 1, 3, 3), (4,))
    x, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (3 * x, weight))
    found = [_conv2d(x, weight, bias, 2, 1, 4, relu6) for relu6 in (True, False)]
    plain = F.conv2d(x, weight, bias, 2, 1, groups=4)
    return torch.cat(found), torch.cat([F.relu6(plain), plain])


PROBES = {
    "linear": _probe_linear,
    "linear_add": _probe_linear_add,
    "pack": _probe_pack,
    "conv2d": _probe_conv2d,
}
