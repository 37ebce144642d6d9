"""Where did it look? The share of each place of a picture in the score of a text, as a heat map.

    python -m apps.attention my_image_archive/10002456.jpg "people hanging from a cable" "a kitchen" --out map.png
    python -m apps.draw_archive --boxes boxes.json && python -m apps.attention --pointing boxes.json

The second line asks whether the maps are right, where the places of things are known: does the highest point fall on the thing
the text names (the pointing game, Zhang et al. 2016), is the named thing the hottest of those in the picture, and does the map
change when the weights are shuffled (Adebayo et al. 2018)?

A score is cosine(predictor(tower(pixels)), text). Integrated gradients (Sundararajan et al. 2017) share it out over the last
places a tower has before it pools them: an EfficientNet-Lite's pooled maps, a CLIP transformer's patches before the last block.
"""

import argparse
import copy
import json
import math
import sys
import textwrap
from pathlib import Path

STEPS = 32  # points of the integral: sums were off by 0.0001 of cosine at most, with 16 by 0.015 (the retrieval recipe on Flickr8k)
CANVAS = 512  # pixels: the longer side of a map at most
METHODS = ("gradients", "occlusion")
THIS = "this model"


def explain(model, image, texts, method="gradients"):
    """(scores (C,), maps (C, H, W)), float32 on the CPU, of C texts for a path or PIL image. H and W are the picture's, scaled
    down to 512 pixels; a map is NaN where not every tower looked (what the centre crop cuts off). ValueError for a file that is no
    image, and for a tower whose places "gradients" does not know.

    "gradients": cosine a picture, so that a map's mean over what was seen is about the score less the baseline's (`shares` adds
    up exactly). "occlusion": how much the score falls when a grey square hides the place; for every tower, 81 runs of it."""
    from PIL import Image

    from models.dataset import open_image, upright_rgb

    image = upright_rgb(image) if isinstance(image, Image.Image) else open_image(image)
    text = model.encode_text(texts)  # (C, Dt)
    scores = (model.encode_image(image) @ text.T)[0].cpu()
    canvas = image.copy()
    canvas.thumbnail((CANVAS, CANVAS))
    if method == "occlusion":
        return scores, _occluded(model, canvas, text)
    return scores, _spread(shares(model, image, text), model.vision, canvas.size)


def shares(model, image, text):
    """[(tower, (C, h, w)), ...] for a PIL RGB image and text embeddings (C, Dt): how many points of cosine each place of each
    map brought. All of them together are the score less that of the baseline: features at the predictor's `mean` (the mean
    training image where inputs are standardised, else zeros), and for a transformer every patch the mean of the patches."""
    import torch
    from captum.attr import IntegratedGradients

    towers = model.vision.parts or [model.vision]
    scale = len(towers) ** -0.5  # of each tower's unit features, as VisionEncoder.encode joins them
    means = (model.predictor.mean / scale).split([tower.dim for tower in towers])
    places = [_places(tower, tower.preprocess(image)[None].to(tower.device), mean) for tower, mean in zip(towers, means)]
    owners = [tower for tower, (maps, _, _) in zip(towers, places) for _ in maps]

    def score(*maps):
        maps = iter(maps)
        features = [pool(*(next(maps) for _ in own)) for own, _, pool in places]
        return model.predictor(scale * torch.cat(features, dim=1)) @ text.T  # (B, C)

    maps, baselines = (tuple(m for place in places for m in place[i]) for i in (0, 1))
    integral = IntegratedGradients(score)
    found = [integral.attribute(maps, baselines, target=c, n_steps=STEPS) for c in range(len(text))]  # C tuples of (1, channels, h, w)
    return [(owner, torch.cat([one[i].detach().sum(1) for one in found]).cpu()) for i, owner in enumerate(owners)]


def _places(tower, pixels, mean):
    """(maps, baselines, pool) of pixels (1, 3, S, S): maps and baselines are lists of (1, channels, h, w), and `pool(*maps)` is
    what `tower.encode(pixels)` gives. `mean` (dim,) are the baseline's features."""
    import torch
    import torch.nn.functional as F
    from open_clip.transformer import VisionTransformer

    network = tower.network
    if hasattr(network, "feature_maps"):
        with torch.no_grad():
            maps = network.feature_maps(pixels)
        maps = [maps[-1], *maps[len(maps) - 1 - network.pooled_stages : -1]]
        # The lengths that encode() divides by are taken as given: the features are then the mean over places, and nothing is approximate.
        maps = [m / m.mean((2, 3), keepdim=True).norm(dim=1, keepdim=True) / len(maps) ** 0.5 for m in maps]
        baselines = [part.view(1, -1, 1, 1).expand_as(m) for part, m in zip(mean.split([m.shape[1] for m in maps]), maps)]
        return maps, baselines, lambda *maps: torch.cat([m.mean((2, 3)) for m in maps], dim=1)
    if not isinstance(network, VisionTransformer):
        raise ValueError(f"{tower.name}: where a {type(network).__name__} has its places is not known; pass --method occlusion")
    seen, last = [], network.transformer.resblocks[-1]
    hook = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        network(pixels)
    hook.remove()
    rows, columns = network.grid_size
    first, patches = seen[0].split([seen[0].shape[1] - rows * columns, rows * columns], dim=1)  # class token, (1, P, width)
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
    import torch

    left, top, right, bottom = _seen(vision, (maps.shape[2], maps.shape[1]))
    kept = torch.full_like(maps, math.nan)
    kept[:, top:bottom, left:right] = maps[:, top:bottom, left:right]
    return kept


def _spread(found, vision, size):
    """The `shares` of every tower and map laid over a picture of `size` and added up -> (C, H, W)."""
    import torch
    import torch.nn.functional as F

    maps = torch.zeros(len(found[0][1]), size[1], size[0])
    for tower, share in found:
        left, top, right, bottom = _seen(tower, size)
        maps[:, top:bottom, left:right] += F.interpolate(share[None] * share[0].numel(), (bottom - top, right - left), mode="bicubic")[0]
    return _only_seen(maps, vision)


def _occluded(model, canvas, text):
    """How much each score falls, (C, H, W), where a grey square of a quarter of what is seen lies over the place; the mean of four."""
    import torch

    left, top, right, bottom = _seen(model.vision, canvas.size)
    side = max(2, max(right - left, bottom - top) // 4 // 2 * 2)
    spots = [(x, y) for y in range(top - side // 2, bottom, side // 2) for x in range(left - side // 2, right, side // 2)]
    bare = model.encode_image(canvas) @ text.T  # (1, C)
    falls, times = torch.zeros(len(text), canvas.height, canvas.width), torch.zeros(canvas.height, canvas.width)
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


def panels(image, texts, scores, maps, path):
    """Write a PNG: the picture, then in pale grey once a text with its map and score. Red places speak for the text more than the
    picture's places do on average, blue ones less; all panels share one scale; what no tower saw is veiled."""
    import torch
    from matplotlib.figure import Figure
    from PIL import Image

    picture = image.resize((maps.shape[2], maps.shape[1]))
    grey = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, "white"), 0.4)
    unseen = torch.where(maps[0].isnan(), 0.6, math.nan)
    maps = maps - maps.nanmean((1, 2), keepdim=True)
    top = float(maps.nan_to_num().abs().max()) or 1.0
    tall = min(8.0, max(1.0, 3.1 * picture.height / picture.width))  # inches
    figure = Figure(figsize=(3.3 * (len(texts) + 1) + 0.7, tall + 0.6), layout="constrained")
    axes = figure.subplots(1, len(texts) + 1)
    axes[0].imshow(picture)
    axes[0].set_xlabel("the picture")
    for axis, text, score, heat in zip(axes[1:], texts, scores.tolist(), maps):
        axis.imshow(grey)
        shown = axis.imshow(heat, cmap="RdBu_r", vmin=-top, vmax=top, alpha=(1.5 * heat.abs().nan_to_num() / top).clamp(0, 0.8))
        axis.set_xlabel(f"{textwrap.fill(text, 44)}\n{score:.4f}", parse_math=False)
    for axis in axes:
        axis.imshow(unseen, cmap="gray", vmin=0, vmax=1, alpha=0.85)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=list(axes), label="cosine, above the mean place", shrink=0.8)
    figure.savefig(path, dpi=100)


def shuffle(module, seed=0):
    """Permute each parameter of a network in place: the same numbers, and nothing of what was learned (Adebayo et al. 2018)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def inside(places, heat):
    """bool (H, W): the pixels of a map that lie in one of the boxes [x0, y0, x1, y1]."""
    import torch

    mask = torch.zeros_like(heat, dtype=torch.bool)
    for x0, y0, x1, y1 in places:
        mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    return mask


def judge(heat, boxes, text):
    """(pointed, found) for a map (H, W) and {text: [[x0, y0, x1, y1], ...]} in its pixels: whether its highest point is in a box of
    the text, and whether its mean is highest in the boxes of the text; the second is None where there is nothing to confuse."""
    pointed = bool(inside(boxes[text], heat).flatten()[heat.nan_to_num(-math.inf).argmax()])
    means = {other: float(heat[inside(places, heat)].nanmean()) for other, places in boxes.items()}
    rivals = [mean for other, mean in means.items() if other != text and not math.isnan(mean)]  # NaN: what was cut off competes with nobody
    return pointed, all(means[text] > mean for mean in rivals) and not math.isnan(means[text]) if len(boxes) > 1 else None


def rank_correlation(a, b):
    """Spearman's of two maps (H, W) over the places both have."""
    import torch

    both = ~(a.isnan() | b.isnan())
    return float(torch.corrcoef(torch.stack([m[both].argsort().argsort().float() for m in (a, b)]))[0, 1])


def interval(per_image, draws=1000):
    """Percent of hits, and the 95 % bootstrap interval over images, of a list (one an image) of lists of hits."""
    import torch

    hits = torch.tensor([[sum(hit), len(hit)] for hit in per_image if hit], dtype=torch.float)  # (N, 2)
    if not len(hits):
        return (math.nan,) * 3
    chosen = torch.randint(len(hits), (draws, len(hits)), generator=torch.Generator().manual_seed(0))
    total = hits[chosen].sum(1)  # (draws, 2)
    low, high = (100 * total[:, 0] / total[:, 1]).quantile(torch.tensor([0.025, 0.975])).tolist()
    return 100 * float(hits[:, 0].sum() / hits[:, 1].sum()), low, high


def pointing(models, boxes, folder, method="gradients", quiet=False):
    """Play the pointing game with `models` {row name: VLJEPA}, THIS the one in question, over `boxes` {image name:
    {text: [[x0, y0, x1, y1], ...]}} in pixels, images in `folder`. Returns {row name: (pointed, found, alike)}: percent with its
    95 % interval twice, and the mean rank correlation with the maps of THIS."""
    import torch
    from tqdm import tqdm

    from models.dataset import image_path, open_image

    generator, names, told = torch.Generator().manual_seed(0), sorted(boxes), {}
    for n, name in enumerate(tqdm(names, unit="image", disable=quiet)):
        image, texts = open_image(image_path(folder, name)), list(boxes[name])
        # Asked of what the next picture shows and this one does not, a map that is led by the text has to go astray.
        other = [text for later in names[n + 1 :] + names[:n] for text in boxes[later] if text not in texts][:1]
        own = explain(models[THIS], image, texts + other, method)[1]
        own, astray = own[: len(texts)], own[len(texts) :]  # (C, H, W), (1 or 0, H, W)
        height, width = own.shape[1:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        maps = {"random point": torch.rand(own.shape, generator=generator) + 0 * own, "centre": -(x**2) - y**2 + 0 * own}  # NaN stays NaN
        maps |= {row: explain(model, image, texts, method)[1] for row, model in models.items() if row != THIS}
        maps |= ({"another text": astray.expand_as(own)} if other else {}) | {THIS: own}
        scaled = {text: [[side * width / image.width for side in box] for box in places] for text, places in boxes[name].items()}
        for row, heats in maps.items():
            hits = [judge(heat, scaled, text) for heat, text in zip(heats, texts)]
            pointed, found, alike = told.setdefault(row, ([], [], []))
            pointed.append([hit for hit, _ in hits])
            found.append([hit for _, hit in hits if hit is not None])
            alike += [rank_correlation(a, b) for a, b in zip(heats, own)]
    return {row: (interval(pointed), interval(found), sum(alike) / len(alike)) for row, (pointed, found, alike) in told.items()}


def read_boxes(path):
    """{image name: {text: [[x0, y0, x1, y1], ...]}} from a JSON file; ValueError names the first entry that is something else."""
    try:
        boxes = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise ValueError(f"{path}: not JSON in UTF-8 ({error}); python -m apps.draw_archive --boxes writes such a file") from None
    for name, texts in boxes.items() if isinstance(boxes, dict) else [("the whole", boxes)]:
        places = list(texts.values()) if isinstance(texts, dict) else []
        if not places or not all(isinstance(place, list) and place and all(map(_is_box, place)) for place in places):
            raise ValueError(f'{path}: {name}: {str(texts)[:80]}: expected {{"image.jpg": {{"a dog": [[x0, y0, x1, y1], ...]}}}} in pixels')
    return boxes


def _is_box(box):
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box)
    return numbers and 0 <= box[0] < box[2] and 0 <= box[1] < box[3]


def game(args, model):
    """Read the boxes, shuffle the weights of two more models from the top down, and print the table."""
    from models.vljepa import VLJEPA

    recipe, trained_on = model.state["recipe"], set(model.state["trained_on"])
    boxes = {name: texts for name, texts in read_boxes(args.pointing).items() if name not in trained_on}
    if not boxes:
        raise ValueError(f"{args.pointing}: none of its images is held out; {args.run} was trained on all of them")
    folder = Path(args.images or recipe["images"])
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images; name yours with --images DIR")
    models = {"predictor shuffled": None, "predictor and tower shuffled": None}
    for row in models:
        models[row] = VLJEPA.load(args.run, model.predictor.mean.device)
        models[row].text = model.text  # loaded once
        shuffle(models[row].predictor)
    for tower in models[row].vision.parts or [models[row].vision]:
        shuffle(tower.network)
        tower.fast = copy.deepcopy(tower.network).to(tower.dtype)  # which encode runs
    rows = pointing(models | {THIS: model}, boxes, folder, args.method, args.quiet)
    asked = sum(map(len, boxes.values()))
    print(f"{args.pointing}: {len(boxes)} held-out images, {asked} texts; {model.vision.name}, {args.run}, {args.method}")
    print(f"{'':30} | highest point on the thing, % | named thing the hottest, % | rank correlation")
    for row, (pointed, found, alike) in rows.items():
        cells = [f"{percent:8.1f} ({low:5.1f} - {high:5.1f})" for percent, low, high in (pointed, found)]
        print(f"{row:30} | {cells[0]:>29} | {cells[1]:>26} | {alike:16.2f}")


def picture(args, model):
    """Scores on stdout, the panels in a PNG."""
    from models.dataset import open_image

    image = open_image(args.image)
    scores, maps = explain(model, image, args.texts, args.method)
    panels(image, args.texts, scores, maps, args.out)
    for text, score in zip(args.texts, scores.tolist()):
        print(f"{score:8.4f}  {text}")
    print(f"heat maps in {args.out}")


def parse(argv):
    """The command line; a PNG that would be written over the image is refused."""
    p = argparse.ArgumentParser("python -m apps.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("image", nargs="?", metavar="IMAGE", help="image file")
    p.add_argument("texts", nargs="*", metavar="TEXT", help="what to look for; a panel each")
    p.add_argument("--out", default="attention.png", help="PNG to write (default %(default)s)", metavar="PNG")
    p.add_argument("--method", choices=METHODS, default=METHODS[0], help="occlusion: slow, and for every tower (default %(default)s)")
    p.add_argument("--pointing", metavar="JSON", help="play the pointing game over the held-out images of this file of boxes in pixels")
    p.add_argument("--images", metavar="DIR", help="folder of the images of --pointing (default: the one the run was trained on)")
    p.add_argument("--run", default="runs/default", help="run folder of train.py (its best.pt), or a checkpoint (default %(default)s)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    p.add_argument("--quiet", action=argparse.BooleanOptionalAction, default=False, help="no progress bar")
    args = p.parse_args(argv)
    if bool(args.image and args.texts) == bool(args.pointing):
        p.error("give IMAGE and one TEXT or more, or --pointing JSON alone")
    if not args.out.lower().endswith(".png"):
        p.error(f"--out {args.out}: give a name that ends in .png")
    if args.image and Path(args.out).exists() and Path(args.out).samefile(args.image):
        p.error(f"--out {args.out}: would write over the image")
    return args


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        from models.vljepa import VLJEPA

        model = VLJEPA.load(args.run, args.device)
        game(args, model) if args.pointing else picture(args, model)
    except (OSError, ValueError) as error:
        print(f"attention: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
