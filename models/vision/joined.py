"""Several towers as one: `A+B`."""

from functools import cached_property, partial

import torch

from .pixels import joined_pixels
from .tower import Tower


class Joined(Tower):
    """The rows of several towers side by side, each scaled so that the whole has norm 1. Pixels are one flat
    row per image, in which the pixels of each tower follow each other."""

    def __init__(self, device, name, parts):
        self._parts = tuple(parts)
        frames = {part.clip_frames for part in parts}
        if len(frames) > 1:
            raise ValueError(
                f"image tower {name}: its parts see {sorted(frames)} frames at once; join equal ones"
            )
        (self.clip_frames,) = frames
        self.device = torch.device(device)
        self.name = name
        self.public_name = "+".join(part.public_name for part in parts)
        self.sha256 = "+".join(part.sha256 for part in parts)
        self.key = "+".join(part.key for part in parts)
        self.dim = sum(part.dim for part in parts)
        self.places_dim = sum(part.places_dim for part in parts) if all(p.places_dim for p in parts) else 0

    @property
    def parts(self):
        return self._parts

    def _of_a_part(self):
        raise ValueError(f"image tower {self.name} is joined from several; take one of its .parts")

    path = network = fast = pixel_spec = property(_of_a_part)

    def use(self, network):
        self._of_a_part()

    def explain(self, pixels, mean):
        self._of_a_part()

    def release(self):
        for part in self.parts:
            part.release()

    @cached_property
    def preprocess(self):
        return partial(joined_pixels, [part.preprocess for part in self.parts])

    @property
    def pixels_shape(self):
        return (sum(self._sizes()),)

    def _sizes(self):
        return [torch.Size(part.pixels_shape).numel() for part in self.parts]

    def split(self, pixels):
        """A list with the pixels (B, 3, S, S) of each part, from rows of pixels (B, sum)."""
        each = pixels.split(self._sizes(), dim=1)
        return [x.unflatten(1, part.pixels_shape) for part, x in zip(self.parts, each)]

    def visible(self, width, height):
        """What all towers keep."""
        lefts, tops, rights, bottoms = zip(*(part.visible(width, height) for part in self.parts))
        return max(lefts), max(tops), min(rights), min(bottoms)

    def encode(self, images, places=False):
        """As Tower.encode, of pixels as `preprocess` joins them."""
        found = [part.encode(x, places) for part, x in zip(self.parts, self.split(images))]
        if not places:
            return self.join(found)
        rows, maps = zip(*found)
        counts = {m.shape[1] for m in maps}
        if len(counts) > 1:
            raise ValueError(
                f"image tower {self.name}: its parts have different numbers of places, {sorted(counts)}"
            )
        return self.join(rows), torch.cat(maps, dim=2)  # (B, P, places_dim)

    def join(self, rows):
        return torch.cat(list(rows), dim=-1) / len(rows) ** 0.5  # (B, dim)
