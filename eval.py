"""Ask a trained predictor.

python eval.py                                                   the default image against three labels
python eval.py photo.jpg --labels "a dog" "a cat"                your image, your labels
python eval.py --csv caption.csv --held-out                      retrieval both ways over a captions CSV
python eval.py --classes DIR                                     zero-shot classification of a folder of class folders
python eval.py photo.jpg --onnx model.int8.onnx                  any of these from a file of `python -m apps.export`
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

IMAGE = "my_image_archive/10002456.jpg"
LABELS = ["persons hanging bridge and cable", "person stirring pan", "person washing dishes"]


def parse(argv):
    """The command line; an image behind a bare --json would be written over, so that is refused."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    p.add_argument(
        "image",
        nargs="*",
        default=[IMAGE],
        help=f"image files or folders of them (default {IMAGE})",
        metavar="IMAGE",
    )
    p.add_argument("--labels", nargs="+", default=LABELS, help="what to choose from", metavar="LABEL")
    p.add_argument("--labels-file", help="a text file of labels, one a line")
    p.add_argument(
        "--templates",
        action=flag,
        help="put labels into prompt templates and average (default: for --classes only)",
    )
    model = p.add_mutually_exclusive_group()
    model.add_argument(
        "--run",
        default="runs/default",
        help="run folder of train.py (its best.pt), or a checkpoint (default %(default)s)",
    )
    model.add_argument(
        "--onnx",
        help="image side from this file of apps.export, run by ONNX Runtime on the CPU",
        metavar="FILE",
    )
    p.add_argument("--csv", help="print the retrieval table of this captions file")
    p.add_argument(
        "--images", help="folder of the CSV's images (default: the one the run was trained on)", metavar="DIR"
    )
    p.add_argument(
        "--image-column",
        default="image_name",
        help="name of the CSV's column of image names (default %(default)s)",
    )
    p.add_argument(
        "--caption-column",
        default="comment",
        help="name of the CSV's column of captions (default %(default)s)",
    )
    p.add_argument(
        "--held-out", action=flag, default=False, help="leave out the images the run was trained on"
    )
    p.add_argument(
        "--skip-bad", action=flag, default=False, help="leave out images and lines that can't be used"
    )
    p.add_argument(
        "--hub-correction",
        action=flag,
        default=False,
        help="add a row with hubness taken out, the training set as the bank",
    )
    p.add_argument(
        "--classes", help="folder of class folders: zero-shot accuracy and a confusion matrix", metavar="DIR"
    )
    p.add_argument(
        "--classnames", help="a text file `folder<TAB>name` for --classes (default: the folders' own names)"
    )
    p.add_argument(
        "--json",
        nargs="?",
        const="-",
        help="write the result as JSON to this file; without a name, on stdout",
        metavar="FILE",
    )
    p.add_argument(
        "--cache",
        default=".cache/features.sqlite",
        help="file that keeps the towers' outputs (default %(default)s)",
    )
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    p.add_argument("--quiet", action=flag, default=False, help="no progress bars")
    args = p.parse_args(argv)
    if args.json not in (None, "-") and not args.json.endswith(".json"):
        p.error(
            f"--json {args.json}: would write over that file; give a name that ends in .json, or put --json last"
        )
    if args.onnx and (args.held_out or args.hub_correction):
        p.error(
            "--onnx: the file does not name the images it was trained on, which --held-out and --hub-correction need; take --run"
        )
    args.run = args.onnx or args.run
    return args


def expand(paths):
    """Files as they are, folders as the files in them, sorted."""
    found = []
    for path in map(Path, paths):
        found += sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no files in it")
    return found


def answer(args, model):
    """Prediction and scores of each image over the labels."""
    from models.zeroshot import PLAIN, TEMPLATES, class_embeddings, classify

    labels = args.labels
    if args.labels_file:
        labels = [
            line.strip()
            for line in Path(args.labels_file).read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    if not labels:
        raise ValueError(f"{args.labels_file}: no labels in it; write one a line")
    classes = class_embeddings(model.encode_text, labels, TEMPLATES if args.templates else PLAIN)  # (C, Dt)
    model.text.release()  # the image tower takes its place in memory
    results = []
    paths = expand(args.image)
    for path in paths:
        scores = classify(model.encode_image(path), classes)[0].tolist()  # (C,)
        best = max(range(len(labels)), key=scores.__getitem__)
        results.append(dict(image=str(path), prediction=labels[best], scores=dict(zip(labels, scores))))
        if args.json == "-":
            continue
        if len(paths) > 1:
            print(path)
        print(f"Prediction: {labels[best]}")
        print(f"Scores: {[round(score, 4) for score in scores]}")
        for score, label in sorted(zip(scores, labels), reverse=True):
            print(f"  {score:7.4f}  {label}")
    return results


def features_of(args, model, dataset):
    """Both towers' outputs for a data set, from the cache where it has them."""
    from models.features import encode_archive

    return encode_archive(dataset, model.vision, model.text, args.cache, quiet=args.quiet)


def retrieval(args, model):
    """The retrieval table of a CSV: chance, baselines, this model with its 95 % interval."""
    import torch
    import torch.nn.functional as F

    from models import metrics
    from models.dataset import VisionTextDataset
    from models.predictor import Predictor

    recipe, trained_on = model.state["recipe"], set(model.state["trained_on"])
    if not trained_on and (args.held_out or args.hub_correction):
        raise ValueError(
            f"{args.run}: a shared model does not name the images it was trained on; take the run folder of train.py"
        )
    images = args.images or recipe["images"]
    dataset = VisionTextDataset(args.csv, None, images, args.image_column, args.caption_column, args.skip_bad)
    seen = len(trained_on & set(dataset.image_names))
    if args.held_out:
        dataset.keep(set(dataset.image_names) - trained_on)
    elif not trained_on:
        print(
            f"note: {args.run} does not name the images it was trained on; any of these that were among them flatter it"
        )
    elif seen:
        print(
            f"note: {seen} of these {len(dataset.image_names)} images were trained on, which flatters; add --held-out to leave them out"
        )
    features = features_of(args, model, dataset)
    predicted, text, image_of = model.predict(features.image).cpu(), features.text, features.image_of
    rows = {"chance": metrics.chance(image_of, len(predicted))}
    if not args.onnx:  # such a file gives the trained predictor's output and not the tower's
        torch.manual_seed(0)
        untrained = Predictor(**model.state["config"]).eval()
        if recipe["standardise"]:
            untrained.standardise(features.image)
        with torch.no_grad():
            rows["untrained predictor"] = metrics.retrieval(untrained(features.image), text, image_of)
    rows["mean caption"] = metrics.retrieval(
        F.normalize(text.mean(0, keepdim=True), dim=-1).expand(len(predicted), -1), text, image_of
    )
    own = model.vision.encode_text(dataset.captions)
    if own is not None:
        rows[f"{model.vision.name}, zero-shot"] = metrics.retrieval(features.image, own.cpu(), image_of)
    found = metrics.ranks(predicted, text, image_of)
    rows["this model"], interval = metrics.summary(*found), metrics.intervals(*found, image_of)
    if args.hub_correction:
        bank = VisionTextDataset(
            recipe["csv"],
            None,
            recipe["images"],
            recipe["image_column"],
            recipe["caption_column"],
            recipe["skip_bad"],
            only=trained_on,
        )
        bank = features_of(args, model, bank)
        banks = dict(image_bank=model.predict(bank.image).cpu(), text_bank=bank.text)
        rows["this model, hub-corrected"] = metrics.retrieval(predicted, text, image_of, **banks)

    def line(name, m):
        ways = (
            "".join(f"{100 * m[f'{way}_recall@{k}']:7.1f}" for k in metrics.KS)
            + f"{m.get(f'{way}_median_rank', ''):>9}"
            for way in ("text_retrieval", "image_retrieval")
        )
        print(f"{name:30} | {' | '.join(ways)}")

    print(f"{args.csv}: {len(predicted)} images, {len(text)} captions; {model.vision.name}, {args.run}")
    print(f"{'':30} | image to text R@1/5/10, median | text to image R@1/5/10, median")
    for name, m in rows.items():
        line(name, m)
        if name == "this model":
            line("  95 % interval, lower", {key: low for key, (low, high) in interval.items()})
            line("  95 % interval, upper", {key: high for key, (low, high) in interval.items()})
    return dict(
        dataset=Path(args.csv).stem,
        model=model.vision.name,
        pretrained=str(args.run),
        task="zeroshot_retrieval",
        language="en",
        metrics=rows["this model"],
        interval_95=interval,
        rows=rows,
        images=len(predicted),
        captions=len(text),
    )


def classification(args, model):
    """Zero-shot accuracy over a folder of class folders."""
    import torch

    from models import metrics
    from models import report as plots
    from models.dataset import Row, VisionTextDataset
    from models.zeroshot import PLAIN, TEMPLATES, class_embeddings, classify

    root = Path(args.classes)
    folders = sorted(f.name for f in root.iterdir() if f.is_dir()) if root.is_dir() else []
    if len(folders) < 2:
        raise ValueError(
            f"{root}: {len(folders)} class folders in it; --classes wants a folder that holds one folder of images a class"
        )
    names = {folder: folder.replace("_", " ") for folder in folders}
    if args.classnames:
        lines = [
            line.split("\t")
            for line in Path(args.classnames).read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
        names |= {line[0].strip(): line[-1].strip() for line in lines}
    rows = [
        Row(f"{folder}/{f.name}", names[folder], 0)
        for folder in folders
        for f in sorted((root / folder).iterdir())
        if f.is_file()
    ]
    if not rows:
        raise ValueError(f"{root}: its class folders hold no images")
    dataset = VisionTextDataset(root, None, root, skip_bad=args.skip_bad, rows=rows)
    predicted = model.predict(features_of(args, model, dataset).image)  # (N, Dt)
    truth = torch.tensor([folders.index(name.split("/")[0]) for name in dataset.image_names])
    templates = PLAIN if args.templates is False else TEMPLATES
    scores = classify(
        predicted, class_embeddings(model.encode_text, [names[f] for f in folders], templates)
    )  # (N, C)
    m, confusion = metrics.classification(scores.cpu(), truth)
    path = Path(args.run if Path(args.run).is_dir() else ".", "confusion.png")
    plots.confusion(confusion, [names[f] for f in folders], path)
    print(
        f"{root}: {len(truth)} images, {len(folders)} classes, {len(templates)} templates; confusion matrix in {path}"
    )
    for key, value in m.items():
        print(
            f"{key:22} {100 * value:6.1f} %   (chance {100 * min(5 if key == 'acc5' else 1, len(folders)) / len(folders):.1f} %)"
        )
    return dict(
        dataset=root.name,
        model=model.vision.name,
        pretrained=str(args.run),
        task="zeroshot_classification",
        language="en",
        metrics=m,
    )


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        from models.onnx_file import Exported
        from models.vljepa import VLJEPA

        model = (Exported if args.onnx else VLJEPA.load)(args.run, args.device)
        with redirect_stdout(sys.stderr if args.json == "-" else sys.stdout):
            result = (
                retrieval(args, model)
                if args.csv
                else classification(args, model)
                if args.classes
                else answer(args, model)
            )
        if args.json == "-":
            print(json.dumps(result, indent=1))
        elif args.json:
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    except (OSError, ValueError) as error:
        where = (
            f", writing {args.json or 'the answer'}"
            if isinstance(error, OSError) and error.errno and not error.filename
            else ""
        )
        print(f"eval.py: {error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
