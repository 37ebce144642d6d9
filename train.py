"""Train the predictor on a captions CSV and a folder of images.

    python train.py                                              the archive in this repository, on a CPU
    python train.py --csv mine.csv --images photos --recipe retrieval         your own photos
    torchrun --nproc_per_node=2 -- train.py --shards 'cc3m-{00000..00331}.tar'     several processes, tars

The frozen towers run once per image and once per caption (models/features/); after that an epoch is tensor
slices."""

import argparse
import gc
import math
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path

# What --recipe sets; any flag typed beside it wins. docs/EXPERIMENTS.md has the numbers behind them.
TEXT_HEADS = ("none", "linear", "residual")
RECIPES = {
    "classic": """--loss cosine --epochs 10 --batch-size 16 --lr 1e-4 --schedule constant --warmup 0
        --hidden 1024 --members 1 --weight-decay 0.01 --dropout 0 --input-dropout 0
        --no-standardise --no-group-captions --text-head none""",
    "retrieval": """--loss info_nce --epochs 20 --batch-size 1280 --lr 1e-3 --schedule cosine --warmup 0.1
        --hidden 2048 --members 3 --weight-decay 0.01 --dropout 0.5 --input-dropout 0.5
        --standardise --group-captions --text-head none""",
    "views": """--loss info_nce --epochs 60 --batch-size 2560 --lr 1e-3 --schedule cosine --warmup 0.1
        --hidden 4096 --members 1 --weight-decay 0.01 --dropout 0.6 --input-dropout 0.5
        --standardise --group-captions --text-head residual --views 4""",
}
RECIPES["answer"] = RECIPES["retrieval"]  # with --questions


def flags():
    """The parser of the command line. The flags of training have no default: `--recipe` sets them."""
    from models.script import add_frames, add_quiet, parser

    p = parser("train.py", __doc__)
    switch = argparse.BooleanOptionalAction
    group = p.add_argument_group("data")
    add = group.add_argument
    add("--csv", default="unique_caption.csv", help="captions file (default %(default)s)")
    add("--images", default="my_image_archive", help="folder of the images (default %(default)s)")
    add("--image-column", default="image_name", help="column of image names (default %(default)s)")
    add("--caption-column", nargs="+", default=["comment"], help="one or several (default comment)")
    add("--caption-lists", action=switch, default=False, help="read a list in a field as several captions")
    add("--questions", default="", metavar="FILE", help="questions: image_name, question, answer[, type]")
    add("--shards", default="", metavar="TARS", help="WebDataset tars, such as 'cc3m-{00000..00331}.tar'")
    add("--shard-features", default=".cache/shards", help="folder of their features (default %(default)s)")
    add("--skip-bad", action=switch, default=False, help="leave out images and lines that cannot be used")
    add("--follow-links", action=switch, default=False, help="read images behind links out of the folder")
    add("--val-fraction", type=float, default=0.1, help="share of images held out (default %(default)s)")
    add_frames(group, 8)
    add("--views", type=int, default=0, help="augmented views to train on, per image (default %(default)s)")
    add("--cache", default=".cache/features.sqlite", help="file of the towers' outputs (default %(default)s)")
    add = p.add_argument_group("model").add_argument
    add("--vision", default="auto", help="image tower, see docs/towers.md (default: CLIP where possible)")
    add("--text", default="all-MiniLM-L6-v2", help="text tower: a sentence-transformers name or a folder")
    add("--hidden", type=int, help="width of the predictor's hidden layer")
    add("--members", type=int, help="predictors trained side by side; their mean is the prediction")
    add("--dropout", type=float, help="share of hidden units dropped in training, 0 to 1")
    add("--input-dropout", type=float, help="share of input features dropped in training, 0 to 1")
    add("--text-head", choices=TEXT_HEADS, help="what is trained on the captions' side")
    time_help = "read a video's mean, or also how it changes from frame to frame (default %(default)s)"
    add("--time", choices=("mean", "change"), default="mean", help=time_help)
    add("--standardise", action=switch, help="scale every input feature to mean 0, deviation 1 first")
    add = p.add_argument_group("training (defaults: what --recipe sets)").add_argument
    recipe_help = "classic: the documented first run; retrieval: hundreds of photos; views: thousands, and "
    recipe_help += "slower; answer: questions"
    add("--recipe", choices=RECIPES, default="classic", help=recipe_help)
    add("--loss", choices=("cosine", "info_nce", "sigmoid"), help="models/losses.py")
    add("--epochs", type=int, help="passes over the captions")
    add("--batch-size", type=int, help="captions per step")
    add("--group-captions", action=switch, help="keep all captions of an image in one batch")
    add("--lr", type=float, help="AdamW learning rate")
    add("--weight-decay", type=float, help="AdamW weight decay of the matrices")
    add("--schedule", choices=("constant", "cosine"), help="learning rate over the run")
    add("--warmup", type=float, help="share of all steps over which the learning rate rises from 0")
    add("--seed", type=int, default=0, help="of the split, weights, order and dropout (default %(default)s)")
    group = p.add_argument_group("run")
    add = group.add_argument
    add("--run", default="runs/default", help="run folder (default %(default)s)")
    add("--tensorboard", action=switch, default=False, help="also log for TensorBoard, in private/ of RUN")
    add("--resume", action=switch, default=False, help="continue the run in RUN with its own recipe")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    add("--workers", type=int, default=os.cpu_count(), help="threads that decode images (default: all cores)")
    add("--encode-batch", type=int, default=32, help="images encoded at once (default %(default)s)")
    add("--bf16", action=switch, default=False, help="the predictor's products in bfloat16")
    add("--compile", action=switch, default=False, help="torch.compile the predictor")
    add_quiet(group)
    return p


def parse(argv):
    """(args, the names of the flags that were typed)."""
    p = flags()
    recipe = RECIPES[p.parse_args(argv).recipe]
    p.set_defaults(**vars(p.parse_args(recipe.split())))
    args = p.parse_args(argv)
    for name in ("epochs", "batch_size", "hidden", "members", "encode_batch", "workers"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; give 1 or more")
    if args.views < 0 or (args.views and args.shards):
        raise ValueError(f"--views is {args.views}; give 0 or more, and 0 with --shards")
    # argparse sets no default for a name the namespace already has, so what stays None was not typed.
    untouched = argparse.Namespace(**dict.fromkeys(vars(args)))
    typed = {name for name, value in vars(p.parse_args(argv, untouched)).items() if value is not None}
    if args.tensorboard and not find_spec("tensorboard"):
        raise ValueError("--tensorboard: it is not installed; pip install tensorboard")
    if args.questions and args.shards:
        raise ValueError("--questions: tars hold their own; train on those with --recipe answer")
    if args.questions and "csv" not in typed:
        args.csv = ""  # questions alone
    return args, typed


def build(args, data, device):
    """A Training with an untrained predictor."""
    import torch

    from models import losses, runs
    from models.predictor import KNOWN, Predictor, QueryPredictor

    torch.manual_seed(args.seed)
    dims = data.image.shape[-1], (data.answer if data.questions else data.text).shape[1]
    sizes = (*dims, args.hidden, args.dropout, args.input_dropout, args.members)
    ends = dict(text_head=args.text_head, time=args.time)
    every = max(1, len(data.image) // 8192) if args.shards else 1  # 8,192 images give a deviation to 1 %
    some = data.image[::every].to(device)
    if data.questions:
        used = data.questions.question_of.unique()
        some_of = torch.linspace(0, len(used) - 1, min(len(used), KNOWN), device=device).round().long()
        asked = data.questions.tokens[used[some_of]]  # (K, T, Dk)
        dims = data.places.shape[2], asked.shape[2], len(asked)
        query = QueryPredictor(*sizes, *dims, captions=len(data.text) > 0, **ends).to(device)
        query.standardise(some, data.places, asked)
        predictor, captions = query, query.captions
    else:
        predictor = captions = Predictor(*sizes, **ends).to(device)
    if args.standardise and captions:
        captions.standardise(some)
    start = losses.LOSSES[args.loss]
    scale, bias = start or (1.0, 0.0)
    log_scale = torch.tensor(math.log(scale), device=device, requires_grad=True)
    bias = torch.tensor(bias, device=device, requires_grad=True)
    matrices = [p for p in predictor.parameters() if p.ndim > 1]
    others = [p for p in predictor.parameters() if p.ndim <= 1] + ([log_scale, bias] if start else [])
    groups = [dict(params=matrices, weight_decay=args.weight_decay), dict(params=others, weight_decay=0.0)]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, fused=device != "mps")
    return runs.Training(predictor, optimiser, log_scale, bias)


def train_epoch(args, data, training, progress, each, process, stop):
    """One epoch, from `progress.step` on. Returns False when a signal in `stop` ended it early."""
    import torch

    from models import distributed, objective

    epoch = progress.epoch + 1
    batches = objective.batches(args, data, epoch)
    if progress.step:
        torch.set_rng_state(training.rng)
    training.predictor.train()
    for step in range(progress.step, len(batches)):
        kind, batch = batches[step]
        rate = objective.learning_rate(args, progress.epoch * len(batches) + step, args.epochs * len(batches))
        for group in training.optimiser.param_groups:
            group["lr"] = rate
        loss = objective.loss_of(args, data, training, epoch, kind, batch, each, process)
        value = loss.item()
        objective.check_finite(value, args, data, kind, batch, epoch, step + 1)
        training.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        training.optimiser.step()
        progress.step = step + 1
        progress.loss_sums[kind] = progress.loss_sums.get(kind, 0.0) + value * len(batch)
        if distributed.any_rank(stop, process.device):
            return False
    training.predictor.eval()
    with torch.no_grad():  # no loss shows yet what the last step did
        for kind, batch in dict(batches).items():  # the last batch of each kind
            value = objective.loss_of(args, data, training, epoch, kind, batch, each, process).item()
            objective.check_finite(value, args, data, kind, batch, epoch, len(batches))
    return True


def validate(args, data, training):
    """(what the log keeps, what the model's record keeps) of the held-out images; ({}, None) without any."""
    from models import answering, metrics, objective, rejection

    if not data.has_held_out:
        return {}, None
    held_out, predictor = data.held_out, training.predictor
    found, record = {}, dict(dataset=f"{Path(data.source).name}, held out", images=len(held_out.image))
    if len(held_out.text):
        predicted, text, image_of, loss = objective.predict_held_out(args, held_out, training)
        ranks = metrics.ranks(predicted, text, image_of)
        recalls = metrics.summary(*ranks)
        found |= dict(val_loss=loss) | recalls | metrics.spread(predicted, text, image_of)
        record |= dict(captions=len(text), metrics=recalls)
        record |= dict(interval_95=metrics.intervals(*ranks, image_of))
        record |= dict(reject=rejection.threshold(*rejection.pairs(predicted, text, image_of)))
    if held_out.questions and held_out.questions.answers:
        seen = (held_out, list(data.bank), data.answer)
        for key, part in (("question_only_", predictor.question_only), ("", predictor.answers)):
            chosen, scores = answering.choose(part, *seen)
            right = answering.is_right(held_out.questions, chosen)
            found[f"{key}accuracy"] = right.mean().item()
        record |= dict(questions=len(right), accuracy=found["accuracy"])
        record |= dict(reject_answers=rejection.threshold(scores, right))
    return found, record


def finish_epoch(args, data, training, progress, began, rank, events):
    """Validate, print the line of the epoch, and save. `events` writes the entry of the log elsewhere too."""
    from models import metrics, objective, report, runs

    pairs = len(data.share)
    counts = dict(captions=len(data.text), answers=pairs, question_only=pairs)
    lost = {kind: total / counts[kind] for kind, total in progress.loss_sums.items()}
    found, held_out = validate(args, data, training)
    entry = dict(epoch=progress.epoch + 1, train_loss=lost.get("captions"), answer_loss=lost.get("answers"))
    steps = progress.step  # of an epoch. Resumed after the last of them, the optimiser has no rate yet.
    rate = objective.learning_rate(args, (progress.epoch + 1) * steps - 1, args.epochs * steps)
    entry |= dict(lr=rate, seconds=round(time.perf_counter() - began, 3))
    entry = {key: value for key, value in entry.items() if value is not None} | found
    is_best = progress.add(entry)
    if rank == 0:
        if is_best:
            record = dict(epoch=entry["epoch"], history=progress.history, held_out=held_out)
            runs.save_model(args.run, training.predictor.state_dict(), record)
        save(args, data, training, progress)
        runs.log(args.run, entry)
        if events:
            events(entry)
    print(report.epoch_row(entry, args.epochs), flush=True)
    if "effective_rank" in found and (
        alarm := metrics.collapse_alarm(entry, len(data.held_out.image), args.loss)
    ):
        print(alarm)


def save(args, data, training, progress):
    """Save all that --resume needs."""
    from models import runs

    names = [] if args.shards else data.names
    runs.save_progress(args.run, training, progress, vars(args), data.digest, names)


def train(args, typed, stop):
    """Rows -> features -> predictor -> loss. `stop` is the list of signals received; from the first epoch on
    it is checked after every step. Returns the exit code; raises ValueError or OSError with a message for the
    user."""
    from models import distributed, runs
    from models.features.load import load_data
    from models.text import TextEncoder
    from models.vision import VisionEncoder, choose

    if stop:  # an import swallowed the interrupt
        raise KeyboardInterrupt
    saved = runs.load_last(args.run) if args.resume else None
    if saved:
        typed = typed - {"vision"} if args.vision == "auto" else typed  # the run knows which tower auto chose
        args = argparse.Namespace(**runs.resumed_flags(args.run, vars(args), typed, saved[1]["recipe"]))
    else:
        runs.check_folder(args.run)  # now, and not after hours of encoding
        if args.resume:
            print(f"--resume: {args.run} holds no run yet, so this starts at epoch 1")
    if args.recipe == "answer" and not (args.questions or args.shards):
        raise ValueError("--recipe answer: name the file of questions with --questions FILE")
    process = distributed.start(args.device)

    name, why = choose(args.vision)
    print(f"image tower {name}" + (f": {why}" if args.vision == "auto" else ""))
    args.vision = name
    vision, text = VisionEncoder(process.device, name), TextEncoder(process.device, args.text)
    data = load_data(args, vision, text, process)
    towers = dict(vision=dict(name=vision.public_name, sha256=vision.sha256))
    towers |= dict(text=dict(name=text.public_name, sha256=text.sha256))
    del vision, text
    gc.collect()  # the parts of the text tower refer to each other
    held_out = f"{len(data.held_out.image)} with {len(data.held_out.text)} held out"
    where = process.device + (f", {process.world} processes" if process.world > 1 else "")
    counts = f"{len(data.image)} images with {len(data.text)} captions to train on, {held_out}"
    if data.questions:
        pairs = f"{len(data.share)} questions with {len(data.bank)} answers to train on"
        counts += f"; {pairs}, {len(data.held_out.questions.answers)} held out"
    print(f"{data.source}: {counts}; {where}, seed {args.seed}")

    training, progress = build(args, data, process.device), runs.Progress()
    if saved:
        runs.restore(args.run, saved, training, progress, data.digest, towers)
    if process.rank == 0:
        config = dict(
            predictor=training.predictor.config, towers=towers, recipe=runs.public_recipe(vars(args))
        )
        config |= dict(data=data.digest, images=len(data.image), captions=len(data.text))
        if data.questions:
            config |= dict(questions=len(data.share), answers=data.bank)
        if kept := runs.begin(args.run, config, progress.history, bool(saved)):
            print(f"{args.run} held an earlier run, which is now {kept}; --resume would have continued it")
    return run_epochs(args, data, training, progress, process, stop)


def run_epochs(args, data, training, progress, process, stop):
    """Train the epochs that are left. Returns the exit code."""
    import torch

    from models import distributed, metrics, report, runs

    chance = None
    if data.has_held_out and len(data.held_out.text):
        _, image_of = data.held_out.image_of.unique(return_inverse=True)
        chance = metrics.chance(image_of, int(image_of.max()) + 1)
    if progress.epoch < args.epochs:
        print(report.epoch_header(chance, bool(data.questions)))
    else:
        print(f"{args.run}: all {args.epochs} epochs are done; for more, give --epochs")
    each = {kind: distributed.parallel(part) for kind, part in training.predictor.parts().items()}
    if args.compile:
        each = {kind: torch.compile(part) for kind, part in each.items()}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    events = None
    if args.tensorboard and process.rank == 0:
        from models.events import writer

        events = writer(args.run, progress.epoch + 1)
    stopped = False
    while not stopped and progress.epoch < args.epochs:
        began = time.perf_counter()
        stopped = not train_epoch(args, data, training, progress, each, process, stop)
        if not stopped:
            finish_epoch(args, data, training, progress, began, process.rank, events)
    if stopped and process.rank == 0:
        save(args, data, training, progress)
    del each  # it holds on to the process group
    distributed.stop()
    if stopped:
        where = f"step {progress.step} of epoch {progress.epoch + 1}"
        print(f"stopped after {where}, saved. Continue: python train.py --resume --run {args.run}")
        return 130 if stop[:1] == [signal.SIGINT] else 0
    if progress.history and process.rank == 0:
        held_out = runs.load_model(args.run)[2]["held_out"] or {}
        report.curves(progress.history, chance, Path(args.run, "curves.png"), held_out.get("reject"))
        chosen = "" if data.has_held_out else ", the last: no image was held out to choose by"
        kept = f"the model is that of epoch {progress.best['epoch']}{chosen}"
        print(f"{args.run}: {kept}. {report.next_steps(args, data)}")
    return 0


def hold_and_train(argv, stop):
    """Hold the run folder and train. Rank 0 alone prints and saves."""
    try:
        args, typed = parse(argv)
        from models import runs, script

        script.hush(args.quiet)
        is_first = not int(os.environ.get("RANK", 0))
        with runs.hold(args.run) if is_first else redirect_stdout(None):
            return train(args, typed, stop)
    except KeyboardInterrupt:
        print("\nstopped; what is encoded is kept, so the same command continues from there", file=sys.stderr)
        raise
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        advice = "lower --encode-batch if it was encoding, --batch-size if it was training"
        raise ValueError(f"{error}; {advice}") from None
    except OSError as error:
        if error.filename or not error.errno or isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"{error.strerror}, writing in {args.run}") from None  # a full disk names no file


def main(argv=None):
    """Exit code: 0 done (SIGTERM too, saved), 1 failed, 130 interrupted (saved), 2 wrong usage."""
    from models import script

    stop = []

    def interrupt(number, frame):
        stop.append(number)
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = script.run("train.py", lambda: hold_and_train(argv, stop))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return 0 if code == 130 and stop[:1] == [signal.SIGTERM] else code


if __name__ == "__main__":
    sys.exit(main())
