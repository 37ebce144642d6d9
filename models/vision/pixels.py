"""How an image becomes the pixels of a tower: resized, cropped, scaled. Exactly what the towers' own
libraries do, without importing them."""

from functools import partial

import numpy as np
import torch
from PIL import Image


def pixels(size, mean, std, resize, image, scale=None, interpolation="bicubic", margin="round"):
    """(3, size, size) float32 of a PIL RGB image, bit for bit what torchvision's Resize, CenterCrop, ToTensor
    and Normalize give.

    `resize` is "shortest" (the shorter side becomes `scale` pixels) or "squash" (both sides do). The middle
    `size` pixels are kept; `scale` is `size` unless given. An odd margin is cut as torchvision does ("round")
    or as transformers does ("floor"). Runs on one core, so that each of several threads can use its own.
    Raises ValueError for an image that is not RGB."""
    if image.mode != "RGB":
        raise ValueError(
            f"image mode {image.mode}: open images with models.dataset.open_image, which returns RGB"
        )
    scale = scale or size
    if resize == "squash":
        shape = (scale, scale)
    else:
        image = _middle(image)
        w, h = image.size
        shape = (scale, int(scale * h / w)) if w <= h else (int(scale * w / h), scale)
    if shape != image.size:
        image = image.resize(shape, Image.Resampling[interpolation.upper()])
    if shape != (size, size):
        left, top = ((side - size) // 2 if margin == "floor" else round((side - size) / 2) for side in shape)
        image = image.crop((left, top, left + size, top + size))
    x = np.array(np.asarray(image).transpose(2, 0, 1), dtype=np.float32, order="C")  # (3, S, S)
    x /= np.float32(255)
    x -= np.float32(mean).reshape(3, 1, 1)
    x /= np.float32(std).reshape(3, 1, 1)
    return torch.from_numpy(x)


def preprocessing(spec):
    """The function PIL RGB -> (3, S, S) of a tower's `pixel_spec`. It can be pickled, for the workers of a
    DataLoader."""
    first = ("size", "mean", "std", "resize")
    rest = {key: value for key, value in spec.items() if key not in first}
    return partial(pixels, *(spec[key] for key in first), **rest)


def clip_pixels(prepare, count, frames):
    """(count, 3, S, S) float32 of a list of n frames, spread evenly over `count`: input i is frame i * n //
    count. A single image is repeated, without copies in memory. `prepare` maps a frame to (3, S,
    S). ValueError for an empty list."""
    frames = frames if isinstance(frames, list) else [frames]
    if not frames:
        raise ValueError("no frames in it")
    found = [prepare(frame) for frame in frames]
    if len(found) == 1:
        return found[0].expand(count, -1, -1, -1)
    return torch.stack([found[i * len(found) // count] for i in range(count)])


def joined_pixels(preprocesses, image):
    """One flat row with the pixels that each preprocessing makes of an image."""
    return torch.cat([preprocess(image).flatten() for preprocess in preprocesses])


def visible(spec, width, height):
    """(left, top, right, bottom), in pixels of a width x height image: what preprocessing keeps."""
    share = spec["size"] / spec.get("scale", spec["size"])
    across, down = (width, height) if spec["resize"] == "squash" else (min(width, height),) * 2
    across, down = round(across * share), round(down * share)
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def _middle(image):
    """The middle 16:1 of a very long image. The centre crop drops the rest in any case, but only after a
    resize that makes a billion pixels of a 1 x 20,000 image."""
    w, h = image.size
    if max(w, h) <= 16 * min(w, h):
        return image
    dx, dy = max(0, w - 16 * h) // 2, max(0, h - 16 * w) // 2
    return image.crop((dx, dy, w - dx, h - dy))
