"""What a predictor reads of a video: the mean of its frames, or also how they change (`train.py --time`)."""

import math

import torch
import torch.nn.functional as F


def over_time(image):
    """Rows (B, D) of images, or (B, F, D) of the frames of videos in order -> (B, 2 * D): the mean of the
    frames, of norm 1, and how they change from the first to the last.

    The change is the sum of the frames weighted by half a cosine, from 1 to -1. It is exactly 0 for an image
    and for one that is repeated, and frames in reverse order give the negative."""
    if image.ndim == 2:
        return torch.cat([image, torch.zeros_like(image)], dim=1)
    count = image.shape[1]
    half = torch.arange(count // 2, device=image.device)
    weights = torch.cos(math.pi * (half + 0.5) / count) / count  # the others are their negatives
    earlier, later = image[:, : count // 2], image.flip(1)[:, : count // 2]
    change = ((earlier - later) * weights[:, None]).sum(1)
    return torch.cat([F.normalize(image.mean(1), dim=1), change], dim=1)


def as_it_is(image):
    """Rows (B, D), of a video the mean of its frames, as they are."""
    return image


TIMES = dict(mean=as_it_is, change=over_time)
