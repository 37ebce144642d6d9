"""Where a model looked: the share of each place of a picture in the score of a text.

    picture = open_image("photo.jpg")                                # an upright RGB PIL picture
    scores, maps = explain(model, picture, ["a dog", "a ball"])      # (C,), (C, H, W): cosines, and heat maps over the picture
    explain(model, picture, ["a dog"], "occlusion")                  # the same by hiding places: slow, and for every tower
    shares(model, picture, model.encode_text(["a dog"]))             # [(tower, (C, h, w)), ...]: on each tower's own places

`model` is a VLJEPA. A score is cosine(predictor(tower(pixels)), text). Integrated gradients (Sundararajan et al. 2017) share it out
over the last places a tower has before it pools them: an EfficientNet-Lite's pooled maps, a CLIP transformer's patches before the
last block. Occlusion is Zeiler and Fergus's (2014).
"""

import math

import torch
import torch.nn.functional as F

STEPS = 32  # points of the integral: sums were off by 0.0001 of cosine at most, with 16 by 0.015 (the retrieval recipe on Flickr8k)
CANVAS = 512  # pixels: the longer side of a map at most
METHODS = ("gradients", "occlusion")


def explain(model, image, texts, method="gradients"):
    """(scores (C,), maps (C, H, W)), float32 on the CPU, of C texts for an upright RGB PIL picture. H and W are the picture's, scaled
    down to 512 pixels; a map is NaN where not every tower looked (what the centre crop cuts off). ValueError for anything else than
    an RGB picture, for a method that is none of METHODS, and for a tower whose places "gradients" does not know.

    "gradients": cosine a picture, so that a map's mean over what was seen is about the score less the baseline's (`shares` adds
    up exactly). "occlusion": how much the score falls when a grey square hides the place; for every tower, 81 runs of it."""
    if getattr(image, "mode", None) != "RGB":
        raise ValueError(f"{image}: not an RGB picture; open it with models.dataset.open_image")
    if method not in METHODS:
        raise ValueError(f"{method}: no such method; take {' or '.join(METHODS)}")
    text = model.encode_text(texts)  # (C, Dt)
    scores = (model.encode_image(image) @ text.T)[0].cpu()
    canvas = image.copy()
    canvas.thumbnail((CANVAS, CANVAS))
    if method == "occlusion":
        return scores, _occluded(model, canvas, text)
    return scores, _spread(shares(model, image, text), model.vision, canvas.size)


def shares(model, image, text):
    """[(tower, (C, h, w)), ...], float32 on the CPU, for a PIL RGB image and text embeddings (C, Dt): how many points of cosine each
    place of each map brought. All of them together are the score less that of the baseline: features at the predictor's `mean` (the
    mean training image where inputs are standardised, else zeros), and for a transformer every patch the mean of the patches.
    ValueError for a tower whose places are not known."""
    from captum.attr import IntegratedGradients

    towers = model.vision.parts or [model.vision]
    scale = len(towers) ** -0.5  # of each tower's unit features, as VisionEncoder.encode joins them
    means = (model.predictor.mean / scale).split([tower.dim for tower in towers])
    places = [
        _places(tower, tower.preprocess(image)[None].to(tower.device), mean)
        for tower, mean in zip(towers, means)
    ]
    owners = [tower for tower, (maps, _, _) in zip(towers, places) for _ in maps]

    def score(*maps):
        maps = iter(maps)
        features = [pool(*(next(maps) for _ in own)) for own, _, pool in places]
        return model.predictor(scale * torch.cat(features, dim=1)) @ text.T  # (B, C)

    maps, baselines = (tuple(m for place in places for m in place[i]) for i in (0, 1))
    integral = IntegratedGradients(score)
    found = [
        integral.attribute(maps, baselines, target=c, n_steps=STEPS) for c in range(len(text))
    ]  # C tuples of (1, channels, h, w)
    return [
        (owner, torch.cat([one[i].detach().sum(1) for one in found]).cpu()) for i, owner in enumerate(owners)
    ]


def _places(tower, pixels, mean):
    """(maps, baselines, pool) of pixels (1, 3, S, S): maps and baselines are lists of (1, channels, h, w), and `pool(*maps)` is
    what `tower.encode(pixels)` gives. `mean` (dim,) are the baseline's features."""
    network = tower.network
    if hasattr(network, "feature_maps"):
        with torch.no_grad():
            maps = network.feature_maps(pixels)
        maps = [maps[-1], *maps[len(maps) - 1 - network.pooled_stages : -1]]
        # The lengths that encode() divides by are taken as given: the features are then the mean over places, and nothing is approximate.
        maps = [m / m.mean((2, 3), keepdim=True).norm(dim=1, keepdim=True) / len(maps) ** 0.5 for m in maps]
        baselines = [
            part.view(1, -1, 1, 1).expand_as(m)
            for part, m in zip(mean.split([m.shape[1] for m in maps]), maps)
        ]
        return maps, baselines, lambda *maps: torch.cat([m.mean((2, 3)) for m in maps], dim=1)
    from open_clip.transformer import VisionTransformer

    if not isinstance(network, VisionTransformer):
        raise ValueError(
            f"{tower.name}: where a {type(network).__name__} has its places is not known; pass --method occlusion"
        )
    seen, last = [], network.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network(pixels)
    hook.remove()
    rows, columns = network.grid_size
    first, patches = seen[0].split(
        [seen[0].shape[1] - rows * columns, rows * columns], dim=1
    )  # class token, (1, P, width)
    patches = patches.mT.unflatten(2, (rows, columns))  # (1, width, h, w)

    def pool(patches):
        tokens = last(torch.cat([first.expand(len(patches), -1, -1), patches.flatten(2).mT], dim=1))
        pooled = network._pool(tokens)[0]
        return F.normalize(pooled if network.proj is None else pooled @ network.proj, dim=-1)

    return [patches], [patches.mean((2, 3), keepdim=True).expand_as(patches)], pool


def _seen(vision, size):
    """(left, top, right, bottom) of what the preprocessing leaves of a picture of `size` (width, height), in its pixels; of joined
    towers, what all of them see."""
    if vision.parts:
        lefts, tops, rights, bottoms = zip(*(_seen(tower, size) for tower in vision.parts))
        return max(lefts), max(tops), min(rights), min(bottoms)
    width, height = size
    side = min(size)
    if vision.spec["resize"] == "squash":
        return 0, 0, width, height
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _only_seen(maps, vision):
    """maps (C, H, W) with NaN where a tower did not look."""
    left, top, right, bottom = _seen(vision, (maps.shape[2], maps.shape[1]))
    kept = torch.full_like(maps, math.nan)
    kept[:, top:bottom, left:right] = maps[:, top:bottom, left:right]
    return kept


def _spread(found, vision, size):
    """The `shares` of every tower and map laid over a picture of `size` and added up -> (C, H, W)."""
    maps = torch.zeros(len(found[0][1]), size[1], size[0])
    for tower, share in found:
        left, top, right, bottom = _seen(tower, size)
        maps[:, top:bottom, left:right] += F.interpolate(
            share[None] * share[0].numel(), (bottom - top, right - left), mode="bicubic"
        )[0]
    return _only_seen(maps, vision)


def _occluded(model, canvas, text):
    """How much each score falls, (C, H, W), where a grey square of a quarter of what is seen lies over the place; the mean of four."""
    left, top, right, bottom = _seen(model.vision, canvas.size)
    side = max(2, max(right - left, bottom - top) // 4 // 2 * 2)
    spots = [
        (x, y)
        for y in range(top - side // 2, bottom, side // 2)
        for x in range(left - side // 2, right, side // 2)
    ]
    bare = model.encode_image(canvas) @ text.T  # (1, C)
    falls, times = (
        torch.zeros(len(text), canvas.height, canvas.width),
        torch.zeros(canvas.height, canvas.width),
    )
    for i in range(0, len(spots), 32):
        pictures = [canvas.copy() for _ in spots[i : i + 32]]
        for picture, (x, y) in zip(pictures, spots[i:]):
            picture.paste((127, 127, 127), (x, y, x + side, y + side))
        fallen = (bare - model.encode_image(pictures) @ text.T).cpu()  # (B, C)
        for fall, (x, y) in zip(fallen, spots[i:]):
            hidden = slice(max(0, y), y + side), slice(max(0, x), x + side)
            falls[(slice(None), *hidden)] += fall[:, None, None]
            times[hidden] += 1
    return _only_seen(falls / times, model.vision)
