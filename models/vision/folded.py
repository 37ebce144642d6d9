"""The same towers, faster on a CPU: norms folded into the weights, oneDNN's fused kernels where no gradient is asked for."""

import torch
import torch.nn.functional as F
from torch import nn


class FoldedLite(nn.Module):
    """EfficientNet-Lite for inference: batch norm folded into the convolution before it. (B, 3, H, W) -> (B, dim), mean-pooled.

    On a CPU each convolution with its ReLU6 is one oneDNN call (the one torch.compile emits, without a compiler), and four images
    run at a time, so that activations stay in the cache: measured fastest of 1, 2, 4, 8, 16 and 32 (apps/bench.py).
    `stages` also pools the outputs of the last three stages: what the head throws away tells actions and places apart.
    """

    def __init__(self, network, stages=False):
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList(Block(block) for block in stage) for stage in network.blocks)
        self.stem, self.head = Conv(network.conv_stem, network.bn1), Conv(network.conv_head, network.bn2)
        self.pooled_stages = 3 if stages else 0

    def forward(self, images):
        at_once = 4 if images.device.type == "cpu" else len(images)
        return torch.cat([self.pooled(x) for x in images.split(max(1, at_once))])

    def pooled(self, x):
        """(B, 3, H, W) -> (B, dim): the head's map, then those of the last stages, each pooled and of norm 1."""
        maps = self.feature_maps(x)
        return torch.cat([F.normalize(m.mean((2, 3)), dim=-1) for m in [maps[-1], *maps[len(maps) - 1 - self.pooled_stages : -1]]], dim=1)

    def feature_maps(self, x):
        """(B, 3, H, W) -> the output of each stage and of the head, (B, 1280, H/32, W/32), last."""
        x, maps = self.stem(x.contiguous(memory_format=torch.channels_last)), []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return [*maps, self.head(x)]


class Block(nn.Module):
    """Expand, convolve each channel, project; plus the input where timm's block has a skip."""

    def __init__(self, block):
        super().__init__()
        pairs = [("conv_dw", "bn1"), ("conv_pw", "bn2")]  # the first stage has no expansion
        if hasattr(block, "conv_pwl"):
            pairs = [("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")]
        self.convs = nn.Sequential(*(Conv(getattr(block, conv), getattr(block, norm)) for conv, norm in pairs))
        self.has_skip = block.has_skip

    def forward(self, x):
        return self.convs(x) + x if self.has_skip else self.convs(x)


class Conv(nn.Module):
    """A convolution with its batch norm folded in, then ReLU6 where the norm had one."""

    def __init__(self, conv, norm):
        super().__init__()
        folded = nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
        self.weight = nn.Parameter(folded.weight.detach().contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(folded.bias.detach())
        self.stride, self.groups, self.kernel, self.padding = conv.stride[0], conv.groups, conv.kernel_size[0], conv.padding
        self.same = type(conv).__name__ == "Conv2dSame"  # TensorFlow's padding: the odd pixel goes right and below
        self.relu6 = not isinstance(norm.act, nn.Identity)

    def forward(self, x):
        padding = self.padding
        if self.same:
            extra = [max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in (x.shape[3], x.shape[2])]
            x, padding = F.pad(x, [side for n in extra for side in (n // 2, n - n // 2)]), (0, 0)
        if x.device.type == "cpu" and torch.backends.mkldnn.is_available() and not x.requires_grad:
            activation = ("hardtanh", [0.0, 6.0]) if self.relu6 else ("none", [])
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, list(padding), [self.stride] * 2, [1, 1],
                                                           self.groups, *activation, "")  # fmt: skip
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x) if self.relu6 else x


class FoldedViT(nn.Module):
    """open_clip's VisionTransformer with QuickGELU: (B, 3, H, W) -> (B, dim), both of `dtype` (float32 or bfloat16). It takes `network`
    over, which is not to be used any more. Eight images at a time: their activations stay in the caches."""

    def __init__(self, network, dtype):
        super().__init__()
        blocks = network.transformer.resblocks
        for i, block in enumerate(blocks):
            blocks[i] = ViTBlock(block, dtype)
        self.network = network.to(dtype)

    def forward(self, images):
        return torch.cat([self.network(x) for x in images.split(8)])


class ViTBlock(nn.Module):
    """Attention and MLP of a residual block in a few oneDNN kernels (its products are twice as fast as MKL's on AMD). What is constant
    goes into the weights: the scale of the queries, and the 1.702 of QuickGELU, x sigmoid(1.702 x) = swish(1.702 x) / 1.702, so that
    the fused swish can do it. Softmax between two products, since torch's own fused attention takes twice as long in bfloat16 on a CPU."""

    def __init__(self, block, dtype):
        super().__init__()
        attention, mlp = block.attn, block.mlp
        self.heads, self.norms = attention.num_heads, nn.ModuleList([block.ln_1, block.ln_2])
        scale = torch.ones(3, attention.embed_dim)
        scale[0] = attention.head_dim**-0.5
        weights = [attention.in_proj_weight * scale.view(-1, 1), attention.out_proj.weight, mlp.c_fc.weight * 1.702,
                   mlp.c_proj.weight / 1.702]  # fmt: skip
        biases = [attention.in_proj_bias * scale.view(-1), attention.out_proj.bias, mlp.c_fc.bias * 1.702, mlp.c_proj.bias]
        self.folded = nn.ParameterList(nn.Parameter(p.detach().to(dtype), requires_grad=False) for p in weights + biases)

    def forward(self, x, attn_mask=None):
        qkv, out, up, down, qkv_bias, out_bias, up_bias, down_bias = self.folded
        linear = torch.ops.mkldnn._linear_pointwise
        b, t, d = x.shape
        y = linear(self.norms[0](x), qkv, qkv_bias, "none", [], "").view(b, t, 3, self.heads, -1)
        q, k, v = y.permute(2, 0, 3, 1, 4).reshape(3, b * self.heads, t, -1)
        weights = torch.bmm(q, k.transpose(1, 2))  # (B * H, P, P)
        torch.softmax(weights, -1, out=weights)
        y = torch.bmm(weights, v).view(b, self.heads, t, -1).transpose(1, 2).reshape(b, t, d)
        x = linear.binary(y, x, out, out_bias, "add")
        return linear.binary(linear(self.norms[1](x), up, up_bias, "swish", [], ""), x, down, down_bias, "add")
