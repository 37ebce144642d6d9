"""Rows of the towers: images and captions per second, against the libraries' own loops."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from .data import cached_clip, captions_of, image_paths
from .timing import Row, median, side_by_side

VIT_GFLOP = 35.1  # of ViT-B/16 per image, where a multiplication and an addition count as two
VIT_SHAPES = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # input and output width of its products
# glibc returns the memory of large tensors at once, so eager timm spends most of its time on page faults.
# With these settings it keeps the memory and is about four times as fast, which is the fair peer
# (docs/EXPERIMENTS.md).
KEEP_MEMORY = dict(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(1 << 40), MALLOC_TOP_PAD_=str(1 << 28))


def best_rate(shapes, rows, dtype, repeats):
    """GFLOP/s of the fastest product (rows, a) @ (a, b) over shapes (a, b), by torch or by oneDNN."""
    import torch
    import torch.nn.functional as F

    from models import onednn

    calls, gflop = [], []
    for a, b in shapes:
        x, weight = torch.randn(rows, a).to(dtype), torch.randn(b, a).to(dtype)
        for layer in (F.linear, onednn.linear):
            calls.append(lambda layer=layer, x=x, weight=weight: layer(x, weight))
            gflop.append(2e-9 * rows * a * b)
    with torch.no_grad():
        seconds = side_by_side(calls, repeats)
    return max(work / taken for work, taken in zip(gflop, seconds))


def clip(args):
    """CLIP ViT-B/16 against what its products alone take, and against open_clip's own loop."""
    import torch

    from models import onednn
    from models.vision import VisionEncoder

    images = torch.randn(16, 3, 224, 224)
    with cached_clip() as (model, _), torch.no_grad():
        rates = {}
        for name, dtype in (("clip-vit-b-16", torch.float32), ("clip-vit-b-16-bf16", torch.bfloat16)):
            if dtype == torch.bfloat16 and not onednn.works("linear", dtype):
                yield Row(f"{name}, images/s", None, "not supported on this CPU")
                continue
            tower = VisionEncoder("cpu", name)
            calls = [lambda tower=tower: tower.encode(images), lambda: model.encode_image(images)]
            seconds, loop = side_by_side(calls, args.repeats)
            limit = best_rate(VIT_SHAPES, 8 * 197, dtype, args.repeats)
            rates[name] = rate = 16 / seconds
            alone = f"its products alone, {limit:.0f} GFLOP/s"
            yield Row(f"{name}, images/s", rate, alone, rate * VIT_GFLOP / limit)
            yield Row("", rate, f"open_clip's own float32 loop, {16 / loop:.1f}", loop / seconds)
        yield clip_int8(args, model, *list(rates.items())[-1])


def clip_int8(args, model, peer, rate):
    """The same tower through ONNX Runtime in dynamic int8, against the fastest of the others."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import quantize_dynamic

    images = torch.randn(8, 3, 224, 224)
    with TemporaryDirectory() as folder:
        plain, int8 = Path(folder, "clip.onnx"), Path(folder, "clip.int8.onnx")
        torch.onnx.export(model.visual, (images,), plain, dynamo=True, external_data=False, verbose=False)
        options = dict(MatMulConstBOnly=True)
        quantize_dynamic(plain, int8, op_types_to_quantize=["MatMul", "Gemm"], extra_options=options)
        session = onnxruntime.InferenceSession(int8, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.numpy()}
    ours = 8 / median(lambda: session.run(None, feed), args.repeats)
    rows = torch.tensor(session.run(None, feed)[0])
    cosine = torch.cosine_similarity(model.visual(images), rows).min().item()
    against = f"{peer}, {rate:.1f}; cosine to float32 {cosine:.4f}"
    return Row("CLIP, ONNX Runtime int8, images/s", ours, against, ours / rate)


def tower(args):
    """The packaged tower against eager timm at its best batch size, and against decoding the same JPEGs."""
    import torch

    from models.dataset import open_image
    from models.vision import VisionEncoder

    command = [sys.executable, "-m", "tools.bench.timm_peer", "--repeats", str(args.repeats)]
    done = subprocess.run(command, env=os.environ | KEEP_MEMORY, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    ours, eager = found["ours"], {int(batch): rate for batch, rate in found["timm"].items()}
    best = max(eager, key=eager.get)
    against = f"eager timm, memory kept, at its best batch, {best}: {eager[best]:.0f}"
    yield Row("efficientnet-lite0, images/s", ours, against, ours / eager[best])
    vision, pixels = VisionEncoder("cpu", "efficientnet-lite0"), torch.randn(32, 3, 224, 224)
    rate = 32 / median(lambda: vision.encode(pixels), args.repeats)
    paths = image_paths(args, 200)
    decode = len(paths) / median(lambda: [open_image(path) for path in paths], 3)
    yield Row("", rate, f"decoding those JPEGs in one thread, {decode:.0f}", rate / decode)


def decode_all(paths):
    """Decode files with Pillow alone."""
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            image.load()


def preprocess_all(preprocess, threads, paths):
    """Turn files into pixels in a number of threads."""
    from models.dataset import open_image

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda path: preprocess(open_image(path)), paths):
            pass


def jpeg(args):
    """JPEG files to pixels: one thread against Pillow alone, all threads against one."""
    from models.dataset import open_image
    from models.vision import VisionEncoder

    preprocess, cores = VisionEncoder("cpu", "efficientnet-lite0").preprocess, os.cpu_count()
    with TemporaryDirectory() as folder:
        small = image_paths(args, 400)
        large = [Path(folder, f"{path.stem}.jpg") for path in small[:100]]
        for source, path in zip(small, large):
            open_image(source).resize((1024, 768)).save(path, quality=90)
        for paths, size in ((small, "as it is"), (large, "1024 x 768")):
            calls = [
                lambda paths=paths: decode_all(paths),
                lambda paths=paths: preprocess_all(preprocess, 1, paths),
                lambda paths=paths: preprocess_all(preprocess, cores, paths),
            ]
            alone, one, many = (len(paths) / seconds for seconds in side_by_side(calls, args.repeats))
            what = f"JPEG file, {size}, to pixels, one thread, images/s"
            yield Row(what, one, f"Pillow decoding alone, {alone:.0f}", one / alone)
            yield Row(f"the same, {cores} threads", many, f"one thread, {one:.0f}", many / one)


def captions(args):
    """The text tower against SentenceTransformer.encode."""
    import torch
    from sentence_transformers import SentenceTransformer

    from models.features import encode_texts
    from models.text import TextEncoder

    text = TextEncoder("cpu")
    plain = SentenceTransformer(str(text.path), device="cpu")
    texts = [caption for found in captions_of(args).values() for caption in found][:2000]
    batches = [texts[i : i + 32] for i in range(0, len(texts), 32)]
    calls = [
        lambda: encode_texts(texts, text, None, quiet=True),
        lambda: plain.encode(texts, show_progress_bar=False),
        lambda: [plain.encode(batch, show_progress_bar=False) for batch in batches],
    ]
    ours, whole, order = (len(texts) / seconds for seconds in side_by_side(calls, 3))
    few = texts[:256]
    apart = (text.encode(few) - torch.tensor(plain.encode(few, show_progress_bar=False))).abs().max().item()
    in_order = f"SentenceTransformer.encode in file order, batch 32, {order:.0f}"
    yield Row("captions/s", ours, in_order, ours / order)
    yield Row("", ours, f"SentenceTransformer.encode of all at once, {whole:.0f}", ours / whole)
    yield Row("  largest difference of an element", apart, "SentenceTransformer's embeddings")
