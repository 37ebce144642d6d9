"""The same towers, faster on a CPU: norms folded into the weights, oneDNN's fused kernels where no gradient is asked for."""

import torch
import torch.nn.functional as F
from torch import nn

NORM = ("weight", "bias", "running_mean", "running_var")
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of EfficientNet's seven stages: the one thing its weights don't tell


class FoldedLite(nn.Module):
    """EfficientNet-Lite for inference, from the published state dict: batch norm folded into the convolution before it. (B, 3, H, W) ->
    (B, dim), mean-pooled.

    On a CPU each convolution with its ReLU6 is one oneDNN call (the one torch.compile emits, without a compiler), and four images
    run at a time, so that activations stay in the cache (EXPERIMENTS.md).
    `stages` also pools the outputs of the last three stages: what the head throws away tells actions and places apart.
    """

    def __init__(self, weights, stages=False):
        super().__init__()
        self.pooled_stages = 3 if stages else 0
        self.stem, self.stages, width = Conv(weights, "_conv_stem", "_bn0", 2), nn.ModuleList(), None
        for n in range(sum(key.endswith("._depthwise_conv.weight") for key in weights)):
            last, width = width, len(weights[f"_blocks.{n}._project_conv.weight"])
            if width != last:  # a stage begins
                self.stages.append(nn.ModuleList())
            stride = STRIDES[len(self.stages) - 1] if width != last else 1
            self.stages[-1].append(Block(weights, f"_blocks.{n}.", stride, has_skip=width == last))
        self.head = Conv(weights, "_conv_head", "_bn1")

    def forward(self, images):
        at_once = 4 if images.device.type == "cpu" else len(images)
        return torch.cat([self.pooled(x) for x in images.split(max(1, at_once))])

    def pooled(self, x):
        """(B, 3, H, W) -> (B, dim): the head's map, then those of the last stages, each pooled and of norm 1."""
        maps = self.feature_maps(x)
        return torch.cat(
            [
                F.normalize(m.mean((2, 3)), dim=-1)
                for m in [maps[-1], *maps[len(maps) - 1 - self.pooled_stages : -1]]
            ],
            dim=1,
        )

    def feature_maps(self, x):
        """(B, 3, H, W) -> the output of each stage and of the head, (B, 1280, H/32, W/32), last."""
        x, maps = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return [*maps, self.head(x)]


class Block(nn.Module):
    """Expand, convolve each channel, project; plus the input where the width stays."""

    def __init__(self, weights, at, stride, has_skip):
        super().__init__()
        expand = (
            [Conv(weights, f"{at}_expand_conv", f"{at}_bn0")] if f"{at}_expand_conv.weight" in weights else []
        )  # not in the first
        self.convs = nn.Sequential(
            *expand,
            Conv(weights, f"{at}_depthwise_conv", f"{at}_bn1", stride),
            Conv(weights, f"{at}_project_conv", f"{at}_bn2", relu6=False),
        )
        self.has_skip = has_skip

    def forward(self, x):
        return self.convs(x) + x if self.has_skip else self.convs(x)


class Conv(nn.Module):
    """A convolution with its batch norm folded in, then ReLU6 but for a projection."""

    def __init__(self, weights, conv, norm, stride=1, relu6=True):
        super().__init__()
        weight, (scale, shift, mean, var) = weights[f"{conv}.weight"], (weights[f"{norm}.{k}"] for k in NORM)
        weight, bias = nn.utils.fusion.fuse_conv_bn_weights(weight, None, mean, var, 1e-3, scale, shift)
        self.weight = nn.Parameter(weight.detach().contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(bias.detach())
        self.stride, self.groups, self.kernel, self.relu6 = (
            stride,
            len(weight) if weight.shape[1] == 1 else 1,
            weight.shape[2],
            relu6,
        )

    def forward(self, x):
        """(B, C, H, W) -> (B, C', H / stride, W / stride), rounded up."""
        padding = (self.kernel // 2, self.kernel // 2)
        if self.stride > 1:  # TensorFlow's padding: the odd pixel goes right and below
            extra = [
                max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0)
                for n in (x.shape[3], x.shape[2])
            ]
            x, padding = F.pad(x, [side for n in extra for side in (n // 2, n - n // 2)]), (0, 0)
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available() and not x.requires_grad:
            activation = ("hardtanh", [0.0, 6.0]) if self.relu6 else ("none", [])
            return torch.ops.mkldnn._convolution_pointwise(
                x,
                self.weight,
                self.bias,
                list(padding),
                [self.stride] * 2,
                [1, 1],
                self.groups,
                *activation,
                "",
            )
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x) if self.relu6 else x


class FoldedViT:
    """CLIP's vision transformer with QuickGELU. `read(prefix)` gives the tensors of its image tower that start so, without the prefix, and
    they are taken over, product by product: mapped weights are never in memory twice. Called with (B, 3, H, W) it gives (B, dim), both of
    `dtype` (float32 or bfloat16), eight images at a time: their activations stay in the caches.
    ValueError when the tensors are of another network than the one asked for."""

    def __init__(self, read, image_size, dim, patch_size, width, layers, head_width, dtype):
        w, places = read(""), (image_size // patch_size) ** 2 + 1  # one is the class token's
        own = {
            "conv1.weight": (width, 3, patch_size, patch_size),
            "positional_embedding": (places, width),
            "class_embedding": (width,),
            "proj": (width, dim),
            **{f"ln_{at}.{kind}": (width,) for at in ("pre", "post") for kind in ("weight", "bias")},
        }
        shapes = {
            "ln_1": (width,),
            "ln_2": (width,),
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }
        block = {
            f"{name}{'_' if name == 'attn.in_proj' else '.'}{kind}": shape if kind == "weight" else shape[:1]
            for name, shape in shapes.items()
            for kind in ("weight", "bias")
        }
        expected = own | {
            f"transformer.resblocks.{i}.{key}": shape for i in range(layers) for key, shape in block.items()
        }
        found = {
            key: isinstance(value, torch.Tensor) and value.is_floating_point() and tuple(value.shape)
            for key, value in w.items()
        }
        if wrong := sorted(key for key, _ in expected.items() ^ found.items()):
            raise ValueError(
                f"{wrong[0]} is {found.get(wrong[0], 'missing')}, not {expected.get(wrong[0], 'part of it')}"
            )
        self.patches, self.places, self.first, self.out, *self.norms = (
            w[key].to(dtype, copy=True) for key in own
        )
        del w  # what was looked at of the file
        self.blocks = [
            ViTBlock(lambda name, i=i: read(f"transformer.resblocks.{i}.{name}"), width // head_width, dtype)
            for i in range(layers)
        ]

    def __call__(self, images):
        return torch.cat([self.rows(x) for x in images.split(8)])

    def rows(self, x):
        x = F.conv2d(x, self.patches, stride=self.patches.shape[2:]).flatten(2).mT  # (B, P, width)
        x = torch.cat([self.first.expand(len(x), 1, -1), x], dim=1) + self.places
        x = F.layer_norm(x, x.shape[2:], *self.norms[:2])
        for block in self.blocks:
            x = block(x)
        return F.layer_norm(x[:, 0], x.shape[2:], *self.norms[2:]) @ self.out


class ViTBlock:
    """Attention and MLP of a residual block in a few oneDNN kernels (its products are twice as fast as MKL's on AMD). What is constant
    goes into the weights: the order its kernels want them in, the scale of the queries, and the 1.702 of QuickGELU, x sigmoid(1.702 x) =
    swish(1.702 x) / 1.702, so that the fused swish can do it. Softmax between two products, since torch's own fused attention takes
    twice as long in bfloat16 on a CPU."""

    def __init__(self, read, heads, dtype):
        def norm(name):
            w = read(name)
            return w["weight"].to(dtype, copy=True), w["bias"].to(
                dtype, copy=True
            )  # a view would keep the file's pages in memory

        def product(name, fold=lambda weight, bias: None):
            weight, bias = (w.float() for w in map(read(name).get, ("weight", "bias")))
            fold(weight, bias)
            return torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype), 8 * 197), bias.to(
                dtype, copy=True
            )

        def queries(weight, bias):
            for tensor in (weight, bias):
                tensor[: len(bias) // 3] *= (len(bias) // 3 // heads) ** -0.5

        self.heads, self.norms = heads, (norm("ln_1."), norm("ln_2."))
        self.products = (
            product("attn.in_proj_", queries),
            product("attn.out_proj."),
            product("mlp.c_fc.", lambda weight, bias: (weight.mul_(1.702), bias.mul_(1.702))),
            product("mlp.c_proj.", lambda weight, bias: weight.div_(1.702)),
        )

    def __call__(self, x):
        (qkv, out, up, down), linear, (b, t, d) = self.products, torch.ops.mkldnn._linear_pointwise, x.shape
        y = linear(F.layer_norm(x, (d,), *self.norms[0]), *qkv, "none", [], "").view(b, t, 3, self.heads, -1)
        q, k, v = y.permute(2, 0, 3, 1, 4).reshape(3, b * self.heads, t, -1)
        weights = torch.bmm(q, k.transpose(1, 2))  # (B * H, P, P)
        torch.softmax(weights, -1, out=weights)
        y = torch.bmm(weights, v).view(b, self.heads, t, -1).transpose(1, 2).reshape(b, t, d)
        x = linear.binary(y, x, *out, "add")
        return linear.binary(
            linear(F.layer_norm(x, (d,), *self.norms[1]), *up, "swish", [], ""), x, *down, "add"
        )
