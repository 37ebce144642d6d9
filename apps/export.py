"""The image side of a run, tower and predictor, as one ONNX file, in float32 and in int8.

    python -m apps.export                                            runs/default -> model.onnx and model.int8.onnx, and what int8 costs
    python -m apps.export --run runs/f8k --csv dev.csv --images DIR  the comparison on these images
    python eval.py photo.jpg --labels "a dog" "a cat" --onnx model.int8.onnx

int8 is ONNX Runtime's dynamic quantisation of the matrix products: all of a ViT, the predictor behind an EfficientNet. Convolutions
stay float32, since every int8 of them is slower or worse (`quantise`).
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1e-4  # largest difference of an embedding's element between torch and ONNX Runtime; 3e-7 was seen


def parse(argv):
    """The command line."""
    p = argparse.ArgumentParser(
        "python -m apps.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "--run",
        default="runs/default",
        help="run folder of train.py (its best.pt), or a checkpoint (default %(default)s)",
    )
    p.add_argument(
        "--out",
        type=Path,
        default="model.onnx",
        metavar="FILE",
        help="the float32 file, written over; int8 goes to FILE with .int8.onnx (default %(default)s)",
    )
    p.add_argument(
        "--csv", help="captions file of the comparison (default: the run's own, its held-out images)"
    )
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
        "--repeats",
        type=int,
        default=7,
        help="runs that milliseconds are the median of (default %(default)s)",
    )
    p.add_argument(
        "--cache",
        default=".cache/features.sqlite",
        help="file that keeps the captions' embeddings (default %(default)s)",
    )
    p.add_argument("--quiet", action=argparse.BooleanOptionalAction, default=False, help="no progress bars")
    args = p.parse_args(argv)
    if args.out.suffix != ".onnx":
        p.error(f"--out {args.out}: give a name that ends in .onnx")
    if args.repeats < 1:
        p.error(f"--repeats {args.repeats}: give 1 or more")
    return args


def whole(model):
    """`model.encode_image` of pixels as an nn.Module of plain operations: (B, 3, S, S), or (B, P) for joined towers, -> (B, Dt)."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from models.vision import FoldedLite

    parts = model.vision.parts or [model.vision]

    class Whole(nn.Module):
        """Every tower on its own pixels, their rows side by side, the predictor."""

        def __init__(self):
            super().__init__()
            self.towers, self.predictor = nn.ModuleList(part.network for part in parts), model.predictor

        def forward(self, pixels):
            each = pixels.split([3 * part.size**2 for part in parts], dim=1) if len(parts) > 1 else [pixels]
            rows = []
            for part, tower, x in zip(parts, self.towers, each):
                x = x.view(-1, 3, part.size, part.size)  # (B, 3, S, S)
                # FoldedLite's forward goes four images at a time, which would fix the batch size.
                rows.append(
                    F.normalize(tower.pooled(x) if isinstance(tower, FoldedLite) else tower(x), dim=-1)
                )
            features = torch.cat(rows, dim=1) / len(rows) ** 0.5  # (B, Dv)
            return self.predictor(features[:, None])[
                :, 0
            ]  # (B, Dt); 3-D, since rows would go to oneDNN's product

    return Whole().eval()


def noise(model, batch):
    """Pixels for a tower to run on, the same every time: (batch, 3, S, S) float32, or (batch, P) for joined towers."""
    import torch

    parts = model.vision.parts
    shape = (3 * sum(part.size**2 for part in parts),) if parts else (3, model.vision.size, model.vision.size)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0))


def facts(model):
    """What the file says of itself: how pixels are made, and of the checkpoint what others may know. The names of the training images
    and the paths of whoever trained it stay at home."""
    from models.card import LOCAL
    from models.vljepa import PUBLIC

    parameters = model.predictor.state_dict()
    digest = hashlib.sha256(
        b"".join(name.encode() + value.cpu().numpy().tobytes() for name, value in parameters.items())
    ).hexdigest()
    recipe = {key: value for key, value in model.state["recipe"].items() if key not in LOCAL}
    recipe |= {
        key: Path(model.state["recipe"][key]).name
        for key in ("csv", "images", "run")
        if key in model.state["recipe"]
    }
    state = {key: value for key, value in model.state.items() if key in PUBLIC}
    preprocess = [
        {key: part.spec[key] for key in ("size", "mean", "std", "resize")}
        for part in model.vision.parts or [model.vision]
    ]
    return dict(
        preprocess=preprocess, state=state | dict(recipe=recipe, trained_on=[], predictor_sha256=digest)
    )


def to_onnx(model, path):
    """Write the float32 file. ValueError when a tower's operations have no ONNX counterpart, or its weights need more than one file."""
    import torch

    from models.onnx_file import LARGEST

    network, known = whole(model), facts(model)
    size = sum(4 * p.numel() for p in network.state_dict().values())
    if size > 0.95 * LARGEST:
        raise ValueError(
            f"{model.vision.name}: {size / 1e9:.1f} GB of weights, and an ONNX file holds 2; take a run with a smaller tower"
        )
    # Under a gradient the towers take torch's plain operations and not oneDNN's fused ones, for which ONNX has no word.
    pixels = noise(model, 2).requires_grad_()
    try:
        program = torch.onnx.export(
            network,
            (pixels,),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["pixels"],
            output_names=["embedding"],
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(
            f"image tower {model.vision.name} can't be exported by torch {torch.__version__}: {reason}"
        ) from None
    save(program.model_proto, path, known)


def save(proto, path, known):
    """Write with this project's metadata and none of the exporter's, which name source lines and paths of this machine."""
    import onnx

    from models.onnx_file import FORMAT

    onnx.helper.set_model_props(
        proto, {"format": FORMAT} | {key: json.dumps(value) for key, value in known.items()}
    )
    g = proto.graph
    for part in (g, *g.node, *g.input, *g.output, *g.initializer, *g.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(proto, path)


def quantise(path, out, known):
    """The file at `path` with int8 matrix products: weights by column, inputs by what they hold (dynamic).

    Weights keep 7 bits, because processors without VNNI overflow on products of 8 and 8. Measured on Flickr8k's dev split with
    efficientnet-lite2-stages, R@1 both ways and CPU milliseconds an image: float32 31.4 / 27.2, 14; this 31.5 / 27.2, 12. Tried, eight
    images at a time: convolutions too 28.8 / 25.2, 38; all but the depthwise ones 30.6 / 27.3, 19; static, calibrated on 100 training
    images (MinMax, by channel) 26.8 / 23.9, 9."""
    import onnx
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)  # the quantiser asks for it
    quantize_dynamic(
        prepared, out, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True
    )
    save(onnx.load(out), out, known)


def check(model, exported, out):
    """ValueError when ONNX Runtime's embeddings are not torch's."""
    import torch

    parts = model.vision.parts or [model.vision]
    limit = (
        1e-2 if torch.bfloat16 in [part.dtype for part in parts] else LIMIT
    )  # a bfloat16 tower is exported in float32
    pixels = noise(model, 3)
    mine, theirs = model.encode_image(pixels), exported.encode_image(pixels)  # (3, Dt)
    difference, cosine = (mine - theirs).abs().max().item(), (mine * theirs).sum(1).min().item()
    if not difference <= limit:
        raise ValueError(
            f"{out}: not written, since ONNX Runtime's embeddings differ from torch's by {difference:.2g} (limit {limit:g}, "
            f"lowest cosine {cosine:.5f}); try other versions of torch and onnxruntime"
        )
    return difference


def images_of(args, model):
    """(data set of the images to compare on, None) or (None, why there is none). Images that were trained on are left out."""
    from models.dataset import VisionTextDataset

    recipe, trained_on = model.state["recipe"], set(model.state["trained_on"])
    csv, columns = args.csv, (args.image_column, args.caption_column)
    if not csv:
        csv, columns = recipe["csv"], (recipe["image_column"], recipe["caption_column"])
        if not trained_on or not Path(csv).is_file():
            return None, f"the images this run held out are not known here ({csv})"
    dataset = VisionTextDataset(
        csv, model.vision.preprocess, args.images or recipe["images"], *columns, skip_bad=not args.csv
    )
    kept = set(dataset.image_names) - trained_on
    if len(kept) < 2:
        if args.csv:
            raise ValueError(
                f"{csv}: {len(kept)} of its {len(dataset.image_names)} images were not trained on; give another --csv"
            )
        return None, "this run held no images out"
    dataset.keep(kept)
    return dataset, None


def embeddings(systems, dataset, quiet):
    """{system: (N, Dt)} of a data set's images, each decoded once."""
    from concurrent.futures import ThreadPoolExecutor

    import torch
    from tqdm import tqdm

    rows, n = {name: [] for name in systems}, len(dataset.image_names)
    with ThreadPoolExecutor() as pool, tqdm(total=n, desc="images", unit="", disable=quiet) as bar:
        for start in range(0, n, 32):
            pixels = torch.stack(list(pool.map(dataset.pixels, range(start, min(start + 32, n)))))
            for name, system in systems.items():
                rows[name].append(system.encode_image(pixels))
            bar.update(len(pixels))
    return {name: torch.cat(parts) for name, parts in rows.items()}


def difference(ranks, others, image_of, draws=1000, seed=0):
    """{key: (others - ranks, low, high)} of each recall, as fractions, with the 95 % interval of a paired bootstrap: images are drawn
    with replacement, an image's captions with it, and both systems are counted over the same draw. `ranks`: (to_image (M,),
    to_text (N,)) as `metrics.ranks` gives them."""
    import torch

    from models.metrics import KS

    n = len(ranks[1])
    count = image_of.bincount(minlength=n).double()
    draw = torch.randint(n, (draws, n), generator=torch.Generator().manual_seed(seed))
    edges, found = torch.tensor([0.025, 0.975], dtype=torch.double), {}
    for k in KS:
        to_image, to_text = ((b < k).double() - (a < k).double() for a, b in zip(ranks, others))
        to_image = torch.zeros(n, dtype=torch.double).index_add(
            0, image_of, to_image
        )  # (N,): of its captions together
        for way, gain, queries in (("text", to_text, torch.ones_like(count)), ("image", to_image, count)):
            drawn = gain[draw].sum(1) / queries[draw].sum(1)  # (draws,)
            found[f"{way}_retrieval_recall@{k}"] = (
                (gain.sum() / queries.sum()).item(),
                *drawn.quantile(edges).tolist(),
            )
    return found


def milliseconds(system, pixels, repeats):
    """Median of `repeats`, an image, after one call to warm up."""
    system.encode_image(pixels)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        system.encode_image(pixels)
        seconds.append(time.perf_counter() - began)
    return 1000 * sorted(seconds)[repeats // 2] / len(pixels)


def compare(args, model, systems, sizes, dataset, why_not):
    """Print the table: megabytes, milliseconds, and, where there are images, retrieval."""
    import torch

    from models import metrics
    from models.features import encode_captions

    def line(name, *cells):
        print(f"{name:26}" + "".join(f"{cell:>13}" for cell in cells))

    pixels = noise(model, 8)
    print(f"{args.run}, {model.vision.name}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    line("", *systems)
    line("file, MB", *(f"{size / 1e6:.1f}" for size in sizes))
    for n in (1, 8):
        line(
            f"ms an image, {n} at a time",
            *(f"{milliseconds(system, pixels[:n], args.repeats):.1f}" for system in systems.values()),
        )
    if dataset is None:
        print(f"no retrieval: {why_not}; give photographs with captions: --csv FILE --images DIR")
        return
    rows = embeddings(systems, dataset, args.quiet)  # each (N, Dt)
    text, image_of = (
        encode_captions(dataset.captions, model.text, args.cache, args.quiet),
        torch.tensor(dataset.image_of),
    )
    ranks = {name: metrics.ranks(predicted, text, image_of) for name, predicted in rows.items()}
    found = {name: metrics.summary(*rank) for name, rank in ranks.items()}
    change = difference(ranks["torch"], ranks["int8"], image_of)
    line(
        "cosine to torch, mean",
        *(f"{(predicted * rows['torch']).sum(1).mean():.5f}" for predicted in rows.values()),
    )
    line(
        "cosine to torch, lowest",
        *(f"{(predicted * rows['torch']).sum(1).min():.5f}" for predicted in rows.values()),
    )
    print(
        f"{dataset.csv_path}: {len(image_of)} captions of {len(dataset.image_names)} images it was not trained on; "
        "int8 - torch in points, with the 95 % interval of a paired bootstrap over images"
    )
    for way, key in (("image to text", "text_retrieval_recall"), ("text to image", "image_retrieval_recall")):
        for k in metrics.KS:
            gain = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in change[f"{key}@{k}"]))
            line(f"{way} R@{k}", *(f"{100 * m[f'{key}@{k}']:.1f}" for m in found.values()), f"    {gain}")
    lost = max(-100 * change[f"{key}_retrieval_recall@1"][0] for key in ("text", "image"))
    if lost > 1:
        print(f"int8 loses {lost:.1f} points of R@1 here, more than 1: take {args.out}")


def export(args):
    """Write both files, whole or not at all, and print the table."""
    from models.onnx_file import Exported
    from models.vljepa import VLJEPA

    model = VLJEPA.load(args.run)
    images = images_of(args, model)  # before anything is written: a wrong --csv is found at once
    args.out.parent.mkdir(parents=True, exist_ok=True)
    int8 = args.out.with_suffix(".int8.onnx")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=args.out.parent) as folder:
        parts = [Path(folder, path.name) for path in (args.out, int8)]
        to_onnx(model, parts[0])
        apart = check(model, Exported(parts[0]), args.out)
        quantise(*parts, facts(model))
        Exported(parts[1]).encode_image(noise(model, 1))  # raises when it does not run
        for part, path in zip(parts, (args.out, int8)):
            os.replace(part, path)
    print(f"written: {args.out} (at most {apart:.1g} from torch) and {int8}")
    towers = sum(part.path.stat().st_size for part in model.vision.parts or [model.vision])
    predictor = sum(value.numel() * value.element_size() for value in model.predictor.state_dict().values())
    sizes = [towers + predictor, args.out.stat().st_size, int8.stat().st_size]
    compare(args, model, {"torch": model, "onnx": Exported(args.out), "int8": Exported(int8)}, sizes, *images)


def main(argv=None):
    """Exit code: 0 done, 1 failed, 130 interrupted; argparse itself exits with 2 on wrong usage."""
    args = parse(argv)
    try:
        export(args)
    except (OSError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
