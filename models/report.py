"""Numbers in; rows of a table, a PNG or a model card out.

    print(retrieval_header())
    print(retrieval_row("this model", metrics.retrieval(predicted, text, image_of)))
    curves(history, chance, "runs/default/curves.png")
    confusion(counts, ["dog", "cat"], "runs/default/confusion.png")
    card(model.config, model.record, parameters=918912)    # Markdown

Figures are made without pyplot, so the backend of a notebook stays as it is.
"""

import shlex
from pathlib import Path

from models.files import replacing
from models.metrics import FEW, KS

WAYS = {"text_retrieval": "image to text", "image_retrieval": "text to image"}  # by their name in metrics
NAME_WIDTH = 30
VIEWS_FROM = 1000  # images; with fewer, the text head of --recipe views is a trade (docs/EXPERIMENTS.md)
# Digests, as in config.json, of unique_caption.csv, caption.csv, questions.csv, and the last two together.
SHIPPED = {
    "7c578edc47829107c60c520775497bdc5c6651f75e915195e28a94f0fda8bb55",
    "db3cede532359ddc173f519466d48ca02d5de3e9aa5af456f9278fbef482f819",
    "0793d939cdf69c5a9c2c2f23d8a1c9e809a80a6228b73782fde2f508c5fda71c",
    "5ff037e2f2cf280f092a363ecc2a599d9d7996320fca6df6f00589b9a9261868",
}
DRAWN = """These images are drawn, not photographed: scenes of emoji (Noto Color Emoji, SIL Open Font License)
that come with the code. Images, captions and this model have the code's licence, MIT; the glyphs keep theirs.
The model says nothing about photographs."""
CARD = """---
{header}
---

# A small VL-JEPA: {vision[name]} to {text[name]}

A predictor of {parameters:,} parameters. From the features of an image it predicts the embedding of a
caption, in the space of a frozen text tower ([VL-JEPA, arXiv 2512.10942](https://arxiv.org/abs/2512.10942)).
The towers are not part of this model; their hashes are checked when it is loaded.

```python
from models.vljepa import VLJEPA

model = VLJEPA.from_pretrained("this folder or repository")
{usage}
```

## Towers

| | name | SHA-256 of the weights |
|---|---|---|
| image | {vision[name]} | {vision[sha256]} |
| text | {text[name]} | {text[sha256]} |

## Data

{images:,} images with {captions:,} captions{asked}, from `{source}`. SHA-256 of names and captions: {data}.
{drawn}
## Results

{results}

## Recipe

Epoch {epoch} of {epochs}. The flags of train.py:

| flag | value |
|---|---|
{flags}

## Limits

The model repeats what its captions say, with their biases. Labels are ranked against each other: the highest
score is the best of the labels offered, and none of them may be right.
"""


def retrieval_header(first="", width=NAME_WIDTH):
    """The line above rows of `retrieval_row`."""
    return f"{first:{width}} | " + " | ".join(f"{way} R@1/5/10, median" for way in WAYS.values())


def retrieval_row(name, metrics, width=NAME_WIDTH):
    """One line: recalls in percent and median ranks, both ways. `metrics` is a dict of `metrics.retrieval`
    (fractions); without medians their columns are blank, and with None all are."""
    return f"{name:{width}} | " + " | ".join(_cells(metrics or {}, way) for way in WAYS)


def interval_rows(intervals):
    """Two lines below a row: the bounds of its 95 % interval. `intervals` is {key: (low, high)}, as
    `metrics.intervals` gives it."""
    bounds = ("lower", "upper")
    rows = ({key: pair[i] for key, pair in intervals.items()} for i in range(2))
    return [retrieval_row(f"  95 % interval, {bound}", row) for bound, row in zip(bounds, rows)]


def epoch_header(chance, has_questions=False):
    """The two lines above the rows of `epoch_row`: titles, and what scores drawn at random give."""
    titles = retrieval_header(f"{'epoch':>7} {'loss    held-out':>17}", 25)
    answers = " answers |" if has_questions else ""
    return f"{titles} |{answers}       lr  seconds\n{retrieval_row(' chance', chance, 25)} |"


def epoch_row(entry, epochs):
    """The line of an epoch of training: losses, held-out recalls in percent and median ranks, accuracy
    of answers in percent where there are questions, learning rate, seconds."""
    loss = entry.get("train_loss", entry.get("answer_loss"))
    losses = f"{loss:8.4f} {entry.get('val_loss', float('nan')):8.4f}"
    row = retrieval_row(f"{entry['epoch']:>3}/{epochs:<3} {losses:>17}", entry, 25)
    answers = ""
    if "answer_loss" in entry:
        answers = f" {100 * entry.get('accuracy', float('nan')):7.1f} |"
    return f"{row} |{answers} {entry['lr']:8.2g} {entry['seconds']:8.2f}"


def next_steps(args, data):
    """What train.py says at the end: that few images were held out, a command that tries the run, and what
    --recipe views would bring to a run of --recipe retrieval on VIEWS_FROM images or more. `args` are the
    flags of train.py, `data` what models.features.load gives."""
    images, held_out = len(data.image), len(data.held_out.image)
    if 0 < held_out < FEW:
        few = f"{held_out} held-out images are too few to say how good it is"
        return f"{few}. {try_it(args.run, args.images, data)}"
    if args.recipe != "retrieval" or args.views or args.shards or images < VIEWS_FROM:
        return try_it(args.run, args.images, data)
    gain = "gained 4.9 and 1.3 points of R@1 on Flickr8k (docs/training.md)"
    cost = f"takes {4 * images:,} views of these images through the tower first"
    return f"{try_it(args.run, args.images, data)}\n--recipe views {gain}; it {cost}"


def try_it(run, images, data):
    """'Try it on a held-out image: ' and the command, quoted for a shell, that asks a run about the first
    image of `data.examples`, rows of a captions or questions file: which of their texts fits, or its
    question. `images` is the folder of the images, `data` what models.features.load gives. Without rows, the
    command has a photo.jpg in its place."""
    words = ["python", "eval.py", "--run", run]
    if not data.examples:
        return f"Try it: {shlex.join([*words, 'photo.jpg', '--labels', 'a dog', 'a cat'])}"
    first = data.examples[0]
    which = "an image it was trained on" if first.image_name in data.names else "a held-out image"
    words.append(str(Path(images, first.image_name)))
    if first.question:
        words += ["--ask", first.question]
    else:
        words += ["--labels", *(" ".join(row.text.split()) for row in data.examples)]
    return f"Try it on {which}: {shlex.join(words)}"


def _cells(metrics, way):
    """Three recalls and a median rank, 30 characters."""
    recalls = [metrics.get(f"{way}_recall@{k}") for k in KS]
    median = metrics.get(f"{way}_median_rank")
    cells = ["" if recall is None else f"{100 * recall:.1f}" for recall in recalls]
    return "".join(f"{cell:>7}" for cell in cells) + f"{'' if median is None else format(median, 'g'):>9}"


def answer_table(rows, interval, types):
    """The table of `eval.py --questions`: accuracies in percent, overall and by type, with the 95 % interval
    of the last row. `rows` is {row name: what answering.accuracy gives}, `types` that of each question."""
    kinds = sorted({kind or "any" for kind in types})
    kinds = kinds if kinds != ["any"] else []
    counts = [len(types), *(types.count(kind) for kind in kinds)]
    width = max(9, *(len(kind) + 2 for kind in kinds), 9)
    lines = [f"{'accuracy, %':{NAME_WIDTH}}" + "".join(f"{name:>{width}}" for name in ["all", *kinds])]
    lines.append(f"{'questions':{NAME_WIDTH}}" + "".join(f"{count:>{width}}" for count in counts))

    def line(name, found, pick=lambda value: value):
        values = [found["accuracy"], *(found["accuracy_by_type"][kind] for kind in kinds)]
        return f"{name:{NAME_WIDTH}}" + "".join(f"{100 * pick(value):>{width}.1f}" for value in values)

    lines += [line(name, found) for name, found in rows.items()]
    for i, bound in enumerate(("lower", "upper")):
        lines.append(line(f"  95 % interval, {bound}", interval, lambda pair, i=i: pair[i]))
    return "\n".join(lines)


def curves(history, chance, path, reject=None):
    """Write a PNG: losses, held-out R@1 both ways with chance, and how reliable a score is.

    `history` is what log.jsonl holds, one dict per epoch; `chance` is that of `metrics.chance`, or None where
    nothing was held out; `reject` is what `rejection.threshold` gives."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14 if reject else 10, 3.6), layout="constrained")
    left, right, *rest = figure.subplots(1, 3 if reject else 2)
    if reject:
        _reliability(rest[0], reject)
    epochs = [entry["epoch"] for entry in history]
    losses = (("train_loss", "training captions"), ("val_loss", "held-out captions"))
    for key, label in (*losses, ("answer_loss", "training questions")):
        if key in history[-1]:
            left.plot(epochs, [entry[key] for entry in history], "o-", markersize=3, label=label)
    left.set(xlabel="epoch", ylabel="loss")
    left.legend()
    for way, label in WAYS.items():
        key = f"{way}_recall@1"
        if key in history[-1]:
            percent = [100 * entry[key] for entry in history]
            (line,) = right.plot(epochs, percent, "o-", markersize=3, label=label)
            right.axhline(100 * chance[key], linestyle=":", color=line.get_color(), label=f"{label}, chance")
            right.legend()
    for key, label in (("accuracy", "answers"), ("question_only_accuracy", "answers, question only")):
        if key in history[-1]:
            right.plot(epochs, [100 * entry[key] for entry in history], "s-", markersize=3, label=label)
            right.legend()
    answers = " and accuracy" if "accuracy" in history[-1] else ""
    right.set(xlabel="epoch", ylabel=f"held-out R@1{answers}, %", ylim=(0, None))
    _write(figure, path)


def _reliability(axis, reject):
    """Plot the curve of `rejection.threshold`: the share right and the share kept from a score on."""
    scores, right, kept = zip(*reject["curve"])
    axis.plot(scores, right, "o-", markersize=3, label="belong together")
    axis.plot(scores, kept, "s:", markersize=3, label="share of all pairs")
    if reject["threshold"] is not None:
        axis.axvline(reject["threshold"], color="gray", label=f"--reject {reject['threshold']:.2f}")
    axis.set(
        xlabel="score of a pair of image and caption, or more",
        ylabel="share",
        ylim=(0, 1.02),
    )
    axis.legend()


def confusion(counts, names, path):
    """Write a PNG of counts (C, C), row the true class and column the predicted, each as a share of its
    row."""
    from matplotlib.figure import Figure

    side = min(3 + 0.25 * len(names), 30)  # inches
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axis.set(xlabel="predicted", ylabel="true", xticks=range(len(names)), yticks=range(len(names)))
    axis.set_xticklabels(names, rotation=90)
    axis.set_yticklabels(names)
    figure.colorbar(image, label="share of the true class")
    _write(figure, path)


def _write(figure, path):
    with replacing(path) as new:
        figure.savefig(new, format="png", dpi=100)


def card(config, record, parameters, results=None):
    """The model card, Markdown. `config` and `record` are those of a VLJEPA, `parameters` how many numbers
    the predictor has. `results` is what `eval.py --csv ... --json FILE` writes; without it, the held-out
    results of training."""
    recipe, is_drawn = config["recipe"], config["data"] in SHIPPED
    return CARD.format(
        header=_card_header(is_drawn),
        **config["towers"],
        parameters=parameters,
        images=config["images"],
        captions=config["captions"],
        asked=f" and {config['questions']:,} questions" if "questions" in config else "",
        usage="\n".join(_card_usage(config)),
        source=recipe.get("shards") or " and ".join(filter(None, (recipe["csv"], recipe.get("questions")))),
        data=config["data"],
        drawn=f"\n{DRAWN}\n" if is_drawn else "",
        results=_card_results(results, record.get("held_out")),
        epoch=record["epoch"],
        epochs=recipe["epochs"],
        flags="\n".join(f"| {name} | {value} |" for name, value in sorted(recipe.items())),
    )


def _card_header(is_drawn):
    """The metadata block of the card, YAML. Of a user's own data the licence is not known."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        language="en",
        license="mit" if is_drawn else None,
        library_name="vl-jepa",
        pipeline_tag="zero-shot-image-classification",
        tags=["vl-jepa", "image-text-retrieval", "model_hub_mixin"],
    )
    return data.to_yaml()


def _card_usage(config):
    """The lines of Python that use what it was trained for."""
    if config["captions"]:
        yield 'model.classify("photo.jpg", ["a dog", "a cat"])'
    if "answers" in config:
        yield 'model.answer("photo.jpg", "What color is it?")'


def _card_results(results, held_out):
    """Sentences and a table, or the reason why there are none."""
    found = results or held_out
    if not found:
        return "None: no image was held out in training, and no results of `eval.py --json` were given."
    note = "" if results else " The epoch was chosen by these images, which flatters it a little."
    accuracy = found.get("accuracy", found.get("metrics", {}).get("accuracy"))
    parts = [_card_recalls(found, note)] if "captions" in found else []
    if accuracy is not None:
        parts.append(f"Answers: {100 * accuracy:.1f} % right over {found['dataset']}.{note}")
    return "\n\n".join(parts)


def _card_recalls(found, note):
    lines = [
        f"Recall@k (hit rate) in percent over {found['images']:,} images and {found['captions']:,} captions "
        f"of {found['dataset']}, with the 95 % interval of a bootstrap over images.{note}",
        "",
        "| | R@1 | R@5 | R@10 |",
        "|---|---|---|---|",
    ]
    for way, label in WAYS.items():
        cells = []
        for key in (f"{way}_recall@{k}" for k in KS):
            low, high = found["interval_95"][key]
            cells.append(f"{100 * found['metrics'][key]:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)
