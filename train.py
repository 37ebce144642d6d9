"""Train the predictor on a captions CSV and a folder of images.

    python train.py                                                       the archive that comes with it, minutes on a CPU
    python train.py --csv mine.csv --images photos --recipe retrieval     your own photographs, the recipe that measured best
    torchrun --nproc_per_node=2 -- train.py --shards 'cc3m-{00000..00331}.tar'    several processes, WebDataset tars

The frozen towers run once an image and once a caption (models/features/); after that an epoch is tensor slices.
"""

import argparse
import gc
import hashlib
import json
import math
import os
import signal
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

# What --recipe sets; any flag typed beside it wins. EXPERIMENTS.md has the numbers behind `retrieval`.
RECIPES = {
    "classic": dict(
        loss="cosine",
        epochs=10,
        batch_size=16,
        lr=1e-4,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.01,
        hidden=1024,
        members=1,
        dropout=0.0,
        input_dropout=0.0,
        standardise=False,
        group_captions=False,
    ),
    "retrieval": dict(
        loss="info_nce",
        epochs=20,
        batch_size=1280,
        lr=1e-3,
        schedule="cosine",
        warmup=0.1,
        weight_decay=0.01,
        hidden=2048,
        members=3,
        dropout=0.5,
        input_dropout=0.5,
        standardise=True,
        group_captions=True,
    ),
}
FREE_ON_RESUME = {
    "resume",
    "epochs",
    "device",
    "cache",
    "workers",
    "encode_batch",
    "quiet",
    "run",
    "images",
    "csv",
    "shards",
    "shard_features",
    "bf16",
    "compile",
}


def parse(argv):
    """(every flag's value, the names of those that were typed)"""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    d = p.add_argument_group("data")
    d.add_argument(
        "--csv",
        default="unique_caption.csv",
        help="captions file, columns image_name,comment (default %(default)s)",
    )
    d.add_argument(
        "--images", default="my_image_archive", help="folder the image names are in (default %(default)s)"
    )
    d.add_argument(
        "--image-column", default="image_name", help="name of the column of image names (default %(default)s)"
    )
    d.add_argument(
        "--caption-column", default="comment", help="name of the column of captions (default %(default)s)"
    )
    d.add_argument(
        "--shards",
        default="",
        metavar="PATTERN",
        help="WebDataset tars in place of --csv: 'cc3m-{00000..00331}.tar'",
    )
    d.add_argument(
        "--shard-features",
        default=".cache/shards",
        help="folder for the towers' outputs of --shards (default %(default)s)",
    )
    d.add_argument(
        "--skip-bad",
        action=flag,
        default=False,
        help="leave out images and lines that can't be used instead of stopping",
    )
    d.add_argument(
        "--val-fraction",
        type=float,
        default=0.1,
        help="share of the images held out, 0 to under 1 (default %(default)s)",
    )
    d.add_argument(
        "--cache",
        default=".cache/features.sqlite",
        help="file that keeps the towers' outputs (default %(default)s)",
    )
    m = p.add_argument_group("model")
    m.add_argument(
        "--vision",
        default="auto",
        help="image tower: auto, clip-vit-b-16, efficientnet-lite0[-stages], "
        "efficientnet-lite2[-stages], open_clip:MODEL/PRETRAINED, or two joined by + (auto: CLIP if possible)",
    )
    m.add_argument(
        "--text",
        default="all-MiniLM-L6-v2",
        help="text tower: a sentence-transformers name or a folder (default %(default)s)",
    )
    m.add_argument("--hidden", type=int, help="width of the predictor's hidden layer")
    m.add_argument("--members", type=int, help="predictors trained side by side, whose mean is the answer")
    m.add_argument("--dropout", type=float, help="share of hidden units dropped in training, 0 to 1")
    m.add_argument("--input-dropout", type=float, help="share of input features dropped in training, 0 to 1")
    m.add_argument(
        "--standardise", action=flag, help="bring every input feature to mean 0, deviation 1 first"
    )
    t = p.add_argument_group("training (defaults: what --recipe sets)")
    t.add_argument(
        "--recipe",
        choices=RECIPES,
        default="classic",
        help="classic: as documented; retrieval: what measured best",
    )
    t.add_argument("--loss", choices=("cosine", "info_nce", "sigmoid"), help="models/losses.py")
    t.add_argument("--epochs", type=int, help="passes over the captions")
    t.add_argument("--batch-size", type=int, help="captions a step")
    t.add_argument(
        "--group-captions",
        action=flag,
        help="keep the captions of an image in one batch, where each is a right answer",
    )
    t.add_argument("--lr", type=float, help="AdamW learning rate")
    t.add_argument("--weight-decay", type=float, help="AdamW weight decay of the matrices")
    t.add_argument("--schedule", choices=("constant", "cosine"), help="learning rate over the run")
    t.add_argument(
        "--warmup", type=float, help="share of all steps over which the learning rate rises from 0"
    )
    t.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the split, the first weights, the order and the dropout (default %(default)s)",
    )
    r = p.add_argument_group("run")
    r.add_argument(
        "--run", default="runs/default", help="folder for checkpoints, log and curves (default %(default)s)"
    )
    r.add_argument(
        "--resume", action=flag, default=False, help="go on from RUN/last.pt with the recipe it holds"
    )
    r.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default %(default)s)")
    r.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="threads that decode images (default: the cores, %(default)s)",
    )
    r.add_argument(
        "--encode-batch", type=int, default=32, help="images a tower sees at once (default %(default)s)"
    )
    r.add_argument(
        "--bf16",
        action=flag,
        default=False,
        help="the predictor's products in bfloat16, its parameters in float32",
    )
    r.add_argument("--compile", action=flag, default=False, help="torch.compile the predictor")
    r.add_argument("--quiet", action=flag, default=False, help="no progress bars")
    defaults = vars(p.parse_args([]))
    typed = vars(p.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults))))
    typed = {name: value for name, value in typed.items() if value is not None}
    return defaults | RECIPES[typed.get("recipe", defaults["recipe"])] | typed, set(typed)


def learning_rate(args, step, steps):
    """At step 0..steps-1: a linear rise over the first `warmup` share, then constant or half a cosine down to 0."""
    rise = max(1, int(args.warmup * steps))
    if step < rise:
        return args.lr * (step + 1) / rise if args.warmup else args.lr
    return (
        args.lr * (0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))
        if args.schedule == "cosine"
        else args.lr
    )


def table_line(first, losses, m, rest=""):
    """One line of the table on screen; recalls in percent."""
    both = (
        " | ".join(
            "".join(f"{100 * m[f'{way}_recall@{k}']:6.1f}" for k in (1, 5, 10))
            + f"{m[f'{way}_median_rank']:8g}"
            for way in ("text_retrieval", "image_retrieval")
        )
        if m
        else ""
    )
    return f"{first:>7} {losses:>17} | {both} | {rest}"


def resumed(args, typed, state, last):
    """The flags to go on with: those of the run that saved `state`, and what was typed where it may be changed."""
    recipe = {n: state["recipe"].get(n, value) for n, value in vars(args).items()}
    wrong = [n for n, value in vars(args).items() if type(recipe[n]) is not type(value)]
    if wrong or [recipe["hidden"], recipe["members"]] != [
        state["config"].get(n) for n in ("hidden_dim", "members")
    ]:
        raise ValueError(
            f"{last}: its recipe is not one of train.py ({', '.join(wrong) or 'hidden, members'}); start another --run"
        )
    typed = (
        typed - {"vision"} if args.vision == "auto" else typed
    )  # the tower that auto chose is in the state
    changed = [n for n in sorted(typed - FREE_ON_RESUME) if getattr(args, n) != recipe[n]]
    if changed:
        told = ", ".join(f"--{n.replace('_', '-')} {recipe[n]}" for n in changed)
        raise ValueError(
            f"{last} was trained with {told}; resume without changing that, or start another --run"
        )
    return argparse.Namespace(**recipe | {n: getattr(args, n) for n in typed | {"resume", "run"}})


def read(args, vision, text, rank, world):
    """(features, image names, what tells this data from other data): every row through the towers, once."""
    from models import distributed as ranks
    from models.dataset import VisionTextDataset, open_image
    from models.features import Features, encode_archive

    if args.shards:
        from models.features.shards import encode_shards, open_shards

        options = (rank, world, args.encode_batch, args.workers, args.quiet)
        names = encode_shards(args.shards, args.shard_features, vision, text, open_image, *options)
        ranks.wait()
        shards = open_shards(args.shard_features, names)
        return Features(shards.image, shards.text, shards.image_of), list(shards.names()), shards.digest
    where, encode = (
        (args.csv, None, args.images, args.image_column, args.caption_column),
        (args.encode_batch, args.workers, args.quiet),
    )
    if world > 1:  # each rank encodes its share into the cache; what it leaves out is reported below
        with redirect_stdout(None):
            mine = VisionTextDataset(*where, skip_bad=True)
            mine.keep(set(mine.image_names[ranks.share(len(mine.image_names), rank, world)]))
            encode_archive(mine, vision, text, args.cache, *encode)
        ranks.wait()
    dataset = VisionTextDataset(*where, args.skip_bad)
    features = encode_archive(dataset, vision, text, args.cache, *encode)
    data = "\n".join(f"{row.image_name}\t{row.caption}" for row in dataset.rows)
    return features, dataset.image_names, hashlib.sha256(data.encode()).hexdigest()


def train(args, typed, stop):
    """Rows -> features -> predictor -> loss. `stop` is the list of signals that came; from the first epoch on it is looked at after
    every step. Returns the exit code; raises ValueError or OSError with a message for the user."""
    import torch

    from models import distributed as ranks
    from models import losses, metrics
    from models import report as plots
    from models import runs as checkpoint
    from models.dataset import split_by_image
    from models.device import choose as choose_device
    from models.features import Features
    from models.predictor import Predictor
    from models.text import TextEncoder
    from models.vision import VisionEncoder, choose

    if stop:  # an import swallowed the interrupt
        raise KeyboardInterrupt
    run, last = Path(args.run), Path(args.run, "last.pt")
    state = checkpoint.load(last, whole=True) if args.resume and last.exists() else None
    if args.resume and state is None:
        print(f"--resume: {last} is not there, so this starts at epoch 1")
    if state:
        args = resumed(args, typed, state, last)
    rank, world, device = ranks.start(choose_device(args.device))  # (0, 1, device) without torchrun

    # data: rows -> features, once
    name, why = choose(args.vision)
    print(f"image tower {name}: {why}" if args.vision == "auto" else f"image tower {name}")
    args.vision = name
    vision, text = VisionEncoder(device, name), TextEncoder(device, args.text)
    features, names, data = read(args, vision, text, rank, world)
    (
        vision.release(),
        text.release(),
        gc.collect(),
    )  # training has no use for them; the text tower's parts refer to each other
    source = args.shards or args.csv
    _, val_names = split_by_image(names, args.val_fraction, args.seed)
    is_val = torch.tensor([name in val_names for name in names])
    train_set, val_set = features.of(~is_val), features.of(is_val)
    val_set = Features(
        val_set.image[:], val_set.text[:], val_set.image_of
    )  # of shards, these rows alone are kept in memory
    has_val = len(val_set.image) > 1
    if not len(train_set.image):
        raise ValueError(f"{source}: all {len(is_val)} images are held out; lower --val-fraction")
    train_names = [name for name in names if name not in val_names]
    processes = f", {world} processes" if world > 1 else ""
    print(
        f"{source}: {len(train_set.image)} images with {len(train_set.text)} captions to train on, "
        f"{len(val_set.image)} with {len(val_set.text)} held out; {device}{processes}, seed {args.seed}"
    )
    image, target, image_of = train_set
    if not args.shards:
        image, target = image.to(device), target.to(device)
    image_of = image_of.to(device)
    del features, names

    # model
    torch.manual_seed(args.seed)
    predictor = Predictor(
        image.shape[1], target.shape[1], args.hidden, args.dropout, args.input_dropout, args.members
    ).to(device)
    if args.standardise:  # of shards, by 8,192 to 16,383 images: a deviation is then right to 1 %
        predictor.standardise((image[:: max(1, len(image) // 8192)] if args.shards else image).to(device))
    each = torch.compile(ranks.parallel(predictor)) if args.compile else ranks.parallel(predictor)
    start = losses.LOSSES[args.loss] or (1.0, 0.0)
    log_scale, bias = (
        torch.tensor(v, device=device, requires_grad=True) for v in (math.log(start[0]), start[1])
    )
    matrices = [p for p in predictor.parameters() if p.ndim > 1]
    others = [p for p in predictor.parameters() if p.ndim <= 1] + (
        [log_scale, bias] if losses.LOSSES[args.loss] else []
    )
    groups = [dict(params=matrices, weight_decay=args.weight_decay), dict(params=others, weight_decay=0.0)]
    optimiser = torch.optim.AdamW(groups, lr=args.lr, fused=device != "mps")
    history, best, first_epoch, first_step, loss_sum = [], None, 1, 0, 0.0
    towers = {
        kind: dict(name=tower.name, sha256=tower.sha256)
        for kind, tower in (("vision", vision), ("text", text))
    }
    if state:
        for what, old, new in (("captions", state["data"], data), ("towers", state["towers"], towers)):
            if old != new:
                raise ValueError(f"{last}: the {what} changed since it was saved; start another --run")
        predictor.load_state_dict(state["predictor"])
        optimiser.load_state_dict(optimiser.state_dict() | dict(state=state["optimiser"]["state"]))
        with torch.no_grad():
            log_scale.fill_(state["log_scale"]), bias.fill_(state["bias"])
        history, best, first_epoch = state["history"], state["best"], state["epoch"] + 1
        first_step, loss_sum = state["step"], state["loss_sum"]
    elif rank == 0:
        checkpoint.set_aside(run)
    save = checkpoint.save if rank == 0 else lambda state, path: None
    if rank == 0:
        run.mkdir(parents=True, exist_ok=True)
        (run / "log.jsonl").write_text("".join(json.dumps(h) + "\n" for h in history))

    model = dict(
        config=predictor.config,
        towers=towers,
        recipe=vars(args),
        data=data,
        images=len(train_set.image),
        captions=len(target),
        trained_on=[] if args.shards else sorted(train_names),
    )

    def save_last(epoch, step=0):
        """Everything --resume needs, after `step` steps of the epoch that follows `epoch` whole ones."""
        save(
            model
            | dict(
                predictor=predictor.state_dict(),
                optimiser=optimiser.state_dict(),
                log_scale=log_scale.item(),
                bias=bias.item(),
                epoch=epoch,
                step=step,
                loss_sum=loss_sum,
                rng=torch.get_rng_state(),
                history=history,
                best=best,
            ),
            last,
        )

    def blown_up(value, epoch, step, batch):
        kept = f"{last} is the last good checkpoint. " if last.exists() else ""
        files = ", ".join(sorted({train_names[i] for i in image_of[batch].tolist()}))
        return ValueError(
            f"loss is {value} at epoch {epoch}, step {step}. {kept}Lower --lr, or look at this batch's files: {files}"
        )

    # loop
    chance = metrics.chance(val_set.image_of, len(val_set.image)) if has_val else None
    print(
        f"{'epoch':>7} {'train    held-out':>17} | image to text R@1/5/10, median | text to image R@1/5/10, median |       lr  seconds"
    )
    print(table_line("chance", "", chance))
    loss_of = getattr(losses, args.loss)
    steps = -(-len(target) // args.batch_size)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.append(number))
    for epoch in range(first_epoch, args.epochs + 1):
        began = time.perf_counter()
        torch.manual_seed(
            args.seed * 1_000_003 + epoch
        )  # all that is random in an epoch follows from the seed and its number
        order = torch.randperm(len(target)).to(device)
        if args.group_captions:
            order = torch.randperm(len(image)).to(device)[image_of].argsort(stable=True)
        batch = order[-args.batch_size :]
        if first_step:
            torch.set_rng_state(state["rng"])
        predictor.train()
        for step in range(first_step, steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(args, (epoch - 1) * steps + step, args.epochs * steps)
            batch = order[step * args.batch_size : (step + 1) * args.batch_size]
            images, which = image_of[batch].unique(
                return_inverse=True
            )  # an image with several captions here is predicted once
            scale = log_scale.exp().clamp_max(losses.MAX_SCALE)
            mine = ranks.share(len(images), rank, world)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=args.bf16):
                rows = torch.cat(
                    each(image[images[mine]], (mine.start, len(images))), dim=1
                )  # (B / world, members * Dt)
            predicted = ranks.gather(rows.float(), len(images)).chunk(args.members, dim=1)
            loss = sum(loss_of(p, target[batch], which, scale, bias) for p in predicted) / args.members
            value = loss.item()
            if not math.isfinite(value):
                raise blown_up(value, epoch, step + 1, batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            loss_sum += value * len(batch)
            if ranks.any_rank(stop, device):
                save_last(epoch - 1, step + 1)
                print(
                    f"stopped after step {step + 1} of {steps} in epoch {epoch}, saved. Go on: python train.py --resume --run {run}"
                )
                del each
                ranks.stop()
                return 130 if stop[:1] == [signal.SIGINT] else 0

        entry = dict(epoch=epoch, train_loss=loss_sum / len(target), lr=optimiser.param_groups[0]["lr"])
        first_step, loss_sum = 0, 0.0
        predictor.eval()
        with torch.no_grad():
            value = predictor(image[image_of[batch]]).sum().item()
            if not math.isfinite(value):  # the last step broke what no loss has shown yet
                raise blown_up(value, epoch, steps, batch)
            m, predicted = None, predictor(val_set.image.to(device)).cpu()
        if has_val:
            val_loss = 0.0
            for b in torch.randperm(len(val_set.text), generator=torch.Generator().manual_seed(0)).split(
                args.batch_size
            ):
                images, which = val_set.image_of[b].unique(return_inverse=True)
                val_loss += loss_of(
                    predicted[images], val_set.text[b], which, log_scale.exp().cpu(), bias.cpu()
                ).item() * len(b)
            found = metrics.ranks(predicted, val_set.text, val_set.image_of)
            m = metrics.summary(*found)
            entry |= (
                dict(val_loss=val_loss / len(val_set.text))
                | m
                | metrics.spread(predicted, val_set.text, val_set.image_of)
            )
        entry["seconds"] = round(time.perf_counter() - began, 3)
        history.append(entry)
        score = [sum(v for k, v in m.items() if "recall" in k) / 6, -entry["val_loss"]] if m else [epoch]
        if best is None or score > best["score"]:
            best = dict(epoch=epoch, score=score)
            held_out = (
                dict(
                    dataset=f"{Path(source).name}, held out",
                    images=len(val_set.image),
                    captions=len(val_set.text),
                    metrics=m,
                    interval_95=metrics.intervals(*found, val_set.image_of),
                )
                if m
                else None
            )
            save(
                model
                | dict(predictor=predictor.state_dict(), epoch=epoch, history=history, held_out=held_out),
                run / "best.pt",
            )
        save_last(epoch)
        if rank == 0:
            with open(run / "log.jsonl", "a") as log:
                log.write(json.dumps(entry) + "\n")
        both = f"{entry['train_loss']:8.4f} {entry.get('val_loss', math.nan):8.4f}"
        print(
            table_line(f"{epoch}/{args.epochs}", both, m, f"{entry['lr']:8.2g} {entry['seconds']:8.2f}"),
            flush=True,
        )
        if m and (alarm := metrics.collapse_alarm(entry, len(predicted))):
            print(alarm)
    del each  # before the processes part: it holds on to the group
    ranks.stop()
    if history and rank == 0:
        plots.curves(history, chance, run / "curves.png")
        kept = f"best.pt is epoch {best['epoch']}" + (
            "" if has_val else ", the last: no image was held out to choose by"
        )
        print(
            f"{run}: {kept}; log.jsonl and curves.png beside it. Ask it something: python eval.py --run {run}"
        )
    return 0


def main(argv=None):
    """Exit code: 0 done (SIGTERM too, saved), 1 failed, 130 interrupted (saved); argparse itself exits with 2 on wrong usage."""
    args, typed = parse(argv)
    stop = []

    def interrupt(number, frame):
        stop.append(number)
        raise KeyboardInterrupt

    handlers = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        from models import runs as checkpoint

        for name in ("epochs", "batch_size", "hidden", "members", "encode_batch", "workers"):
            if args[name] < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {args[name]}; give 1 or more")
        with (
            redirect_stdout(None) if int(os.environ.get("RANK", 0)) else checkpoint.alone(args["run"])
        ):  # rank 0 alone prints and saves
            return train(argparse.Namespace(**args), typed, stop)
    except (OSError, ValueError) as error:
        where = (
            f", writing in {args['run']}"
            if isinstance(error, OSError) and error.errno and not error.filename
            else ""
        )
        print(f"train.py: {error}{where}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        print(
            f"train.py: {error}\ntrain.py: lower --encode-batch if it was encoding, --batch-size if it was training",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            "\ntrain.py: stopped; what was encoded is kept, so the same line goes on from there",
            file=sys.stderr,
        )
        return 0 if stop[:1] == [signal.SIGTERM] else 130
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
