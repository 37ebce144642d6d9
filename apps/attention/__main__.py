"""Where did it look? The share of each place of an image in the score of a text, as a heat map.

    python -m apps.attention my_image_archive/10002456.jpg "people on a cable" "a bridge" --out map.png
    python -m apps.attention photo.jpg --ask "What color is the car?"      for a run trained with questions
    python -m tools.draw_archive --boxes boxes.json && python -m apps.attention --pointing boxes.json

The last line measures whether the maps are right, where the boxes of things are known
(apps/attention/pointing.py). A score is cosine(predictor(tower(pixels)), text). Integrated gradients
(Sundararajan et al. 2017) attribute it to the last places a tower has before it pools them: an
EfficientNet-Lite's maps, a CLIP transformer's patches before the last block."""

import math
import sys
import textwrap
from pathlib import Path

from models import script

UNITS = {  # of a map of `explain`, by method
    "gradients": "score from a hundredth of the view",
    "occlusion": "fall of the score when hidden",
}
ASKED = "share of the attention, per place"


def parse(argv):
    """The command line."""
    p = script.parser("python -m apps.attention", __doc__)
    add = p.add_argument
    add("image", nargs="?", metavar="IMAGE", help="image file")
    add("texts", nargs="*", metavar="TEXT", help="what to look for; one panel each")
    add("--ask", nargs="+", metavar="QUESTION", help="questions: where the predictor looks for the answers")
    add("--out", default="attention.png", help="PNG to write (default %(default)s)", metavar="PNG")
    method_help = "occlusion is slow, and works for every tower (default %(default)s)"
    add("--method", choices=("gradients", "occlusion"), default="gradients", help=method_help)
    pointing_help = "play the pointing game with the held-out images of this file of boxes in pixels"
    add("--pointing", metavar="JSON", help=pointing_help)
    add("--images", metavar="DIR", help="folder of the images of --pointing (default: the run's)")
    script.add_model_flags(p)
    args = p.parse_args(argv)
    if args.ask and (args.texts or not args.image):
        p.error("--ask QUESTION: give IMAGE before it, and no TEXT")
    if bool(args.image and (args.texts or args.ask)) == bool(args.pointing):
        p.error("give IMAGE and one TEXT or more, or IMAGE and --ask, or --pointing JSON alone")
    if not args.out.lower().endswith(".png"):
        p.error(f"--out {args.out}: give a name that ends in .png")
    if args.image and Path(args.out).exists() and Path(args.out).samefile(args.image):
        p.error(f"--out {args.out}: this is the image itself; give another name")
    return args


def heat_maps(args, model):
    """Print the scores and draw the panels."""
    from apps.attention.heat import attend, explain
    from models.dataset import open_image

    image = open_image(args.image)
    if args.ask:
        maps = attend(model, image, args.ask)
        lines = [f"{question} {answer}" for question, answer in zip(args.ask, model.answer(image, args.ask))]
        draw(image, lines, maps, args.out, ASKED)
    else:
        scores, maps = explain(model, image, args.texts, args.method)
        shown = list(zip(args.texts, scores.tolist()))
        titles = [f"{textwrap.fill(text, 44)}\n{score:.4f}" for text, score in shown]
        lines = [f"{score:8.4f}  {text}" for text, score in shown]
        if args.method == "gradients":
            sums = maps.nanmean((1, 2)).tolist()  # from all places together
            lines = [
                f"{line}   = {total:.4f} from its places + {score - total:.4f} without them"
                for line, (_, score), total in zip(lines, shown, sums)
            ]
            maps = maps / 100
        draw(image, titles, maps, args.out, UNITS[args.method])
    print("\n".join(lines))
    print(f"heat maps in {args.out}")


def draw(image, titles, maps, path, unit):
    """Write a PNG: the image, then in pale grey one panel per title with its map (H, W).

    Red places are above 0, blue ones below. All panels share one scale, labelled `unit`. What no tower saw is
    veiled."""
    import torch
    from matplotlib.figure import Figure
    from PIL import Image

    from models.files import replacing

    image = image.resize((maps.shape[2], maps.shape[1]))
    grey = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.4)
    veil = torch.where(maps[0].isnan(), 0.6, math.nan)
    top = float(maps.nan_to_num().abs().max()) or 1.0
    tall = min(8.0, max(1.0, 3.1 * image.height / image.width))  # inches
    figure = Figure(figsize=(3.3 * (len(titles) + 1) + 0.7, tall + 0.6), layout="constrained")
    axes = figure.subplots(1, len(titles) + 1)
    axes[0].imshow(image)
    axes[0].set_xlabel("the image")
    for axis, title, heat in zip(axes[1:], titles, maps):
        axis.imshow(grey)
        opacity = (1.5 * heat.abs().nan_to_num() / top).clamp(0, 0.8)
        shown = axis.imshow(heat, cmap="RdBu_r", vmin=-top, vmax=top, alpha=opacity)
        axis.set_xlabel(title, parse_math=False)
    for axis in axes:
        axis.imshow(veil, cmap="gray", vmin=0, vmax=1, alpha=0.85)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=list(axes), label=unit, shrink=0.8)
    with replacing(path) as new:
        figure.savefig(new, dpi=100, format="png")


def game(args, model):
    """Play the pointing game, with two more models whose weights are shuffled from the top down, and print
    the table."""
    from apps.attention import pointing
    from models.vljepa import VLJEPA

    boxes = pointing.read_boxes(args.pointing)
    boxes = {name: texts for name, texts in boxes.items() if name not in model.trained_on}
    if not boxes:
        raise ValueError(f"{args.pointing}: {args.run} was trained on all of its images; none is held out")
    folder = Path(args.images or model.recipe["images"])
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of images; name yours with --images DIR")
    models = {}
    for row in ("predictor shuffled", "predictor and tower shuffled"):
        models[row] = VLJEPA.load(args.run, model.device)
        models[row].text = model.text  # loaded once
        pointing.shuffle(models[row].predictor)
    pointing.shuffle_tower(models[row].vision)
    models[pointing.THIS] = model
    rows = pointing.pointing(models, boxes, folder, args.method, args.quiet)
    texts = sum(map(len, boxes.values()))
    setting = f"{model.vision.name}, {args.run}, {args.method}"
    print(f"{args.pointing}: {len(boxes)} held-out images, {texts} texts; {setting}")
    print(f"{'':30} | highest point on the thing, % | named thing the hottest, % | rank correlation")
    for name, row in rows.items():
        pointed, found = (f"{hits:8.1f} ({low:5.1f} - {high:5.1f})" for hits, low, high in row[:2])
        print(f"{name:30} | {pointed:>29} | {found:>26} | {row.alike:16.2f}")


def work(args):
    """Load the model and run the command."""
    from models.vljepa import VLJEPA

    model = VLJEPA.load(args.run, args.device)
    if args.pointing:
        game(args, model)
    else:
        heat_maps(args, model)


def main(argv=None):
    """Return the exit code, see models.script."""
    args = parse(argv)
    return script.run("attention", lambda: work(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
