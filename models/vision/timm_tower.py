"""Any image model of timm: `timm:NAME` with its weights from the Hugging Face hub, `timm:NAME@FILE` with
those of a local file."""

import math
import sys

import torch
from torch import nn

from models import hub

from .tower import Tower
from .weights import local_file, read_weights

FILES = ("model.safetensors", "pytorch_model.bin")


class TimmTower(Tower):
    """Size, crop, mean, deviation and interpolation are those of timm's own data config, features what timm
    pools before the classifier. Places are a ViT's patches or the last feature map of a CNN."""

    def __init__(self, device, name, path=None, download=True):
        import timm

        model, _, file = name.removeprefix("timm:").partition("@")
        if not timm.is_model(model):
            raise ValueError(f"image tower {name}: timm has no model {model!r}; see timm.list_models()")
        self.model = model
        with torch.device("meta"):
            network = TimmNetwork(timm.create_model(model, pretrained=False, num_classes=0).eval())
        spec = pixel_spec(name, network.model)
        with torch.no_grad():
            shape = torch.empty(1, 3, spec["size"], spec["size"], device="meta")
            features, places = network.with_places(shape)
        path = path or file
        super().__init__(
            device,
            name,
            local_file(name, path) if path else _fetch(name, network.model.pretrained_cfg, download),
            dim=features.shape[1],
            places_dim=places.shape[1],
            pixel_spec=spec,
            settings=f"timm {model}",
            public_name=f"timm:{model}",
        )

    def build(self):
        import timm

        network = timm.create_model(self.model, pretrained=False, num_classes=0)
        weights = read_weights(self.path)
        # timm's convention: a family whose published weights have other names converts them with a function
        # of this name.
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        try:
            weights = convert(weights, network) if convert else weights
            missing, unexpected = network.load_state_dict(weights, strict=False)
        except (RuntimeError, LookupError, AttributeError, TypeError) as error:
            raise self._misfit(str(error)[:300]) from None
        heads = network.pretrained_cfg["classifier"]
        heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads or ()))
        wrong = missing + [key for key in unexpected if not key.startswith(heads)]
        if wrong:
            raise self._misfit(f"{wrong[0]} is {'missing' if missing else 'not part of it'}")
        return TimmNetwork(network)

    def _misfit(self, why):
        return ValueError(f"{self.path}: not the weights of timm's {self.model} ({why})")


class TimmNetwork(nn.Module):
    """A timm model without its classifier: (B, 3, S, S) -> (B, dim)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)

    def with_places(self, x):
        x = self.model.forward_features(x)
        return self.model.forward_head(x), self._as_map(x)

    def _as_map(self, x):
        """(B, C, h, w) of patches (B, prefix + h w, C), or of a map in either order of dimensions."""
        if x.ndim == 4:
            return x.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else x
        x = x[:, getattr(self.model, "num_prefix_tokens", 0) :]
        side = math.isqrt(x.shape[1])
        return x.mT.unflatten(2, (side, side))


def pixel_spec(name, network):
    """The `pixel_spec` of a timm model. ValueError for preprocessing that pixels.py does not know."""
    from timm.data import resolve_model_data_config

    data = resolve_model_data_config(network)
    channels, height, width = data["input_size"]
    resize = {"center": "shortest", "squash": "squash"}.get(data["crop_mode"])
    if (
        channels != 3
        or height != width
        or resize is None
        or data["interpolation"] not in ("bicubic", "bilinear")
    ):
        raise ValueError(f"image tower {name}: its preprocessing ({data}) is not one of those written here")
    return dict(
        size=height,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        resize=resize,
        scale=math.floor(height / data["crop_pct"]),
        interpolation=data["interpolation"],
    )


def _fetch(name, config, download):
    repository = config.get("hf_hub_id")
    way_out = f"name a local file, --vision {name}@FILE"
    if not repository:
        raise FileNotFoundError(
            f"image tower {name}: timm has no weights of it on the Hugging Face hub; {way_out}"
        )
    files = (config["hf_hub_filename"],) if config.get("hf_hub_filename") else FILES
    try:
        return hub.fetch_file(repository, files, download)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image tower {name}: {error}; connect once, or {way_out}") from None
