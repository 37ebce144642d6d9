"""How fast, as ratios to a limit or a peer measured in the same run.

    python -m tools.bench                                  every row, on the archive that comes with it
    python -m tools.bench --csv train.csv --images photos  every row, on photographs
    python -m tools.bench tower captions                   some rows
    python -m tools.bench --growth growth.png              cost as work grows: 1k, 4k, 16k, 64k images

A row: what, how much was seen, against which limit or peer of the same run, and the ratio (above 1: better than the peer).
The machine should be otherwise idle. One JSON line with every row comes last.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

LOOP_BATCH = 16
VIT_GFLOP = 35.1  # of ViT-B/16 an image, a multiply and an add counted as two
VIT_SHAPES = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]  # its four products, input and output width


def parse(argv):
    """The command line; wants the peers that are not among the requirements."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "rows",
        nargs="*",
        choices=[[], *ROWS],
        default=[],
        metavar="ROW",
        help=f"of {', '.join(ROWS)} (default: all)",
    )
    p.add_argument("--csv", default="caption.csv", help="captions file (default %(default)s)")
    p.add_argument("--images", default="my_image_archive", help="folder of its images (default %(default)s)")
    p.add_argument("--count", type=int, default=2000, help="images to use (default %(default)s)")
    p.add_argument("--repeats", type=int, default=7, help="runs a median is taken of (default %(default)s)")
    p.add_argument(
        "--growth", metavar="PNG", help="print and plot seconds and memory against images, and nothing else"
    )
    args = p.parse_args(argv)
    if not args.growth and "search" in (args.rows or ROWS) and find_spec("faiss") is None:
        p.error("the row `search` has faiss for its peer: pip install faiss-cpu, or name the other rows")
    return args


def timed(function):
    """Seconds of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def median(function, repeats=7):
    """Median seconds of a call, after one to warm up."""
    return side_by_side([function], repeats)[0]


def process(command):
    """(seconds, peak resident GB) of a Python process. Linux counts the peak; a child inherits none of it through exec."""
    code = """
import runpy, sys
sys.argv, status = sys.argv[1:], 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    status = end.code
print(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)"""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - began, int(done.stderr.rsplit("VmHWM:", 1)[1].split()[0]) * 1024 / 1e9


def table(args):
    """{image name: captions} of the first `count` images of the CSV."""
    found = {}
    with open(args.csv, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["image_name"] in found or len(found) < args.count:
                found.setdefault(row["image_name"], []).append(row["comment"])
    return found


def write_csv(path, found):
    """A captions file of {image name: captions}."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("image_name", "comment"), *((name, text) for name, texts in found.items() for text in texts)]
        )


def clip_cache(folder):
    """(CLIP ViT-B/16 with random weights: speed does not depend on them, a Hugging Face cache in `folder` that has it for OpenAI's)."""
    import open_clip
    from safetensors.torch import save_file

    model, commit = open_clip.create_model("ViT-B-16-quickgelu").eval(), "0" * 40
    repository = Path(folder, "hub", "models--timm--vit_base_patch16_clip_224.openai")
    for place in (repository / "refs", repository / "snapshots" / commit):
        place.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, repository / "snapshots" / commit / "open_clip_model.safetensors")
    return model, Path(folder, "hub")


def products(shapes, rows, dtype):
    """[(GFLOP, a function that multiplies (rows, a) by (a, b))]: torch's own linear layer and oneDNN's, of each shape."""
    import torch
    import torch.nn.functional as F

    made = []
    for a, b in shapes:
        x, w = torch.randn(rows, a).to(dtype), torch.randn(b, a).to(dtype)
        made += [
            (2e-9 * rows * a * b, lambda x=x, w=w: F.linear(x, w)),
            (
                2e-9 * rows * a * b,
                lambda x=x, w=w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""),
            ),
        ]
    return made


def side_by_side(functions, repeats):
    """Median seconds of each of some calls, taken in turns: what slows the machine down for a while slows them all."""
    rounds = [
        [timed(function) for function in functions] for _ in range(repeats + 1)
    ]  # the first is to warm up
    return [statistics.median(seconds) for seconds in zip(*rounds[1:])]


def clip(args):
    """CLIP ViT-B/16 against what its products alone would take, and against open_clip's own loop."""
    import torch
    from huggingface_hub import constants

    from models.vision import VisionEncoder

    with tempfile.TemporaryDirectory() as folder:
        model, constants.HF_HUB_CACHE = clip_cache(folder)
        images = torch.randn(16, 3, 224, 224)
        for name, dtype in (("clip-vit-b-16", torch.float32), ("clip-vit-b-16-bf16", torch.bfloat16)):
            tower, alone = VisionEncoder("cpu", name), products(VIT_SHAPES, 8 * 197, dtype)
            with torch.no_grad():
                calls = [
                    lambda t=tower: t.encode(images),
                    lambda: model.encode_image(images),
                    *(product for _, product in alone),
                ]
                seconds, loop, *each = side_by_side(calls, args.repeats)
            rate, limit = 16 / seconds, max(gflop / taken for (gflop, _), taken in zip(alone, each))
            yield (
                f"{name}, images/s",
                rate,
                f"its products alone, {limit:.0f} GFLOP/s",
                rate * VIT_GFLOP / limit,
            )
            yield "", rate, f"open_clip's own float32 loop, {16 / loop:.1f}", loop / seconds
        yield clip_int8(args, model, rate, folder)


def clip_int8(args, model, bf16, folder):
    """The same tower through ONNX Runtime, dynamic int8."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import quantize_dynamic

    images = torch.randn(8, 3, 224, 224)
    plain, int8 = Path(folder, "clip.onnx"), Path(folder, "clip.int8.onnx")
    torch.onnx.export(model.visual, (images,), plain, dynamo=True, external_data=False, verbose=False)
    quantize_dynamic(
        plain, int8, op_types_to_quantize=["MatMul", "Gemm"], extra_options=dict(MatMulConstBOnly=True)
    )
    session = onnxruntime.InferenceSession(int8, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    rate = 8 / median(lambda: session.run(None, {name: images.numpy()}), args.repeats)
    rows = torch.tensor(session.run(None, {name: images.numpy()})[0])
    with torch.no_grad():
        cosine = torch.cosine_similarity(model.visual(images), rows).min().item()
    return (
        "CLIP, ONNX Runtime int8, images/s",
        rate,
        f"bfloat16, {bf16:.1f}; cosine to float32 {cosine:.4f}",
        rate / bf16,
    )


def tower(args):
    """The packaged tower against plain eager timm, and against decoding the same JPEGs."""
    import timm
    import torch

    from models.dataset import open_image
    from models.vision import VisionEncoder

    vision = VisionEncoder("cpu", "efficientnet-lite0")
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    pixels = torch.randn(32, 3, 224, 224)
    with torch.no_grad():
        eager = {
            b: 32 / median(lambda b=b: [plain(x) for x in pixels.split(b)], args.repeats)
            for b in (4, 8, 16, 32)
        }
    rate = 32 / median(lambda: vision.encode(pixels), args.repeats)
    best = max(eager, key=eager.get)
    yield (
        "efficientnet-lite0, images/s",
        rate,
        f"plain eager timm, batch 32, {eager[32]:.0f}",
        rate / eager[32],
    )
    yield "", rate, f"plain eager timm at its best batch, {best}, {eager[best]:.0f}", rate / eager[best]
    paths = [Path(args.images, name) for name in list(table(args))[:200]]
    decode = len(paths) / median(lambda: [open_image(path) for path in paths], 3)
    yield "", rate, f"decoding those JPEGs in one thread, {decode:.0f}", rate / decode


def jpeg(args):
    """File to pixels: threads against one, and against Pillow alone; as they are, and at the size of a photograph on the web."""
    from concurrent.futures import ThreadPoolExecutor

    from PIL import Image

    from models.dataset import open_image
    from models.vision import VisionEncoder

    preprocess = VisionEncoder("cpu", "efficientnet-lite0").preprocess

    def pillow(path):
        with Image.open(path) as image:
            image.load()

    def pixels(threads, paths):
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(lambda path: preprocess(open_image(path)), paths):
                pass

    with tempfile.TemporaryDirectory() as folder:
        small, large = [Path(args.images, name) for name in list(table(args))[:400]], []
        for path in small[:100]:
            large.append(Path(folder, f"{path.stem}.jpg"))
            open_image(path).resize((1024, 768)).save(large[-1], quality=90)
        for paths, size in ((small, "as it is"), (large, "1024 x 768")):
            calls = [
                lambda p=paths: [pillow(path) for path in p],
                *(lambda n=n, p=paths: pixels(n, p) for n in (1, os.cpu_count())),
            ]
            alone, one, many = (len(paths) / seconds for seconds in side_by_side(calls, args.repeats))
            yield (
                f"JPEG file, {size}, to pixels, one thread, images/s",
                one,
                f"Pillow decoding alone, {alone:.0f}",
                one / alone,
            )
            yield f"the same, {os.cpu_count()} threads", many, f"one thread, {one:.0f}", many / one


def captions(args):
    """The text tower against plain SentenceTransformer.encode."""
    import torch
    from sentence_transformers import SentenceTransformer

    from models.features import encode_captions
    from models.text import TextEncoder

    text = TextEncoder("cpu")
    plain, texts = (
        SentenceTransformer(str(text.path), device="cpu"),
        [c for found in table(args).values() for c in found][:2000],
    )
    batches = [texts[i : i + 32] for i in range(0, len(texts), 32)]
    text.encode(texts[:64])
    ours = len(texts) / median(lambda: encode_captions(texts, text, None, quiet=True), 3)
    whole = len(texts) / median(lambda: plain.encode(texts, show_progress_bar=False), 3)
    order = len(texts) / median(
        lambda: [plain.encode(batch, show_progress_bar=False) for batch in batches], 3
    )
    apart = (
        (text.encode(texts[:256]) - torch.tensor(plain.encode(texts[:256], show_progress_bar=False)))
        .abs()
        .max()
        .item()
    )
    yield "captions/s", ours, f"SentenceTransformer.encode in file order, batch 32, {order:.0f}", ours / order
    yield "", ours, f"SentenceTransformer.encode of all at once, {whole:.0f}", ours / whole
    yield "  largest difference of an element", apart, "SentenceTransformer's embeddings", ""


def epoch(args):
    """An epoch of the retrieval recipe on 6,000 images and 30,000 captions of random numbers, against its products alone."""
    import torch

    import models.losses as losses
    from models.predictor import Predictor

    n, dim, width, out, batch, members = 256, 1960, 2048, 384, 1280, 3
    torch.manual_seed(0)
    predictor = Predictor(dim, out, width, 0.5, 0.5, members)
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=1e-3, fused=True)
    image, target = torch.randn(n, dim), torch.nn.functional.normalize(torch.randn(batch, out), dim=-1)
    image_of, scale, steps = torch.arange(batch) // 5, torch.tensor(20.0), 30_000 / batch

    def step():
        loss = sum(losses.info_nce(p, target, image_of, scale, 0.0) for p in predictor.each(image)) / members
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    # forward, gradient of both weights, gradient of the hidden layer; the loss's scores (n, batch) forward and back to the prediction
    products = [
        (n, dim, width),
        (n, width, out),
        (width, n, dim),
        (out, n, width),
        (n, out, width),
        (n, out, batch),
        (n, batch, out),
    ]

    inputs = [(torch.randn(a, b), torch.randn(c, b)) for a, b, c in products]

    def alone(linear):
        return steps * members * median(lambda: [linear(x, w) for x, w in inputs], args.repeats)

    whole = steps * median(step, args.repeats)
    mkl, onednn = (
        alone(torch.nn.functional.linear),
        alone(lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")),
    )
    yield (
        "an epoch of --recipe retrieval, s",
        whole,
        f"its products by torch's linear layer (MKL), {mkl:.2f}",
        whole / mkl,
    )
    yield "", whole, f"its products by oneDNN, {onednn:.2f}", whole / onednn


def scripts(args):
    """Whole processes: eval.py on one image against importing torch and reading the weights; --help; peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict(list(table(args).items())[:32])
        write_csv(Path(folder, "few.csv"), found)
        os.environ |= dict(PYTHONPATH=os.getcwd(), HF_HUB_CACHE=str(clip_cache(folder)[1]))
        Path(folder, "torch.py").write_text("import torch")
        bare = min(process([f"{folder}/torch.py"])[1] for _ in range(3))
        for tower in ("efficientnet-lite0-stages", "clip-vit-b-16", "clip-vit-b-16-bf16"):
            Path(folder, "floor.py").write_text(f"""import torch
from models.text import TextEncoder
from models.vision import VisionEncoder
VisionEncoder('cpu', '{tower}'), TextEncoder()  # finds, reads and hashes both""")
            process(
                [
                    "train.py",
                    "--csv",
                    f"{folder}/few.csv",
                    "--images",
                    args.images,
                    "--run",
                    f"{folder}/run",
                    "--epochs",
                    1,
                    "--vision",
                    tower,
                    "--cache",
                    f"{folder}/cache.sqlite",
                    "--quiet",
                ]
            )
            floor = statistics.median(process([f"{folder}/floor.py"])[0] for _ in range(5))
            runs = [
                process(["eval.py", Path(args.images, next(iter(found))), "--run", f"{folder}/run"])
                for _ in range(5)
            ]
            seconds = statistics.median(seconds for seconds, _ in runs)
            yield (
                f"python eval.py IMAGE, {tower}, s",
                seconds,
                f"import torch and reading the weights, {floor:.1f}",
                seconds / floor,
            )
            yield "  its peak memory, GB", max(gb for _, gb in runs), f"of which import torch, {bare:.2f}", ""
        Path(folder, "empty.py").write_text("")
        empty = process([f"{folder}/empty.py"])[0]
        told = max(process([script, "--help"])[0] for script in ("train.py", "eval.py"))
        yield "--help of train.py and eval.py, s", told, f"Python itself, {empty:.2f}", ""


def search(args):
    """Exact search in a million embeddings against faiss, and approximate search with its recall."""
    import faiss
    import torch
    from usearch.index import Index

    from apps.search.nearest import top_k

    torch.manual_seed(0)
    centres = torch.randn(
        2000, 384
    )  # embeddings lie in clusters, and random directions would be all equally far
    rows = torch.nn.functional.normalize(
        centres[torch.randint(2000, (1_000_000,))] + 0.7 * torch.randn(1_000_000, 384), dim=-1
    )
    queries = torch.nn.functional.normalize(rows[:100] + 0.03 * torch.randn(100, 384), dim=-1)
    flat = faiss.IndexFlatIP(384)
    flat.add(rows.numpy())
    for n in (1, 100):
        ours = median(lambda n=n: top_k(queries[:n], rows, 10), args.repeats)
        theirs = median(lambda n=n: flat.search(queries[:n].numpy(), 10), args.repeats)
        yield (
            f"search, 1 M x 384, {n} queries, ms",
            1e3 * ours,
            f"faiss IndexFlatIP, {1e3 * theirs:.0f}",
            theirs / ours,
        )
    index = Index(ndim=384, metric="ip", dtype="f16", expansion_search=512)  # as apps.search
    began = time.perf_counter()
    index.add(torch.arange(len(rows)).numpy(), rows.numpy())
    built = time.perf_counter() - began
    exact = top_k(queries, rows, 10)[1]
    found = torch.tensor(index.search(queries.numpy(), 10).keys.astype("int64"))
    recall = (found[:, :, None] == exact[:, None, :]).any(2).double().mean().item()
    each = 1e3 * median(lambda: index.search(queries[:1].numpy(), 10), args.repeats)
    plain = 1e3 * median(lambda: top_k(queries[:1], rows, 10), args.repeats)
    told = f"exact, {plain:.1f}; recall@10 {recall:.3f}, built in {built:.0f} s"
    yield "usearch, 1 M x 384, one query, ms", each, told, plain / each


def loop(args):
    """train.py against the README's custom loop, which encodes every image and caption again in each epoch."""
    import torch
    from torch.utils.data import DataLoader

    from models.dataset import VisionTextDataset
    from models.predictor import Predictor
    from models.text import TextEncoder
    from models.vision import VisionEncoder

    with tempfile.TemporaryDirectory() as folder:
        path, name = Path(folder, "captions.csv"), "efficientnet-lite0"
        write_csv(path, {image: texts[:1] for image, texts in table(args).items()})
        vision, text = VisionEncoder("cpu", name), TextEncoder("cpu")
        predictor = Predictor(vision.dim)
        optimiser = torch.optim.AdamW(predictor.parameters(), lr=1e-4)
        dataset = VisionTextDataset(path, vision.preprocess, args.images)
        vision.encode(dataset[0][0][None]), text.encode(["load the towers before the clock starts"])
        began = time.perf_counter()
        for images, batch in DataLoader(dataset, batch_size=LOOP_BATCH, shuffle=True):
            loss = (
                1
                - torch.cosine_similarity(predictor(vision.encode(images)), text.encode(batch), dim=-1).mean()
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ten = 10 * (time.perf_counter() - began)
        common = ["--images", args.images, "--vision", name, "--cache", f"{folder}/cache.sqlite", "--quiet"]
        cold, warm = (
            process(["train.py", "--csv", path, "--run", f"{folder}/run", *common])[0] for _ in range(2)
        )
        yield (
            f"train.py, {len(dataset)} images, 10 epochs, cold, s",
            cold,
            f"the loop that encodes every epoch, {ten:.0f}",
            ten / cold,
        )
        yield "the same, cache warm, s", warm, f"the loop, {ten:.0f}", ten / warm
        common[common.index("--cache") + 1] = f"{folder}/whole.sqlite"
        peak = process(["train.py", "--csv", args.csv, "--run", f"{folder}/whole", "--epochs", 1, *common])[1]
        yield "train.py on the whole CSV, cold: peak memory, GB", peak, "", ""


def shards(args, images=1_000_000):
    """train.py over feature shards of a million rows each way, mapped from files, against its products alone."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        tars = feature_shards(folder, images, 1)
        seconds, own = train_shards(
            folder, tars, "--recipe", "classic", "--batch-size", 1280, "--val-fraction", 1000 / images
        )
        epoch = json.loads(Path(folder, "run", "log.jsonl").read_text())["seconds"]
        gflop, width = 6e-9 * (1904 * 1024 + 1024 * 384), 1280
        alone = products([(1904, 1024), (1024, 384)], width, torch.float32)
        rate = max(
            gflop / taken
            for (gflop, _), taken in zip(alone, side_by_side([product for _, product in alone], args.repeats))
        )
        told = f"its products alone at {rate:.0f} GFLOP/s, {rate / gflop:,.0f}"
        pace = images / epoch
        yield "train.py --shards, 1 M images and captions, rows/s", pace, told, pace * gflop / rate
        yield "  the whole command, s", seconds, f"of which the epoch, {epoch:.1f}", ""
        yield "  its own memory at most, GB", own, f"the rows take {images * (1904 + 384) * 2 / 1e9:.1f}", ""


def feature_shards(folder, images, captions, per_shard=4_000):
    """Write feature shards of random unit rows, `captions` an image (every shard the same, since speed does not depend on them), and
    return the pattern of the tars they would come from."""
    import torch
    from safetensors.torch import save_file

    from models.features.shards import FORMAT
    from models.text import TextEncoder
    from models.vision import PACKAGED, VisionEncoder

    vision, text = VisionEncoder("cpu", PACKAGED), TextEncoder("cpu")
    towers = dict(format=FORMAT, vision=vision.name, text=text.name, vision_key=vision.key, text_key=text.key)
    rows = {
        key: torch.nn.functional.normalize(torch.randn(n, dim), dim=1).half()
        for key, n, dim in (("image", per_shard, vision.dim), ("text", per_shard * captions, 384))
    }
    starts = range(0, images, per_shard)
    for number, start in enumerate(starts):
        n = min(per_shard, images - start)
        names = bytearray(json.dumps([f"{start + i}.jpg" for i in range(n)]).encode())
        tensors = dict(
            image=rows["image"][:n],
            text=rows["text"][: n * captions],
            image_of=torch.arange(n * captions) // captions,
            names=torch.frombuffer(names, dtype=torch.uint8),
        )
        save_file(
            tensors, Path(folder, f"{number:05}.safetensors"), towers | dict(tar_sha256=f"random {start}")
        )
    return f"{folder}/{{00000..{len(starts) - 1:05}}}.tar"


def train_shards(folder, tars, *flags):
    """(seconds, peak GB of its own) of `train.py --shards` for an epoch. Pages of the shards' files are not its own: the system drops
    them when it wants memory."""
    code = """
import sys, threading, time, train
peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")))
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
status = train.main(sys.argv[1:])
print(peak[0], file=sys.stderr)
sys.exit(status)"""
    flags = [
        "--epochs",
        1,
        *flags,
        "--shards",
        tars,
        "--shard-features",
        folder,
        "--quiet",
        "--run",
        f"{folder}/run",
    ]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, "--vision", "efficientnet-lite0-stages", *map(str, flags)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    return time.perf_counter() - began, int(done.stderr.split()[-1]) * 1024 / 1e9


def growth(path, sizes=(1_000, 4_000, 16_000, 64_000)):
    """train.py --shards, five captions an image: seconds and peak memory of its own for each number of images, printed and plotted."""
    from matplotlib.figure import Figure

    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            tars = feature_shards(folder, size, 5)
            found.append(train_shards(folder, tars, "--recipe", "retrieval", "--val-fraction", 500 / size))
            yield (
                f"train.py --shards, {size:,} images, 1 epoch, s",
                found[-1][0],
                f"peak memory of its own {found[-1][1]:.2f} GB",
                "",
            )
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    for axes, values, name in zip(figure.subplots(1, 2), zip(*found), ("seconds", "memory of its own, GB")):
        axes.plot(sizes, values, "o-")
        axes.set(xlabel="images", ylabel=name, ylim=(0, 1.1 * max(values)))
    figure.savefig(path, dpi=150)


# The tower first: in a process that has held larger tensors, glibc keeps memory, and eager timm is three times as fast (EXPERIMENTS.md).
ROWS = dict(
    tower=tower,
    clip=clip,
    jpeg=jpeg,
    captions=captions,
    epoch=epoch,
    scripts=scripts,
    search=search,
    shards=shards,
    loop=loop,
)


def main(argv=None):
    """Print a table, then one JSON line. Exit code: 0 done, 130 interrupted."""
    args = parse(argv)
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    machine, found = f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}", []
    print(machine)
    try:
        for rows in (
            [growth(args.growth)] if args.growth else [ROWS[name](args) for name in args.rows or ROWS]
        ):
            for what, value, against, ratio in rows:
                shown = f"{value:10.3g}" if value < 1000 else f"{value:10.0f}"
                times = f"{ratio:.2f} x" if ratio else ""
                print(f"{what:52} {shown if what else '':>10}  {against:72} {times:>8}", flush=True)
                found.append(
                    dict(what=what or found[-1]["what"], value=value, against=against, ratio=ratio or None)
                )
    except KeyboardInterrupt:
        return 130
    print(json.dumps(dict(machine=machine, rows=found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
