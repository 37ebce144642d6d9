"""Rows of the kernels of models/onednn.py, against torch's own layers at the shapes of the towers."""

from functools import partial

from .timing import Row, side_by_side

# (model, rows, input width, output width, activation); CLIP's rows are 8 images of 197 tokens.
LINEAR = (
    ("CLIP", 8 * 197, 768, 2304, "none"),
    ("CLIP", 8 * 197, 768, 3072, "none"),
    ("MiniLM", 512, 384, 1152, "none"),
    ("MiniLM", 512, 384, 1536, "gelu"),
    ("predictor", 256, 1960, 2048, "none"),
    ("predictor", 256, 2048, 384, "none"),
)
LINEAR_ADD = (("CLIP", 8 * 197, 768, 768), ("CLIP", 8 * 197, 3072, 768), ("MiniLM", 512, 1536, 384))
# (channels in, channels out, kernel, stride, groups, side in pixels, ReLU6) of EfficientNet-Lite0, in
# batches of 4 images
CONV2D = (
    (3, 32, 3, 2, 1, 224, True),
    (32, 32, 3, 1, 32, 112, True),
    (16, 96, 1, 1, 1, 112, True),
    (96, 96, 3, 2, 96, 112, True),
    (144, 24, 1, 1, 1, 56, False),
    (672, 672, 5, 1, 672, 14, True),
    (320, 1280, 1, 1, 1, 7, True),
)


def kernels(args):
    """Milliseconds of each kernel in float32, and in bfloat16 where the CPU multiplies it."""
    import torch

    from models import onednn

    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for name, rows in (
            ("linear", linear),
            ("linear_add", linear_add),
            ("pack", pack),
            ("conv2d", conv2d),
        ):
            if not onednn.works(name, dtype):
                yield Row(f"{name}, {kind}, ms", None, "not supported on this CPU")
            else:
                yield from rows(args, dtype, kind)


def compare(args, what, ours, peers):
    """A Row for each peer, a dict from its name to a function that does the same as `ours`."""
    import torch

    with torch.no_grad():
        seconds, *others = side_by_side([ours, *peers.values()], args.repeats)
    for peer, other in zip(peers, others):
        yield Row(what, 1e3 * seconds, f"{peer}, {1e3 * other:.3g}", other / seconds)


def tensors(dtype, *shapes):
    """Random tensors of these shapes."""
    import torch

    return [torch.randn(shape).to(dtype) for shape in shapes]


def plain_linear(x, weight, bias, after="none"):
    """Torch's own layer and activation."""
    import torch.nn.functional as F

    from models import onednn

    return onednn.ACTIVATIONS[after](F.linear(x, weight, bias))


def plain_linear_add(x, weight, bias, other):
    """Torch's own layer and a sum."""
    import torch.nn.functional as F

    return F.linear(x, weight, bias) + other


def plain_conv2d(x, weight, bias, stride, padding, groups, relu6):
    """Torch's own layer and ReLU6."""
    import torch.nn.functional as F

    x = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    return F.relu6(x) if relu6 else x


def linear(args, dtype, kind):
    """onednn.linear against F.linear and the activation."""
    from models import onednn

    for model, n, a, b, after in LINEAR:
        inputs = [*tensors(dtype, (n, a), (b, a), (b,)), after]
        what = f"linear{f' + {after}' * (after != 'none')}, {model}, {n} x {a} -> {b}, {kind}, ms"
        peers = {"F.linear": partial(plain_linear, *inputs)}
        yield from compare(args, what, partial(onednn.linear, *inputs), peers)


def linear_add(args, dtype, kind):
    """onednn.linear_add against F.linear and a sum."""
    from models import onednn

    for model, n, a, b in LINEAR_ADD:
        inputs = tensors(dtype, (n, a), (b, a), (b,), (n, b))
        what = f"linear_add, {model}, {n} x {a} -> {b}, {kind}, ms"
        peers = {"F.linear and a sum": partial(plain_linear_add, *inputs)}
        yield from compare(args, what, partial(onednn.linear_add, *inputs), peers)


def pack(args, dtype, kind):
    """onednn.linear with a packed weight against F.linear, and against the same weight not packed."""
    from models import onednn

    for model, n, a, b, after in LINEAR:
        x, weight, bias = tensors(dtype, (n, a), (b, a), (b,))
        what = f"linear, weight packed, {model}, {n} x {a} -> {b}, {kind}, ms"
        packed = partial(onednn.linear, x, onednn.pack(weight, n), bias, after)
        peers = {
            "F.linear": partial(plain_linear, x, weight, bias, after),
            "not packed": partial(onednn.linear, x, weight, bias, after),
        }
        yield from compare(args, what, packed, peers)


def conv2d(args, dtype, kind):
    """onednn.conv2d against F.conv2d and F.relu6, all in channels_last."""
    import torch

    from models import onednn

    for inside, outside, width, stride, groups, side, relu6 in CONV2D:
        shapes = (4, inside, side, side), (outside, inside // groups, width, width), (outside,)
        x, weight, bias = tensors(dtype, *shapes)
        x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
        inputs = (x, weight, bias, stride, width // 2, groups, relu6)
        layer = f"{width} x {width}{' depthwise' * (groups > 1)}"
        what = f"conv2d {layer}, {side} px, {inside} -> {outside}, {kind}, ms"
        peers = {"F.conv2d": partial(plain_conv2d, *inputs)}
        yield from compare(args, what, partial(onednn.conv2d, *inputs), peers)
