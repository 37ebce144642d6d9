"""What the rows measure on: captions of a CSV, sheets of its images, CLIP with random weights, feature shards
of random numbers."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGED = "efficientnet-lite0-stages"


def captions_of(args):
    """{image name: captions} of the first `--count` images of the CSV."""
    from models.dataset import read_rows

    found = {}
    for row in read_rows(args.csv):
        if row.image_name in found or len(found) < args.count:
            found.setdefault(row.image_name, []).append(row.text)
    return found


def image_paths(args, count):
    """Paths of the first `count` images of the CSV."""
    return [Path(args.images, name) for name in list(captions_of(args))[:count]]


def write_sheets(args, folder):
    """Write `--count` JPEGs of 1024 x 768 pixels into `folder`, each of twelve images of the CSV, and return
    their paths. Enlarged images would be blurred, and decode faster than photographs."""
    from PIL import Image

    from models.dataset import open_image

    tiles = image_paths(args, args.count)

    def write(number):
        sheet = Image.new("RGB", (1024, 768))
        for i in range(12):
            tile = open_image(tiles[(number + 41 * i) % len(tiles)]).resize((256, 256))
            sheet.paste(tile, (256 * (i % 4), 256 * (i // 4)))
        path = Path(folder, f"{number:06}.jpg")
        sheet.save(path, quality=90)
        return path

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(write, range(args.count)))


@contextmanager
def cached_clip():
    """Yield (open_clip's CLIP ViT-B/16 with random weights, a Hugging Face cache that holds it as OpenAI's).

    Speed does not depend on the weights. VisionEncoder finds them as long as the block runs."""
    import open_clip
    from huggingface_hub import constants
    from safetensors.torch import save_file

    model, commit = open_clip.create_model("ViT-B-16-quickgelu").eval(), "0" * 40
    with TemporaryDirectory() as folder:
        repository = Path(folder, "models--timm--vit_base_patch16_clip_224.openai")
        for place in (repository / "refs", repository / "snapshots" / commit):
            place.mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        weights = {key: value.contiguous() for key, value in model.state_dict().items()}
        save_file(weights, repository / "snapshots" / commit / "open_clip_model.safetensors")
        before, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, folder
        try:
            yield model, folder
        finally:
            constants.HF_HUB_CACHE = before


def feature_shards(folder, images, captions, per_shard=4_000):
    """Write feature shards of random unit rows, `captions` per image, and return the pattern of
    the tars that they were made from. All shards are alike, since speed does not depend on the numbers."""
    import torch
    from torch.nn.functional import normalize

    from models.features.shard_files import write
    from models.features.tars import Tally
    from models.files import packed
    from models.text import TextEncoder
    from models.vision import VisionEncoder

    vision, text = VisionEncoder("cpu", PACKAGED), TextEncoder("cpu")
    towers = dict(vision=vision.name, text=text.name, vision_key=vision.key, text_key=text.key)
    towers["questions"] = "without"
    image = normalize(torch.randn(per_shard, vision.dim), dim=1).half()
    caption = normalize(torch.randn(per_shard * captions, text.dim), dim=1).half()
    starts = range(0, images, per_shard)
    for number, start in enumerate(starts):
        n = min(per_shard, images - start)
        tensors = dict(
            image=image[:n],
            text=caption[: n * captions],
            image_of=torch.arange(n * captions) // captions,
            names=packed([f"{start + i}.jpg" for i in range(n)]),
            captions=packed(["a caption"] * (n * captions)),
        )
        facts = towers | dict(tar_sha256=f"random {start}")
        write(Path(folder, f"{number:05}.safetensors"), tensors, Tally(), facts)
    return f"{folder}/{{00000..{len(starts) - 1:05}}}.tar"
