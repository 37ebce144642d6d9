"""Ask a trained predictor.

    python eval.py                                      the default image against three labels
    python eval.py photo.jpg --labels "a dog" "a cat"   your image, your labels
    python eval.py --csv caption.csv --held-out         retrieval both ways over a captions CSV
    python eval.py --classes DIR                        zero-shot classification of class folders
    python eval.py photo.jpg --ask "What color is it?"  answers, from a run trained with --questions
    python eval.py --questions questions.csv            how often the answers are right
    python eval.py photo.jpg --onnx model.int8.onnx     labels and retrieval from a file of apps.export

Each takes --json FILE for the result as JSON.
"""

import argparse
import json
import math
import sys
from collections import Counter
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from models import script

IMAGE = "my_image_archive/10002456.jpg"
UNLIKE = 0.6  # cosine of a question with the nearest one of training below which a note is printed
LABELS = ["persons hanging bridge and cable", "person stirring pan", "person washing dishes"]


def parse(argv):
    """The command line. An image behind a bare --json is refused, since it would be overwritten."""
    p = script.parser("eval.py", __doc__)
    switch = argparse.BooleanOptionalAction
    p.add_argument(
        "image", nargs="*", default=[IMAGE], help=f"images, videos or folders of them (default {IMAGE})"
    )
    script.add_folder_flags(p)
    script.add_frames(p)
    add = p.add_argument_group("labels").add_argument
    add("--labels", nargs="+", default=LABELS, help="what to choose from", metavar="LABEL")
    add("--labels-file", help="a text file of labels, one per line", metavar="FILE")
    add(
        "--templates",
        action=switch,
        help="put labels into prompt templates and average (default: for --classes only)",
    )
    p.add_argument(
        "--reject",
        nargs="?",
        type=float,
        const=math.nan,
        metavar="SCORE",
        help="say none of these where the best label or answer scores less (without SCORE: than the score "
        "from which nine in ten held-out pairs of image and caption, or answers, are right)",
    )
    add("--classes", help="folder of class folders: zero-shot accuracy and a confusion matrix", metavar="DIR")
    add("--classnames", help="a text file of lines `folder name` for --classes", metavar="FILE")
    add = p.add_argument_group("questions").add_argument
    add("--ask", nargs="+", help="questions about each image", metavar="QUESTION")
    add(
        "--answers",
        nargs="+",
        help="what to choose from (default: all answers of training)",
        metavar="ANSWER",
    )
    add("--questions", help="print the accuracy over this questions file", metavar="FILE")
    add = p.add_argument_group("retrieval").add_argument
    add("--csv", help="print the retrieval table of this captions file")
    add(
        "--images", help="folder of the CSV's images (default: the one the run was trained on)", metavar="DIR"
    )
    add("--image-column", default="image_name", help="column of image names (default %(default)s)")
    column_help = "column of captions, or several (default comment)"
    add("--caption-column", nargs="+", default=["comment"], metavar="COLUMN", help=column_help)
    add("--caption-lists", action=switch, default=False, help="read a list in a field as several captions")
    add("--held-out", action=switch, default=False, help="leave out the images the run was trained on")
    add("--skip-bad", action=switch, default=False, help="leave out images and lines that cannot be used")
    add(
        "--hub-correction",
        action=switch,
        default=False,
        help="add a row corrected with the training set as the bank",
    )
    group = p.add_argument_group("model")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--run", default="runs/default", help="run folder, or a shared model (default %(default)s)"
    )
    one.add_argument("--onnx", help="an exported image side, run by ONNX Runtime on the CPU", metavar="FILE")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    group.add_argument("--cache", default=".cache/features.sqlite", help="file of the towers' outputs")
    script.add_quiet(group)
    group.add_argument(
        "--json",
        nargs="?",
        const="-",
        help="write the result as JSON; without FILE to stdout",
        metavar="FILE",
    )
    args = p.parse_args(argv)
    if args.json not in (None, "-") and not args.json.endswith(".json"):
        p.error(
            f"--json {args.json}: overwrites that file; give a name that ends in .json, or put --json last"
        )
    for flag in ("labels", "ask", "answers"):
        for value in getattr(args, flag) or ():
            if not value.strip():
                p.error(f"--{flag}: one of them is empty")
            if Path(value).is_file():
                p.error(f"--{flag} {value}: this is a file; put the images before --{flag}")
    if args.reject and abs(args.reject) > 1:
        p.error(f"--reject {args.reject:g}: a score is a cosine, from -1 to 1")
    if args.onnx and (args.ask or args.questions):
        p.error("--onnx: an exported file answers no questions; take --run")
    if args.onnx and (args.held_out or args.hub_correction):
        p.error("--onnx: names no training images, which --held-out and --hub-correction need; take --run")
    return args


def answer(args, model):
    """Prediction and scores of each image over the labels."""
    from models.dataset import expand, read_labels
    from models.rejection import NONE
    from models.zeroshot import PLAIN, TEMPLATES, class_embeddings, classify

    labels = read_labels(args.labels_file) if args.labels_file else args.labels
    classes = class_embeddings(model.encode_text, labels, TEMPLATES if args.templates else PLAIN)  # (C, Dt)
    model.text.release()  # makes room for the image tower
    least = least_of(args, model, "reject")
    paths, results = expand(args.image, args.exclude, args.follow_links), []
    embed = partial(model.encode_image, frames=args.frames)
    for path, embedding in script.answers("eval.py", paths, embed, results):  # (1, Dt)
        scores = classify(embedding, classes)[0].tolist()  # C scores
        best = max(range(len(labels)), key=scores.__getitem__)
        found = labels[best] if scores[best] >= least else NONE
        results.append(dict(image=str(path), prediction=found, scores=dict(zip(labels, scores))))
        if len(paths) > 1:
            print(path)
        print(f"Prediction: {found}")
        print(f"Scores: {[round(score, 4) for score in scores]}")
        for score, label in sorted(zip(scores, labels), reverse=True):
            print(f"  {score:7.4f}  {label}")
    if labels == LABELS and args.image != [IMAGE]:
        print("note: these labels are those of the demo image; name yours with --labels")
    return results


def least_of(args, model, key):
    """The score below which the best candidate is rejected: minus infinity without --reject."""
    from models.rejection import NONE, WHAT, least_score

    if args.reject is None:
        return -math.inf
    if not math.isnan(args.reject):
        return args.reject
    least = least_score(model.record, key, args.run)
    print(f"--reject: {NONE} below {least:.2f}; nine in ten held-out {WHAT[key]} from there on are right")
    return least


def ask(args, model):
    """The nearest answer to each question about each image, and the five best."""
    from models.dataset import expand
    from models.rejection import NONE

    candidates = list(dict.fromkeys(args.answers)) if args.answers else None
    paths, results = expand(args.image, args.exclude, args.follow_links), []
    model.check_answers()
    familiar = model.familiarity(args.ask).tolist()
    least = least_of(args, model, "reject_answers")

    def scores_of(path):
        return model.answer_scores(path, args.ask, candidates, args.frames)[0]  # (K, A)

    for path, scores in script.answers("eval.py", paths, scores_of, results):
        names = candidates or list(model.config["answers"])
        for question, row, cosine in zip(args.ask, scores, familiar):
            best = row.argsort(descending=True, stable=True)[:5].tolist()
            ranked = {names[i]: row[i].item() for i in best}
            found = names[best[0]] if row[best[0]] >= least else NONE
            results.append(dict(image=str(path), question=question, answer=found, scores=ranked))
            if len(paths) > 1 or len(args.ask) > 1:
                print(f"{path}: {question}")
            print(f"Answer: {found}")
            for answer, score in ranked.items():
                print(f"  {score:7.4f}  {answer}")
            if cosine < UNLIKE:
                print(f"note: unlike every question it was trained on (cosine {cosine:.2f} with the nearest)")
    return results


def questions(args, model):
    """The accuracy over a questions file: baselines, and this model with its 95 % interval."""
    from models import answering, report
    from models.dataset import VisionTextDataset, read_questions
    from models.features import encode_texts

    model.check_answers()
    left_out = Counter()
    options = dict(skip_bad=args.skip_bad, left_out=left_out)
    read = read_questions(args.questions, args.image_column, **options)
    rows = [row for row in read if row.question]
    if not rows:
        raise ValueError(f"{args.questions}: no questions in its {len(read)} rows, only captions")
    if len(rows) < len(read):
        print(f"note: {len(read) - len(rows)} of {len(read)} rows are captions, which are not scored here")
    left_out["captions"] = len(read) - len(rows)
    images = images_of(args, model)
    options |= dict(follow_links=args.follow_links)
    dataset = VisionTextDataset(args.questions, None, images, rows=rows, **options)
    leave_out_training_images(args, model, dataset, args.questions)
    features = encode(args, model, dataset, places=True)
    bank = list(model.config["answers"])
    answer = encode_texts(bank, model.text, args.cache, quiet=True).to(model.device)
    training_rows = model.training_questions() if model.knows_training_images else []
    chosen = answering.choices(model, features, bank, answer, training_rows)  # {row: Q answers}
    asked = features.questions
    right = {row: answering.is_right(asked, found) for row, found in chosen.items()}
    found = {row: answering.accuracy(hits, asked) for row, hits in right.items()}
    interval = answering.intervals(right["this model"], asked)
    print(f"{args.questions}: {len(asked.answers)} questions about {len(features.image)} images; {args.run}")
    print(report.answer_table(found, interval, asked.types))
    found["this model"] |= answering.official(asked, chosen["this model"])
    result = dict(
        task="visual_question_answering", metrics=found["this model"], rows=found, interval_95=interval
    )
    return described(args, model, args.questions, result)


def retrieval(args, model):
    """The retrieval table of a CSV: chance, baselines, and this model with its 95 % interval."""
    from models import metrics, rejection, report
    from models import retrieval as table
    from models.dataset import VisionTextDataset

    images = images_of(args, model)
    columns = (args.image_column, args.caption_column)
    options = dict(skip_bad=args.skip_bad, caption_lists=args.caption_lists, follow_links=args.follow_links)
    dataset = VisionTextDataset(args.csv, None, images, *columns, **options)
    leave_out_training_images(args, model, dataset, args.csv)
    features = encode(args, model, dataset)
    predicted, image_of = model.predict(features.image).cpu(), features.image_of
    text = model.project_text(features.text).cpu()
    ranks = metrics.ranks(predicted, text, image_of)
    intervals = metrics.intervals(*ranks, image_of)
    rows = table.baselines(model, features, dataset.captions) | {"this model": metrics.summary(*ranks)}
    if args.hub_correction:
        banks = table.banks(model, args.cache, args.quiet)
        rows["this model, hub-corrected"] = metrics.retrieval(predicted, text, image_of, **banks)

    name = args.onnx or args.run
    print(f"{args.csv}: {len(predicted)} images, {len(text)} captions; {model.vision.name}, {name}")
    print(report.retrieval_header())
    for row, found in rows.items():
        print(report.retrieval_row(row, found))
        if row == "this model" and len(predicted) >= metrics.FEW:
            print("\n".join(report.interval_rows(intervals)))
    if len(predicted) < metrics.FEW:
        print(f"note: {len(predicted)} images are too few to say how good it is; score {metrics.FEW} or more")
    result = dict(task="zeroshot_retrieval", metrics=rows["this model"], interval_95=intervals, rows=rows)
    if threshold := rejection.threshold_of(model.record, "reject"):
        kept = rejection.kept(threshold, *rejection.pairs(predicted, text, image_of))
        result |= dict(reject=kept)
        found = f"{kept['kept']} score {threshold:.2f} or more, and {kept['right']} of these belong together"
        print(f"--reject: of {kept['of']} pairs of a caption with its own or another image {found}")
    return described(args, model, args.csv, result) | dict(images=len(predicted), captions=len(text))


def encode(args, model, dataset, **options):
    """The Features of a VisionTextDataset."""
    from models.features import encode_archive

    options |= dict(quiet=args.quiet, frames=args.frames or model.frames, in_order=model.reads_order)
    return encode_archive(dataset, model.vision, model.text, args.cache, **options)


def images_of(args, model):
    """The folder of the images to score: --images, else that of the run."""
    images = args.images or model.recipe.get("images")
    if not images:
        raise ValueError(f"{args.run}: a shared model has no folder of images; name yours with --images DIR")
    return images


def leave_out_training_images(args, model, dataset, file):
    """With --held-out keep the images that the model was not trained on, else print a note when the table
    flatters it, or may."""
    if args.held_out:
        dataset.keep(set(dataset.image_names) - model.trained_on, "of images it was trained on")
    elif args.onnx or not model.knows_training_images:
        name = args.onnx or args.run
        print(f"note: {name} does not name its training images; any of them in {file} flatter it")
    elif seen := len(model.trained_on & set(dataset.image_names)):
        of = f"{seen} of these {len(dataset.image_names)} images"
        print(f"note: {of} were trained on, which flatters; add --held-out to leave them out")


def classification(args, model):
    """Zero-shot accuracy over a folder of class folders."""
    import torch

    from models import metrics, report
    from models.zeroshot import PLAIN, TEMPLATES, class_embeddings, classify

    names, dataset = class_folders(args)
    features = encode(args, model, dataset)
    predicted = model.predict(features.image)  # (N, Dt)
    folders = list(names)
    truth = torch.tensor([folders.index(name.split("/")[0]) for name in dataset.image_names])
    templates = PLAIN if args.templates is False else TEMPLATES
    classes = class_embeddings(model.encode_text, list(names.values()), templates)  # (C, Dt)
    found, confusion = metrics.classification(classify(predicted, classes).cpu(), truth)
    path = Path("confusion.png") if args.onnx else Path(args.run, "confusion.png")
    report.confusion(confusion, list(names.values()), path)
    counts = f"{len(truth)} images, {len(names)} classes, {len(templates)} templates"
    print(f"{args.classes}: {counts}; confusion matrix in {path}")
    for key, value in found.items():
        chance = min(5 if key == "acc5" else 1, len(names)) / len(names)
        print(f"{key:22} {100 * value:6.1f} %   (chance {100 * chance:.1f} %)")
    return described(args, model, args.classes, dict(task="zeroshot_classification", metrics=found))


def class_folders(args):
    """({folder: class name}, the VisionTextDataset of their images, each captioned by its class)."""
    from models.dataset import Row, VisionTextDataset, by_class, read_class_names

    files = by_class(args.classes, args.exclude, args.follow_links)
    names = {folder: folder.replace("_", " ") for folder in files}
    if args.classnames:
        names |= read_class_names(args.classnames, list(files))
    rows = [Row(path, "", names[folder], 0) for folder, paths in files.items() for path in paths]
    options = dict(skip_bad=args.skip_bad, rows=rows, follow_links=args.follow_links)
    return names, VisionTextDataset(args.classes, None, args.classes, **options)


def described(args, model, data, result):
    """`result` with what it was measured on and with, under the keys of CLIP_benchmark."""
    source = dict(
        dataset=Path(data).stem, model=model.vision.name, pretrained=str(args.onnx or args.run), language="en"
    )
    return source | result


def evaluate(args):
    """Load the model, answer, and write JSON where asked. Returns the exit code: 1 when an image could not be
    read, unless with --skip-bad another was."""
    if args.onnx:
        from models.onnx_file import Exported

        model = Exported(args.onnx, args.device)
    else:
        from models.vljepa import VLJEPA

        model = VLJEPA.load(args.run, args.device)
    tasks = {questions: args.questions, ask: args.ask, retrieval: args.csv, classification: args.classes}
    task = next((task for task, asked in tasks.items() if asked), answer)
    with redirect_stdout(sys.stderr if args.json == "-" else sys.stdout):
        result = task(args, model)
    if args.json == "-":
        print(json.dumps(result, indent=1))
    elif args.json:
        from models.files import replacing

        with replacing(args.json) as new:
            new.write_text(json.dumps(result, indent=1) + "\n")
    failed = [entry for entry in result if "error" in entry] if task in (answer, ask) else []
    if 0 < len(failed) < len(result):
        print(f"eval.py: {len(failed)} images could not be read, the others are answered", file=sys.stderr)
    return int(bool(failed) and not (args.skip_bad and len(failed) < len(result)))


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    return script.run("eval.py", lambda: evaluate(args), args.quiet)


if __name__ == "__main__":
    sys.exit(main())
