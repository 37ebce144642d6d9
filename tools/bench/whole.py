"""Rows of whole commands, training and search: seconds and memory, against a limit or a peer."""

import json
import os
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.prepare import write_csv

from .data import PACKAGED, cached_clip, captions_of, feature_shards
from .timing import Row, median, process, side_by_side
from .towers import best_rate

LOOP_BATCH = 16
TOWERS = (PACKAGED, "clip-vit-b-16", "clip-vit-b-16-bf16")
FLOOR = """import torch
from models.text import TextEncoder
from models.vision import VisionEncoder
VisionEncoder("cpu", "{}"), TextEncoder()  # finds, reads and hashes both
"""


def epoch(args):
    """An epoch of the retrieval recipe on 6,000 images and 30,000 captions of random numbers, against
    its products alone."""
    import torch
    import torch.nn.functional as F

    from models import losses, onednn
    from models.predictor import Predictor

    n, dim, width, out, batch, members = 256, 1960, 2048, 384, 1280, 3
    predictor = Predictor(dim, out, width, 0.5, 0.5, members)
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=1e-3, fused=True)
    image, target = torch.randn(n, dim), F.normalize(torch.randn(batch, out), dim=-1)
    image_of, scale, steps = torch.arange(batch) // 5, torch.tensor(20.0), 30_000 / batch

    def step():
        loss = sum(losses.info_nce(p, target, image_of, scale, 0.0) for p in predictor.each(image)) / members
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    # (a, b, c) is (a, b) @ (b, c): both layers forward, the gradients of both weights and of the hidden
    # layer, the scores forward and back.
    products = [(n, dim, width), (n, width, out), (width, n, dim), (out, n, width), (n, out, width)]
    products += [(n, out, batch), (n, batch, out)]
    inputs = [(torch.randn(a, b), torch.randn(c, b)) for a, b, c in products]
    calls = [step, *(partial(multiply, layer, inputs) for layer in (F.linear, onednn.linear))]
    each, mkl, dnn = side_by_side(calls, args.repeats)
    whole, what = steps * each, "an epoch of --recipe retrieval, s"
    for name, alone in (("torch's linear layer (MKL)", mkl), ("oneDNN", dnn)):
        alone *= steps * members
        yield Row(what, whole, f"its products by {name}, {alone:.2f}", whole / alone)


def multiply(layer, inputs):
    """All products once, without gradients."""
    for x, weight in inputs:
        layer(x, weight)


def scripts(args):
    """eval.py on one image against importing torch and reading the weights; --help; peak memory."""
    with TemporaryDirectory() as folder, cached_clip() as (_, hub):
        found = dict(list(captions_of(args).items())[:32])
        path, image = Path(folder, "few.csv"), Path(args.images, next(iter(found)))
        write_csv(path, [(name, text) for name, texts in found.items() for text in texts])
        run = partial(process, PYTHONPATH=os.getcwd(), HF_HUB_CACHE=hub)
        small = Path(folder, "small.py")
        small.write_text("import torch")
        bare = min(run(small).peak for _ in range(3))
        common = ["--images", args.images, "--run", f"{folder}/run", "--cache", f"{folder}/cache.sqlite"]
        for tower in TOWERS:
            small.write_text(FLOOR.format(tower))
            run("train.py", "--csv", path, "--epochs", 1, "--vision", tower, "--quiet", *common)
            floor = statistics.median(run(small).seconds for _ in range(5))
            runs = [run("eval.py", image, "--run", f"{folder}/run") for _ in range(5)]
            seconds = statistics.median(done.seconds for done in runs)
            limit = f"import torch and reading the weights, {floor:.1f}"
            yield Row(f"python eval.py IMAGE, {tower}, s", seconds, limit, seconds / floor)
            peak = max(done.peak for done in runs)
            yield Row("  its peak memory, GB", peak, f"of which import torch, {bare:.2f}")
        small.write_text("")
        empty = run(small).seconds
        slowest = max(run(script, "--help").seconds for script in ("train.py", "eval.py"))
        yield Row("--help of train.py and eval.py, s", slowest, f"Python itself, {empty:.2f}")


def search(args):
    """Exact search in a million embeddings against faiss, and approximate search with its recall."""
    import faiss
    import torch
    from usearch.index import Index

    from apps.search.nearest import top_k

    rows, queries = clustered(args.rows)
    flat = faiss.IndexFlatIP(rows.shape[1])
    flat.add(rows.numpy())
    for n in (1, 100):
        some = queries[:n]
        calls = [partial(top_k, some, rows, 10), partial(flat.search, some.numpy(), 10)]
        ours, theirs = (1e3 * seconds for seconds in side_by_side(calls, args.repeats))
        what = f"search, {len(rows):,} x {rows.shape[1]}, {n} queries, ms"
        yield Row(what, ours, f"faiss IndexFlatIP, {theirs:.0f}", theirs / ours)
    index = Index(ndim=rows.shape[1], metric="ip", dtype="f16", expansion_search=512)  # as apps.search
    began = time.perf_counter()
    index.add(torch.arange(len(rows)).numpy(), rows.numpy())
    built = time.perf_counter() - began
    exact = top_k(queries, rows, 10)[1]
    found = torch.tensor(index.search(queries.numpy(), 10).keys.astype("int64"))
    recall = (found[:, :, None] == exact[:, None, :]).any(2).double().mean().item()
    each = 1e3 * median(partial(index.search, queries[:1].numpy(), 10), args.repeats)
    plain = 1e3 * median(partial(top_k, queries[:1], rows, 10), args.repeats)
    against = f"exact, {plain:.1f}; recall@10 {recall:.3f}, built in {built:.0f} s"
    yield Row(f"usearch, {len(rows):,} x {rows.shape[1]}, one query, ms", each, against, plain / each)


def clustered(count, dim=384):
    """(rows (count, dim), queries (100, dim)), unit length. They lie in clusters as embeddings do; random
    directions are all equally far from each other."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    centres = torch.randn(2000, dim)
    rows = centres[torch.randint(2000, (count,))] + 0.7 * torch.randn(count, dim)
    rows = F.normalize(rows, dim=-1)
    return rows, F.normalize(rows[:100] + 0.03 * torch.randn(100, dim), dim=-1)


def epoch_from_pixels(dataset, vision, text):
    """Seconds of one epoch of the README's loop, which encodes every image and caption again."""
    import torch
    from torch.utils.data import DataLoader

    from models.predictor import Predictor

    predictor = Predictor(vision.dim)
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=1e-4)
    vision.encode(dataset[0][0][None]), text.encode(["load the towers before the clock starts"])
    began = time.perf_counter()
    for images, batch in DataLoader(dataset, batch_size=LOOP_BATCH, shuffle=True):
        predicted = predictor(vision.encode(images))
        loss = 1 - torch.cosine_similarity(predicted, text.encode(batch), dim=-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - began


def loop(args):
    """train.py against the README's loop."""
    from models.dataset import VisionTextDataset
    from models.text import TextEncoder
    from models.vision import VisionEncoder

    name = "efficientnet-lite0"
    with TemporaryDirectory() as folder:
        path = Path(folder, "captions.csv")
        write_csv(path, [(image, texts[0]) for image, texts in captions_of(args).items()])
        vision, text = VisionEncoder("cpu", name), TextEncoder("cpu")
        dataset = VisionTextDataset(path, vision.preprocess, args.images)
        ten = 10 * epoch_from_pixels(dataset, vision, text)
        train = partial(process, "train.py", "--images", args.images, "--vision", name, "--quiet", "--run")
        twice = [f"{folder}/run", "--csv", path, "--cache", f"{folder}/cache.sqlite"]
        cold, warm = train(*twice).seconds, train(*twice).seconds
        what = f"train.py, {len(dataset)} images, 10 epochs, nothing cached, s"
        yield Row(what, cold, f"the loop that encodes in every epoch, {ten:.0f}", ten / cold)
        yield Row("the same with a warm cache, s", warm, f"the loop, {ten:.0f}", ten / warm)
        whole = [f"{folder}/whole", "--csv", args.csv, "--cache", f"{folder}/whole.sqlite", "--epochs", 1]
        yield Row("train.py on the whole CSV, nothing cached: peak memory, GB", train(*whole).peak)


def train_shards(folder, tars, *flags):
    """The Process of `train.py --shards` for one epoch."""
    where = ["--shards", tars, "--shard-features", folder, "--run", f"{folder}/run"]
    tower = ["--vision", PACKAGED, "--epochs", 1, "--quiet"]
    return process("train.py", *where, *tower, *flags)


def shards(args):
    """train.py over feature shards of `--rows` images and captions, against its products alone."""
    import torch

    images = args.rows
    with TemporaryDirectory() as folder:
        tars = feature_shards(folder, images, 1)
        flags = ["--recipe", "classic", "--batch-size", 1280, "--val-fraction", 1000 / images]
        done = train_shards(folder, tars, *flags)
        seconds = json.loads(Path(folder, "run", "log.jsonl").read_text())["seconds"]
    gflop = 6e-9 * (1904 * 1024 + 1024 * 384)  # per row: a forward and two backward products of each layer
    rate = best_rate([(1904, 1024), (1024, 384)], 1280, torch.float32, args.repeats)
    pace, limit = images / seconds, rate / gflop
    against = f"its products alone at {rate:.0f} GFLOP/s, {limit:,.0f}"
    yield Row(f"train.py --shards, {images:,} images and captions, rows/s", pace, against, pace / limit)
    yield Row("  the whole command, s", done.seconds, f"of which the epoch, {seconds:.1f}")
    size = images * (1904 + 384) * 2 / 1e9
    yield Row("  its own memory at most, GB", done.own, f"the rows take {size:.1f}")


def growth(path, sizes=(1_000, 4_000, 16_000, 64_000)):
    """Seconds and memory of train.py --shards by number of images, five captions per image. Plots them."""
    from matplotlib.figure import Figure

    from models.files import replacing

    found = []
    for size in sizes:
        with TemporaryDirectory() as folder:
            tars = feature_shards(folder, size, 5)
            done = train_shards(folder, tars, "--recipe", "retrieval", "--val-fraction", 500 / size)
        found.append((done.seconds, done.own))
        memory = f"its own memory at most, {done.own:.2f} GB"
        yield Row(f"train.py --shards, {size:,} images, 1 epoch, s", done.seconds, memory)
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    names = "seconds", "memory of its own, GB"
    for axes, values, name in zip(figure.subplots(1, 2), zip(*found), names):
        axes.plot(sizes, values, "o-")
        axes.set(xlabel="images", ylabel=name, ylim=(0, 1.1 * max(values)))
    with replacing(path) as new:
        figure.savefig(new, format="png", dpi=150)
