"""Print {"ours": images/s, "timm": {batch size: images/s}} of the packaged tower and of eager timm.

A process of its own: glibc reads how to keep memory from the environment when a process starts.
"""

import argparse
import json

BATCHES = (4, 8, 16, 32)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="calls per median")
    repeats = parser.parse_args().repeats

    import timm
    import torch

    from models.vision import VisionEncoder

    from .timing import side_by_side

    vision = VisionEncoder("cpu", "efficientnet-lite0")
    plain = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    pixels = torch.randn(32, 3, 224, 224)
    calls = [lambda: vision.encode(pixels)]
    calls += [lambda size=size: [plain(part) for part in pixels.split(size)] for size in BATCHES]
    with torch.no_grad():
        ours, *eager = (32 / seconds for seconds in side_by_side(calls, repeats))
    print(json.dumps(dict(ours=ours, timm=dict(zip(BATCHES, eager)))))
