"""Where did it look? The share of each place of a picture in the score of a text, as a heat map.

    python -m apps.attention my_image_archive/10002456.jpg "people hanging from a cable" "a kitchen" --out map.png
    python -m tools.draw_archive --boxes boxes.json && python -m apps.attention --pointing boxes.json

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

THIS = "this model"


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
        shown = axis.imshow(
            heat,
            cmap="RdBu_r",
            vmin=-top,
            vmax=top,
            alpha=(1.5 * heat.abs().nan_to_num() / top).clamp(0, 0.8),
        )
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
    rivals = [
        mean for other, mean in means.items() if other != text and not math.isnan(mean)
    ]  # NaN: what was cut off competes with nobody
    return pointed, all(means[text] > mean for mean in rivals) and not math.isnan(means[text]) if len(
        boxes
    ) > 1 else None


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

    from apps.attention.heat import explain
    from models.dataset import image_path, open_image

    generator, names, told = torch.Generator().manual_seed(0), sorted(boxes), {}
    for n, name in enumerate(tqdm(names, unit="image", disable=quiet)):
        image, texts = open_image(image_path(folder, name)), list(boxes[name])
        # Asked of what the next picture shows and this one does not, a map that is led by the text has to go astray.
        other = [text for later in names[n + 1 :] + names[:n] for text in boxes[later] if text not in texts][
            :1
        ]
        own = explain(models[THIS], image, texts + other, method)[1]
        own, astray = own[: len(texts)], own[len(texts) :]  # (C, H, W), (1 or 0, H, W)
        height, width = own.shape[1:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        maps = {
            "random point": torch.rand(own.shape, generator=generator) + 0 * own,
            "centre": -(x**2) - y**2 + 0 * own,
        }  # NaN stays NaN
        maps |= {row: explain(model, image, texts, method)[1] for row, model in models.items() if row != THIS}
        maps |= ({"another text": astray.expand_as(own)} if other else {}) | {THIS: own}
        scaled = {
            text: [[side * width / image.width for side in box] for box in places]
            for text, places in boxes[name].items()
        }
        for row, heats in maps.items():
            hits = [judge(heat, scaled, text) for heat, text in zip(heats, texts)]
            pointed, found, alike = told.setdefault(row, ([], [], []))
            pointed.append([hit for hit, _ in hits])
            found.append([hit for _, hit in hits if hit is not None])
            alike += [rank_correlation(a, b) for a, b in zip(heats, own)]
    return {
        row: (interval(pointed), interval(found), sum(alike) / len(alike))
        for row, (pointed, found, alike) in told.items()
    }


def read_boxes(path):
    """{image name: {text: [[x0, y0, x1, y1], ...]}} from a JSON file; ValueError names the first entry that is something else."""
    try:
        boxes = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both
        raise ValueError(
            f"{path}: not JSON in UTF-8 ({error}); python -m tools.draw_archive --boxes writes such a file"
        ) from None
    for name, texts in boxes.items() if isinstance(boxes, dict) else [("the whole", boxes)]:
        places = list(texts.values()) if isinstance(texts, dict) else []
        if not places or not all(
            isinstance(place, list) and place and all(map(_is_box, place)) for place in places
        ):
            raise ValueError(
                f'{path}: {name}: {str(texts)[:80]}: expected {{"image.jpg": {{"a dog": [[x0, y0, x1, y1], ...]}}}} in pixels'
            )
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
        raise ValueError(
            f"{args.pointing}: none of its images is held out; {args.run} was trained on all of them"
        )
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
    print(
        f"{args.pointing}: {len(boxes)} held-out images, {asked} texts; {model.vision.name}, {args.run}, {args.method}"
    )
    print(f"{'':30} | highest point on the thing, % | named thing the hottest, % | rank correlation")
    for row, (pointed, found, alike) in rows.items():
        cells = [f"{percent:8.1f} ({low:5.1f} - {high:5.1f})" for percent, low, high in (pointed, found)]
        print(f"{row:30} | {cells[0]:>29} | {cells[1]:>26} | {alike:16.2f}")


def picture(args, model):
    """Scores on stdout, the panels in a PNG."""
    from apps.attention.heat import explain
    from models.dataset import open_image

    image = open_image(args.image)
    scores, maps = explain(model, image, args.texts, args.method)
    panels(image, args.texts, scores, maps, args.out)
    for text, score in zip(args.texts, scores.tolist()):
        print(f"{score:8.4f}  {text}")
    print(f"heat maps in {args.out}")


def parse(argv):
    """The command line; a PNG that would be written over the image is refused."""
    p = argparse.ArgumentParser(
        "python -m apps.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("image", nargs="?", metavar="IMAGE", help="image file")
    p.add_argument("texts", nargs="*", metavar="TEXT", help="what to look for; a panel each")
    p.add_argument("--out", default="attention.png", help="PNG to write (default %(default)s)", metavar="PNG")
    p.add_argument(
        "--method",
        choices=("gradients", "occlusion"),
        default="gradients",
        help="occlusion: slow, and for every tower (default %(default)s)",
    )
    p.add_argument(
        "--pointing",
        metavar="JSON",
        help="play the pointing game over the held-out images of this file of boxes in pixels",
    )
    p.add_argument(
        "--images",
        metavar="DIR",
        help="folder of the images of --pointing (default: the one the run was trained on)",
    )
    p.add_argument(
        "--run",
        default="runs/default",
        help="run folder of train.py (its best.pt), or a checkpoint (default %(default)s)",
    )
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
