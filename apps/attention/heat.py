"""Where a model looked: the share of each place of an image in the score of a text.

    image = open_image("photo.jpg")                                  # an upright RGB PIL image
    scores, maps = explain(model, image, ["a dog", "a ball"])        # (C,), (C, H, W): cosines, heat maps
    explain(model, image, ["a dog"], "occlusion")                    # by hiding places: slow, for every tower
    shares(model, image, model.encode_text(["a dog"]))               # [(tower, (C, h, w)), ...]

A score is cosine(predictor(tower(pixels)), text), C the number of texts. Integrated gradients (Sundararajan
et al. 2017) attribute it to the last places a tower has before it pools them. Occlusion is Zeiler and
Fergus's (2014)."""

import math

import torch
import torch.nn.functional as F

# Of the integral. Sums were off by 0.0001 of cosine at most; with 16 steps by 0.015 (Flickr8k, retrieval).
STEPS = 32
CANVAS = 512  # pixels: the longer side of a map at most
BATCH = 32  # occluded images encoded together
METHODS = ("gradients", "occlusion")


def explain(model, image, texts, method="gradients"):
    """(scores (C,), maps (C, H, W)), float32 on the CPU, of C texts for an upright RGB PIL image.

    H and W are the image's, scaled down to 512 pixels. A map is NaN where not every tower looked (outside the
    centre crop). "gradients": the mean of a map is about the score minus the baseline's, see `shares`.
    "occlusion": how much the score falls when a grey square hides the place, from 81 runs of the tower.
    ValueError for anything but an RGB image, for a method not in METHODS, and for "gradients" of a tower that
    has no known places."""
    if getattr(image, "mode", None) != "RGB":
        raise ValueError(f"{image}: not an RGB image; open it with models.dataset.open_image")
    if method not in METHODS:
        raise ValueError(f"{method}: no such method; choose {' or '.join(METHODS)}")
    text = model.encode_text(texts)  # (C, Dt)
    scores = (model.encode_image(image) @ text.T)[0].cpu()  # (C,)
    canvas = image.copy()
    canvas.thumbnail((CANVAS, CANVAS))
    if method == "occlusion":
        return scores, _occluded(model, canvas, text)
    return scores, _spread(shares(model, image, text), model.vision, canvas.size)


def attend(model, image, questions):
    """Maps (K, H, W), float32 on the CPU, of K questions about an upright RGB PIL image: the attention of the
    predictor over its places, as shares of 1 per place. H, W, NaN and errors as in `explain`."""
    canvas = image.copy()
    canvas.thumbnail((CANVAS, CANVAS))
    weights = model.attention(image, questions)  # (K, P)
    side = math.isqrt(weights.shape[1])
    maps = torch.zeros(len(weights), canvas.height, canvas.width)
    left, top, right, bottom = model.vision.visible(*canvas.size)
    grid = weights.view(len(weights), 1, side, side)
    size = (bottom - top, right - left)
    maps[:, top:bottom, left:right] = F.interpolate(grid, size, mode="bicubic")[:, 0]
    return _only_seen(maps, model.vision)


def shares(model, image, text):
    """[(tower, (C, h, w)), ...], float32 on the CPU: the points of cosine that each place of each map of each
    tower contributes, for an RGB PIL image and text embeddings (C, Dt).

    Their sum is the score minus that of the baseline: the predictor's `mean` (the mean training image, or
    zeros if inputs are not standardised), or for a transformer all patches equal to their mean. Raises
    ValueError for a tower without known places."""
    from captum.attr import IntegratedGradients

    towers = model.vision.parts
    # `join` divides by this factor, so that the whole has norm 1.
    mean = model.predictor.mean[: model.vision.dim]  # with --time change, that of the change follows
    means = (mean * len(towers) ** 0.5).split([tower.dim for tower in towers])
    owners, maps, baselines, pools = [], [], [], []
    for tower, mean in zip(towers, means):
        pixels = tower.preprocess(image)[None].to(tower.device)
        own, own_baselines, pool = tower.explain(pixels, mean)
        pools.append((pool, slice(len(maps), len(maps) + len(own))))
        owners += [tower] * len(own)
        maps += own
        baselines += own_baselines

    def score(*maps):
        features = [pool(*maps[own]) for pool, own in pools]
        return model.predictor(model.vision.join(features)) @ text.T  # (B, C)

    attribute = IntegratedGradients(score).attribute
    # For each text a tuple of (1, channels, h, w), one per map.
    found = [attribute(tuple(maps), tuple(baselines), target=c, n_steps=STEPS) for c in range(len(text))]
    return [(tower, torch.cat(same).detach().sum(1).cpu()) for tower, same in zip(owners, zip(*found))]


def _only_seen(maps, vision):
    """maps (C, H, W) with NaN where not every tower looked."""
    left, top, right, bottom = vision.visible(maps.shape[2], maps.shape[1])
    kept = torch.full_like(maps, math.nan)
    kept[:, top:bottom, left:right] = maps[:, top:bottom, left:right]
    return kept


def _spread(found, vision, size):
    """(C, H, W): the `shares` of all towers, scaled to an image of `size` (width, height) and added."""
    width, height = size
    maps = torch.zeros(len(found[0][1]), height, width)
    for tower, share in found:
        left, top, right, bottom = tower.visible(width, height)
        density = share[None] * share[0].numel()  # whose mean is the sum of the shares
        maps[:, top:bottom, left:right] += F.interpolate(
            density, (bottom - top, right - left), mode="bicubic"
        )[0]
    return _only_seen(maps, vision)


def _occluded(model, canvas, text):
    """How much each score falls, (C, H, W), when a grey square of a quarter of the visible side hides the
    place: the mean of the four squares over it."""
    left, top, right, bottom = model.vision.visible(*canvas.size)
    side = max(2, max(right - left, bottom - top) // 4 // 2 * 2)
    rows = range(top - side // 2, bottom, side // 2)
    columns = range(left - side // 2, right, side // 2)
    spots = [(x, y) for y in rows for x in columns]
    bare = model.encode_image(canvas) @ text.T  # (1, C)
    falls = torch.zeros(len(text), canvas.height, canvas.width)
    times = torch.zeros(canvas.height, canvas.width)
    for i in range(0, len(spots), BATCH):
        images = [canvas.copy() for _ in spots[i : i + BATCH]]
        for image, (x, y) in zip(images, spots[i:]):
            image.paste((127, 127, 127), (x, y, x + side, y + side))
        fallen = (bare - model.encode_image(images) @ text.T).cpu()  # (B, C)
        for fall, (x, y) in zip(fallen, spots[i:]):
            hidden = (slice(max(0, y), y + side), slice(max(0, x), x + side))
            falls[(slice(None), *hidden)] += fall[:, None, None]
            times[hidden] += 1
    return _only_seen(falls / times, model.vision)
