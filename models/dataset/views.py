"""Augmented views of an image, for training."""

import math
import random

from PIL import Image

LEAST_AREA = 0.5  # of the image
LARGEST_RATIO = 4 / 3  # of width to height, and of height to width
TRIES = 10


def random_view(image, seed):
    """A random part of a PIL image, mirrored half the time; the same for the same `seed` (str). After
    Szegedy et al. (2015): area and ratio are drawn at random, here at least half of the image."""
    draw = random.Random(seed)
    view = image.crop(_box(*image.size, draw))
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else view


def _box(width, height, draw):
    """(left, top, right, bottom) in pixels; the largest square in the middle where no draw fits."""
    for _ in range(TRIES):
        area = draw.uniform(LEAST_AREA, 1) * width * height
        ratio = LARGEST_RATIO ** draw.uniform(-1, 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
