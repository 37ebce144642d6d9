"""How fast, as ratios to a peer measured in the same run.

    python -m apps.bench --csv ../shared/flickr8k/train.csv --images ../shared/flickr8k/images
    python -m apps.bench                                                  on the archive that comes with it

The machine should be otherwise idle. One JSON line with every number comes last.
"""

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LOOP_BATCH = 16


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--csv", default="caption.csv", help="captions file (default %(default)s); one caption an image is used")
    p.add_argument("--images", default="my_image_archive", help="folder of its images (default %(default)s)")
    p.add_argument("--count", type=int, default=2000, help="images to use (default %(default)s)")
    p.add_argument("--vision", default="efficientnet-lite0", help="image tower (default %(default)s)")
    p.add_argument("--repeats", type=int, default=7, help="runs a median is taken of (default %(default)s)")
    return p.parse_args(argv)


def median_seconds(function, repeats):
    """Median seconds of a call, after one to warm up."""
    function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def tower_rate(args):
    """Images a second of the packaged tower: plain eager timm at its best batch size, and as VisionEncoder runs it."""
    import timm
    import torch

    from models.vision import VisionEncoder

    vision = VisionEncoder("cpu", "efficientnet-lite0")
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    pixels = torch.randn(32, 3, 224, 224)
    with torch.no_grad():
        eager = {b: 32 / median_seconds(lambda b=b: [plain(x) for x in pixels.split(b)], args.repeats) for b in (4, 8, 16, 32)}
        fused = 32 / median_seconds(lambda: vision.encode(pixels), args.repeats)
    return eager, fused


def first_captions(args, path):
    """Write the first caption of the first `count` images to `path`; how many there are."""
    rows = {}
    with open(args.csv, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if len(rows) < args.count:
                rows.setdefault(row["image_name"], row["comment"])
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image_name", "comment"), *rows.items()])
    return len(rows)


def loop_epoch(args, path):
    """Seconds of one epoch of the README's custom loop, which encodes every image and caption again."""
    import torch
    from torch.utils.data import DataLoader

    from models.dataset import VisionTextDataset
    from models.predictor import Predictor
    from models.text import TextEncoder
    from models.vision import VisionEncoder

    vision, text = VisionEncoder("cpu", args.vision), TextEncoder("cpu")
    predictor = Predictor(vision.dim)
    optimiser = torch.optim.AdamW(predictor.parameters(), lr=1e-4)
    dataset = VisionTextDataset(path, vision.preprocess, args.images)
    vision.encode(dataset[0][0][None]), text.encode(["load the towers before the clock starts"])
    began = time.perf_counter()
    for images, captions in DataLoader(dataset, batch_size=LOOP_BATCH, shuffle=True):
        loss = 1 - torch.cosine_similarity(predictor(vision.encode(images)), text.encode(captions), dim=-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return time.perf_counter() - began


def train_seconds(args, path, folder):
    """(cold, warm) seconds of `python train.py`, 10 epochs of the classic recipe, the cache empty and then full. The whole
    process is timed; what `import torch` alone takes in a process is `import_seconds`."""
    command = [sys.executable, "train.py", "--csv", str(path), "--images", args.images, "--vision", args.vision,
               "--run", f"{folder}/run", "--cache", f"{folder}/cache.sqlite", "--quiet"]  # fmt: skip
    return [process_seconds(command), process_seconds(command)]


def process_seconds(command):
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def train_peak(args, folder):
    """Peak resident GB of a `train.py` process on the whole CSV, every caption, cache empty. The process reads its own VmHWM (Linux):
    the ru_maxrss of a child starts from that of the process that forked it."""
    code = "import sys, train; train.main(sys.argv[1:]); print(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')))"
    command = [sys.executable, "-c", code, "--csv", args.csv, "--images", args.images, "--vision", args.vision,
               "--run", f"{folder}/peak", "--cache", f"{folder}/peak.sqlite", "--epochs", "1", "--quiet"]  # fmt: skip
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(output.split("VmHWM:")[1].split()[0]) / 1e6  # kB


def main(argv=None):
    """Print the table, then one JSON line. Exit code 0."""
    args = parse(argv)
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    found = dict(machine=f"{cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(found["machine"])
    eager, fused = tower_rate(args)
    best = max(eager, key=eager.get)
    found |= dict(eager_images_s=eager, fused_images_s=fused)
    print(f"efficientnet-lite0, images/s: {fused:.0f}, {fused / eager[32]:.1f} x plain eager timm at batch 32 ({eager[32]:.0f}), "
          f"{fused / eager[best]:.1f} x eager at its best batch, {best} ({eager[best]:.0f})")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "captions.csv")
        images = first_captions(args, path)
        loop = loop_epoch(args, path)
        cold, warm = train_seconds(args, path, folder)
        bare = process_seconds([sys.executable, "-c", "import torch"])
        found |= dict(images=images, loop_epoch_s=loop, train_cold_s=cold, train_warm_s=warm, import_torch_s=bare)
        print(f"{images} images, 10 epochs: the re-encoding loop {10 * loop:.0f} s (one epoch timed, times 10, imports not counted); "
              f"python train.py cold {cold:.1f} s, {10 * loop / cold:.1f} x; warm {warm:.1f} s, {10 * loop / warm:.0f} x, "
              f"of which import torch {bare:.1f} s; without it {10 * loop / (warm - bare):.0f} x")  # fmt: skip
        found["train_peak_gb"] = train_peak(args, folder)
        print(f"peak memory of train.py on all of {args.csv}: {found['train_peak_gb']:.2f} GB")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
