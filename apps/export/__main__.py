"""The image tower and the predictor of a run as one ONNX file, in float32 and in int8.

    python -m apps.export                               runs/default -> model.onnx, model.int8.onnx
    python -m apps.export --csv dev.csv --images DIR    compare them on these images
    python eval.py photo.jpg --labels "a dog" "a cat" --onnx model.int8.onnx

In the int8 file, the matrix products with constant weights are quantised by ONNX Runtime: most of a ViT, and
the predictor alone behind an EfficientNet. Convolutions stay float32."""

import os
import sys
import tempfile
import time
from argparse import BooleanOptionalAction
from pathlib import Path

from models.script import add_follow_links, add_quiet, parser, run


def parse(argv):
    """The command line."""
    p = parser("python -m apps.export", __doc__)
    p.add_argument("--run", default="runs/default", help="run folder of train.py (default %(default)s)")
    p.add_argument(
        "--out",
        type=Path,
        default="model.onnx",
        metavar="FILE",
        help="the float32 file, overwritten; int8 goes to FILE with .int8.onnx (default %(default)s)",
    )
    c = p.add_argument_group("comparison")
    c.add_argument("--csv", help="captions file (default: the images that the run held out)")
    c.add_argument("--images", help="folder of the CSV's images (default: that of the run)", metavar="DIR")
    c.add_argument("--image-column", help="the CSV's column of image names (default: as in training)")
    c.add_argument(
        "--caption-column",
        nargs="+",
        help="the CSV's column of captions, or several (default: as in training)",
        metavar="COLUMN",
    )
    c.add_argument(
        "--caption-lists",
        action=BooleanOptionalAction,
        help="read a list in a field as several captions (default: as in training)",
    )
    add_follow_links(c)
    c.add_argument(
        "--repeats",
        type=int,
        default=7,
        help="milliseconds are the median of so many calls (default %(default)s)",
    )
    c.add_argument(
        "--cache", default=".cache/features.sqlite", help="file that keeps the features (default %(default)s)"
    )
    add_quiet(p)
    args = p.parse_args(argv)
    if args.out.suffix != ".onnx":
        p.error(f"--out {args.out}: give a name that ends in .onnx")
    if args.repeats < 1:
        p.error(f"--repeats {args.repeats}: give 1 or more")
    return args


def export(args):
    """Write both files, whole or not at all, and print how they compare with torch."""
    from apps.export import graph
    from models.onnx_file import Exported
    from models.vljepa import VLJEPA

    model = VLJEPA.load(args.run)
    dataset, why_not = images_to_compare(args, model)  # before anything is written: a wrong --csv ends here
    args.out.parent.mkdir(parents=True, exist_ok=True)
    int8 = args.out.with_suffix(".int8.onnx")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=args.out.parent) as folder:
        parts = [Path(folder, path.name) for path in (args.out, int8)]
        graph.write(model, parts[0])
        difference = graph.check(model, Exported(parts[0]), args.out)
        graph.quantise(*parts)
        Exported(parts[1]).encode_image(graph.noise(model, 1))  # raises when it does not run
        for part, path in zip(parts, (args.out, int8)):
            os.replace(part, path)
    print(f"written: {args.out} (at most {difference:.1g} from torch) and {int8}")

    systems = {"torch": model, "onnx": Exported(args.out), "int8": Exported(int8)}
    towers = sum(part.path.stat().st_size for part in model.vision.parts)
    predictor = sum(value.numel() * value.element_size() for value in model.predictor.state_dict().values())
    sizes = [towers + predictor, args.out.stat().st_size, int8.stat().st_size]
    print_speed(args, systems, sizes, graph.noise(model, 8))
    if dataset is None:
        print(f"no retrieval: {why_not}; give images with captions: --csv FILE --images DIR")
    else:
        print_retrieval(args, systems, dataset)


def images_to_compare(args, model):
    """(VisionTextDataset, None), or (None, the reason why there is none). Images that were trained on are
    left out. ValueError when --csv names no others."""
    try:
        where = (args.csv, args.images, args.image_column, args.caption_column)
        options = dict(caption_lists=args.caption_lists, follow_links=args.follow_links)
        dataset = model.held_out(*where, **options)
        if len(dataset.image_names) < 2:
            raise ValueError(f"{dataset.csv_path}: 1 image that was not trained on, and retrieval needs 2")
        return dataset, None
    except (OSError, ValueError) as error:
        if args.csv:
            raise
        return None, str(error)


def print_speed(args, systems, sizes, pixels):
    """A table of megabytes and milliseconds. `pixels` (8, ...) are what is encoded."""
    import torch

    name, threads = systems["torch"].vision.name, torch.get_num_threads()
    print(f"{args.run}, {name}; torch {torch.__version__}, {threads} threads")
    print(f"{'':6}{'weights, MB':>14}{'ms per image, 1 at a time':>28}{'8 at a time':>14}")
    for (name, system), size in zip(systems.items(), sizes):
        single, several = (milliseconds(system, pixels[:n], args.repeats) for n in (1, 8))
        print(f"{name:6}{size / 1e6:14.1f}{single:28.1f}{several:14.1f}")


def milliseconds(system, pixels, repeats):
    """Milliseconds per image of `encode_image`: the median of `repeats` calls, after one to warm up."""
    system.encode_image(pixels)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        system.encode_image(pixels)
        seconds.append(time.perf_counter() - began)
    return 1000 * sorted(seconds)[repeats // 2] / len(pixels)


def print_retrieval(args, systems, dataset):
    """A retrieval table of each system over the data set, and of int8 minus torch."""
    from models import metrics
    from models.features import encode_archive
    from models.report import interval_rows, retrieval_header, retrieval_row

    text = systems["torch"].text
    predicted = {}
    for name, system in systems.items():
        features = encode_archive(dataset, system.vision, text, args.cache, quiet=args.quiet)
        predicted[name] = system.predict(features.image).cpu()  # (N, Dt)
    captions, image_of = features.text, features.image_of
    ranks = {name: metrics.ranks(rows, captions, image_of) for name, rows in predicted.items()}
    change, bounds = difference(ranks["torch"], ranks["int8"], image_of)
    print(f"{dataset.csv_path}: {len(captions)} captions of {len(predicted['torch'])} images not trained on")
    print(f"{retrieval_header()} | cosine to torch, mean and lowest")
    for name, rows in predicted.items():
        cosine = (rows * predicted["torch"]).sum(1)  # (N,)
        row = retrieval_row(name, metrics.summary(*ranks[name]))
        print(f"{row} | {cosine.mean():.5f}  {cosine.min():.5f}")
    print(retrieval_row("int8 minus torch", change))
    print(*interval_rows(bounds), sep="\n")
    lost = max(-100 * change[f"{way}_retrieval_recall@1"] for way in ("text", "image"))
    if lost > 1:
        print(f"int8 loses {lost:.1f} points of R@1 here, more than 1: use {args.out}")


def difference(ranks, others, image_of):
    """({key: others minus ranks}, {key: (low, high)}) for each recall, as fractions, with the 95 % interval
    of a paired bootstrap over images: both systems are counted over the same draws. `ranks` and `others` are
    what `metrics.ranks` gives."""
    import torch

    from models.metrics import KS, interval

    count = len(ranks[1])
    captions = image_of.bincount(minlength=count)
    change, bounds = {}, {}
    for k in KS:
        to_image, to_text = (
            (after < k).double() - (before < k).double() for before, after in zip(ranks, others)
        )
        of_image = torch.zeros(count, dtype=torch.double).index_add(0, image_of, to_image)  # (N,)
        for way, hits, trials in (("text", to_text, torch.ones(count)), ("image", of_image, captions)):
            key = f"{way}_retrieval_recall@{k}"
            change[key] = (hits.sum() / trials.sum()).item()
            bounds[key] = interval(hits, trials)
    return change, bounds


def main(argv=None):
    """The exit code, see `models.script`."""
    args = parse(argv)
    return run("export", lambda: export(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
