"""The contract of an image tower, which every family fulfils. The project relies on nothing else."""

from functools import cached_property, partial

import torch
import torch.nn.functional as F

from models.files import sha256 as sha256_of

from . import pixels

GRID = 7  # places across and down, at most


class Tower:
    """A frozen image tower: PIL images in, unit rows out.

    A family is a subclass with two methods: `__init__(device, name, path=None, download=True)`, which finds
    the weights and passes what it found to this class, and `build()`. The network is built on first use, so a
    run whose features are cached never builds it. What a tower cannot do raises ValueError with the tower's
    name and the way out.

    name: as typed after --vision.
    public_name: the name without local paths, which a model stores. With it, `VisionEncoder(device,
        public_name, path=...)` finds the tower again.
    path: the weights file, or the model's folder.
    sha256: of the weights.
    key: text of all that the features depend on, which is architecture, preprocessing, weights and precision.
    dim: width of a row.
    places_dim: width of the features of a place, 0 for a tower without places.
    pixel_spec: dict with size, mean, std, resize and, where needed, scale, interpolation, margin (pixels.py).
    """

    clip_frames = 1  # F, frames that one input of the tower holds; over 1, pixels are (F, 3, S, S)
    has_text = False
    at_once = None  # images per call on a CPU, so that activations stay in its cache; None: all of them
    dtype = torch.float32

    def __init__(
        self, device, name, path, dim, pixel_spec, places_dim=0, settings="", sha256=None, public_name=None
    ):
        self.device = torch.device(device)
        self.name = name
        self.public_name = public_name or name
        self.path = path
        self.dim = dim
        self.places_dim = places_dim
        self.pixel_spec = pixel_spec
        self.sha256 = sha256 or sha256_of(path)
        self.key = f"{settings} {sorted(pixel_spec.items())} {self.dtype} {self.sha256}"

    def build(self):
        """A module that maps pixels (B, 3, S, S) to features (B, dim) before the norm, with the weights of
        `path`. For a tower with places it also has `with_places(pixels) -> ((B, dim), (B, places_dim, h,
        w))`."""
        raise NotImplementedError(f"{type(self).__name__} has no method build()")

    @cached_property
    def network(self):
        """The frozen network in eval mode, float32 and differentiable."""
        return self.build().eval().requires_grad_(False).to(self.device)

    @cached_property
    def fast(self):
        """What `encode` runs: the function of `network`, in the tower's precision and made for its device."""
        return self.network

    def use(self, network):
        """Encode with `network`, for example a changed copy of `.network`, until `release`."""
        self.network = self.fast = network

    def release(self):
        """Forget the network. The next `encode` builds it again."""
        for name in ("network", "fast"):
            vars(self).pop(name, None)

    @cached_property
    def preprocess(self):
        """PIL RGB -> pixels (3, S, S) float32. It can be pickled, for the workers of a DataLoader.

        Of a tower with clip_frames F > 1: a list of PIL RGB -> (F, 3, S, S), evenly spread; one image is F
        times the same."""
        return self._of_clips(pixels.preprocessing(self.pixel_spec))

    @cached_property
    def squash(self):
        """As `preprocess`, but of the whole image, squashed to the shape of the input, not of its middle."""
        spec = self.pixel_spec | dict(resize="squash", scale=self.pixel_spec["size"])
        return self._of_clips(pixels.preprocessing(spec))

    def _of_clips(self, prepare):
        return partial(pixels.clip_pixels, prepare, self.clip_frames) if self.clip_frames > 1 else prepare

    @property
    def pixels_shape(self):
        """The shape of what `preprocess` returns."""
        shape = (3, self.pixel_spec["size"], self.pixel_spec["size"])
        return (self.clip_frames, *shape) if self.clip_frames > 1 else shape

    def visible(self, width, height):
        """(left, top, right, bottom) of what preprocessing keeps of a width x height image, in its pixels."""
        return pixels.visible(self.pixel_spec, width, height)

    @torch.no_grad()  # not inference_mode: its tensors cannot enter a training step
    def encode(self, images, places=False):
        """(B, dim) float32 unit rows of pixels (B, 3, S, S), on the tower's device.

        With `places` also the features of the places, (B, P, places_dim) float32: at most 7 x 7, row by row
        from the top left, neither normalised nor with coordinates; from the same pass. ValueError for a tower
        without places."""
        if places and not self.places_dim:
            raise ValueError(f"image tower {self.name} has no places; use a ViT or a CNN of timm: or hf:")
        if not len(images):
            rows = torch.empty(0, self.dim, device=self.device)
            return (rows, torch.empty(0, GRID**2, self.places_dim, device=self.device)) if places else rows
        cuda = self.device.type == "cuda"
        if cuda and images.device.type == "cpu":
            images = images.pin_memory()  # the copy runs beside the tower's work; never tried on a GPU
        images = images.to(self.device, self.dtype, non_blocking=cuda)
        at_once = self.at_once if self.device.type == "cpu" and self.at_once else len(images)
        batches = images.split(at_once)
        with torch.autocast(self.device.type, enabled=False):  # a tower has its own precision
            if not places:
                return torch.cat([F.normalize(self.fast(batch).float(), dim=-1) for batch in batches])
            found = [self.fast.with_places(batch) for batch in batches]
        rows = torch.cat([F.normalize(features.float(), dim=-1) for features, _ in found])  # (B, dim)
        grids = [on_grid(maps.float()).flatten(2).mT for _, maps in found]
        return rows, torch.cat(grids)  # (B, dim), (B, P, places_dim)

    @property
    def parts(self):
        """The towers whose rows stand side by side in this tower's row: itself, unless towers were joined
        with `+`."""
        return (self,)

    def split(self, pixels):
        """A list with the pixels (B, 3, S, S) of each of `parts`."""
        return [pixels]

    def join(self, rows):
        """(B, dim) unit rows of this tower from a list with the rows of each of `parts`."""
        return rows[0]

    def encode_text(self, captions):
        """(M, dim) float32 unit rows of captions in the space of the image rows. ValueError where `has_text`
        is False."""
        raise ValueError(
            f"image tower {self.name} has no text tower of its own; use a CLIP model such as clip-vit-b-16"
        )

    def explain(self, pixels, mean):
        """(maps, baselines, pool) for heat maps of pixels (1, 3, S, S). Maps and baselines are lists of (1,
        channels, h, w) on the places before pooling, and `pool(*maps)` -> (B, dim) is what `encode` gives.
        `mean` (dim,) are the features of the baseline. ValueError for a family whose places are not known."""
        raise ValueError(f"image tower {self.name}: its places are not known; pass --method occlusion")


def on_grid(maps):
    """(B, C, h, w) -> the same averaged to 7 x 7 where a side is longer."""
    sides = [min(GRID, side) for side in maps.shape[2:]]
    return maps if sides == list(maps.shape[2:]) else F.adaptive_avg_pool2d(maps, sides)
