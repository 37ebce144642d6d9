"""Where did it look? The share of each place of an image in the score of a text, as a heat map.

    python -m apps.attention my_image_archive/10002456.jpg "people on a cable" "a bridge" --out map.png
    python -m apps.attention photo.jpg --ask "What color is the car?"      for a run trained with questions
    python -m tools.draw_archive --boxes boxes.json && python -m apps.attention --pointing boxes.json

The last line measures whether the maps are right, where the boxes of things are known
(apps/attention/pointing.py). A score is cosine(predictor(tower(pixels)), text). Integrated gradients
(Sundararajan et al. 2017) attribute it to the last places a tower has before it pools them: an
EfficientNet-Lite's maps, a CLIP transformer's patches before the last block."""

import sys
from pathlib import Path

from models import script


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
    if not all(text.strip() for text in [*args.texts, *(args.ask or ())]):
        p.error("a text is empty")
    if not args.out.lower().endswith(".png"):
        p.error(f"--out {args.out}: give a name that ends in .png")
    if args.image and Path(args.out).exists() and Path(args.out).samefile(args.image):
        p.error(f"--out {args.out}: this is the image itself; give another name")
    return args


def heat_maps(args, model):
    """Print the scores and draw the panels."""
    from apps.attention.panels import draw, of_questions, of_texts
    from models.dataset import open_image

    image = open_image(args.image)
    found = (
        of_questions(model, image, args.ask) if args.ask else of_texts(model, image, args.texts, args.method)
    )
    draw(image, found, args.out)
    print("\n".join(found.lines))
    print(f"heat maps in {args.out}")


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
