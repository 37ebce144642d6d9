"""Archives of any size: tars of images and captions go through the towers once, into feature shards that stay on the disk.

    names = encode_shards("cc3m-{00000..00331}.tar", "features/cc3m", vision, text, open_image)
    shards = open_shards("features/cc3m", names)
    shards.image[torch.tensor([7, 2_000_000])]    # (2, Dv) float32 unit rows, read from the disk

A tar is laid out as WebDataset's are and img2dataset writes them: KEY.jpg (jpeg, png, webp) next to KEY.txt, its caption, or next to
KEY.json with a list of them under "captions". NAME.tar becomes FOLDER/NAME.safetensors, whole or not at all: a killed run goes on
with the tar it was in, and machines that share the folder each take every world-th tar.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from tqdm import tqdm

from .files import FORMAT, damaged, is_made_from, names_of, read, sha256, stamp, write
from .tars import DAMAGED, expand, samples

__all__ = ["FORMAT", "Rows", "Shards", "encode_shards", "open_shards"]


class Shards(NamedTuple):
    image: "Rows"  # (N, Dv)
    text: "Rows"  # (M, Dt)
    image_of: torch.Tensor  # (M,) int64, the image each caption describes
    names: object  # names() yields the member name of each of the N images
    digest: str  # of the tars and the towers


def encode_shards(
    pattern, folder, vision, text, open_image, rank=0, world=1, batch_size=32, workers=None, quiet=False
):
    """Write the feature shards that are not there yet, of every `world`-th tar from number `rank` on; return the names of all the
    pattern's shards for `open_shards`. Rows are float16, so features equal those of features/; one shard's have to fit in memory.

    `pattern` holds {00000..00331}, {a,b} or *. `vision`, `text` are encoder objects (`.name`, `.key`, `.encode`, `.preprocess`);
    `open_image(file)` gives a PIL image or raises ValueError. Samples that can't be used are left out and counted, a line a tar.
    Raises ValueError, before any tower runs, for a tar that is none or is not there (once encoded it may go), and for a shard made
    with other towers or from another tar."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}: ranks are 0 to {world - 1}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tars = expand(pattern)
    towers = dict(vision=vision.name, text=text.name, vision_key=vision.key, text_key=text.key)
    own = [(tar, folder / f"{name}.safetensors") for name, tar in list(tars.items())[rank::world]]
    todo = [(tar, path) for tar, path in own if not (path.exists() and is_made_from(path, tar, towers))]
    for tar, _ in todo:
        try:
            tarfile.open(tar, "r:").close()
        except (*DAMAGED, OSError) as error:
            raise ValueError(
                f"{tar}: no uncompressed tar ({error}); fetch or unpack it, or leave it out of the pattern"
            ) from None
    if len(todo) < len(own):
        print(f"{folder}: {len(own) - len(todo)} of {len(own)} tars are encoded already")
    for number, (tar, path) in enumerate(todo, 1):
        made_from, skipped = stamp(tar) | dict(tar_sha256=sha256(tar)), Counter()
        tensors = _encode(
            tar,
            vision,
            text,
            open_image,
            batch_size,
            workers,
            skipped,
            f"{number}/{len(todo)} {tar.name}",
            quiet,
        )
        write(path, save(tensors, dict(format=FORMAT, **towers, **made_from, skipped=json.dumps(skipped))))
        told = (
            f"; left out {skipped.total():,}: {', '.join(f'{n:,} {why}' for why, n in skipped.most_common())}"
            if skipped
            else ""
        )
        print(
            f"{tar.name}: {len(tensors['image']):,} images, {len(tensors['text']):,} captions{told}",
            flush=True,
        )
    return list(tars)


def open_shards(folder, names=None):
    """The `Shards` of a folder, mapped into memory and not read: those named, in that order, or all of them. Raises ValueError naming
    a file that is damaged or of other towers than the first; FileNotFoundError for one that is not there."""
    folder, found, digest, towers = Path(folder), [], hashlib.sha256(), None
    for path in (
        sorted(folder.glob("*.safetensors"))
        if names is None
        else [folder / f"{name}.safetensors" for name in names]
    ):
        metadata, tensors = read(path, towers)
        towers = towers or metadata
        digest.update(metadata["digest"].encode())
        if len(tensors["image"]):  # a tar may hold nothing of use
            found.append((path, tensors))
    if not found:
        raise ValueError(f"{folder}: no features in it; a tar holds KEY.jpg and KEY.txt, one after the other")
    image, text = (Rows([(path, tensors[kind]) for path, tensors in found]) for kind in ("image", "text"))
    image_of = torch.cat([tensors["image_of"] + start for start, (_, tensors) in zip(image.starts, found)])
    return Shards(
        image,
        text,
        image_of,
        lambda: (name for _, tensors in found for name in names_of(tensors)),
        digest.hexdigest(),
    )


class Rows:
    """Rows of float16 in files, to read as a tensor (n, D): `rows[index]` and `rows[a:b]` are (B, D) float32 unit rows, on the
    index's device; `rows[mask]`, bool (n,), are the `Rows` under a mask. No row is kept: the pages are the files', so the system
    drops them when it wants memory. A row without the norm towers give raises ValueError naming its file."""

    def __init__(self, parts, picked=None):
        self.parts, self.picked = (
            parts,
            picked,
        )  # [(path, (n, D) float16)], the rows under the mask (n,) int64 or None for all
        self.starts = torch.tensor([0, *(len(part) for _, part in parts)]).cumsum(0)  # (parts + 1,)
        self.shape = (int(self.starts[-1]) if picked is None else len(picked), parts[0][1].shape[1])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        index = (
            torch.tensor(range(len(self))[index], dtype=torch.int64) if isinstance(index, slice) else index
        )
        if index.dtype == torch.bool:
            where = index.cpu().nonzero()[:, 0]
            return Rows(self.parts, where if self.picked is None else self.picked[where])
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} asked for, of {len(self)}")
        places = index.cpu() if self.picked is None else self.picked[index.cpu()]
        ordered, order = places.sort()  # each file once, and front to back
        bounds = torch.searchsorted(ordered, self.starts).tolist()
        halves = torch.empty(len(places), self.shape[1], dtype=torch.float16)
        for (_, part), start, first, last in zip(self.parts, self.starts.tolist(), bounds, bounds[1:]):
            if first < last:
                halves[order[first:last]] = part[ordered[first:last] - start]
        rows = halves.float()
        norms = rows.norm(dim=1, keepdim=True)
        sound = (
            norms.square() - norms.square().round().clamp(1, 8)
        ).abs() < 0.02  # 1 a joined tower; float16 moves it by 0.001
        if not sound.all():  # NaN too
            first = places[~sound[:, 0]][0]
            raise damaged(
                self.parts[int((self.starts <= first).sum()) - 1][0],
                "a row without the norm that towers give",
            )
        rows = rows.div_(norms)
        return (
            rows.pin_memory().to(index.device, non_blocking=True)
            if index.device.type == "cuda"
            else rows.to(index.device)
        )

    def blocks(self, size=2048):
        """All rows in order, (size, D) float32 at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))


def _ahead(pool, function, items, count):
    """(item, function(item)) in order; `count` of them are worked on while the caller is busy with one."""
    queue = deque()
    for item in items:
        queue.append((item, pool.submit(function, item)))
        if len(queue) > count:
            item, future = queue.popleft()
            yield item, future.result()
    yield from ((item, future.result()) for item, future in queue)


def _encode(tar, vision, text, open_image, batch_size, workers, skipped, title, quiet):
    """The tensors of one tar's feature shard; `skipped` counts what is left out."""
    parts = getattr(vision, "parts", None) or [
        vision
    ]  # joined towers are rounded each for itself, as in features/

    def pixels(sample):
        try:
            image = open_image(io.BytesIO(sample[1]))
        except ValueError:
            return None
        return [part.preprocess(image) for part in parts]

    def sound(decoded):
        for (name, _, captions), images in decoded:
            if images is None:
                skipped["with an image that can't be decoded"] += 1
            else:
                yield name, captions, images

    def halves(tower, batch):
        rows = tower.encode(batch)
        if not ((rows.norm(dim=1) - 1).abs() < 0.01).all():
            raise ValueError(
                f"{tar}: tower {tower.name} gave rows that are not finite and of norm 1; its weights may be damaged"
            )
        return rows.half().cpu()

    names, captions, image_of, image = [], [], [], []
    with (
        ThreadPoolExecutor(workers or os.cpu_count()) as pool,
        tqdm(desc=title, unit="", disable=quiet, leave=False) as bar,
    ):
        decoded = sound(_ahead(pool, pixels, samples(tar, skipped), 2 * batch_size))
        while batch := list(islice(decoded, batch_size)):
            columns = zip(parts, zip(*(images for _, _, images in batch)))
            image.append(
                torch.cat([halves(part, torch.stack(column)) for part, column in columns], dim=1)
            )  # (B, Dv)
            for name, texts, _ in batch:
                image_of += [len(names)] * len(texts)
                captions += texts
                names.append(name)
            bar.update(len(batch))
        bar.set_description(f"{title}, captions")
        distinct = sorted(dict.fromkeys(captions), key=len, reverse=True)  # alike lengths, little padding
        rows = [halves(text, distinct[i : i + 512]) for i in range(0, len(distinct), 512)]
    number, none = {caption: i for i, caption in enumerate(distinct)}, torch.empty(0, 0, dtype=torch.float16)
    return dict(
        image=torch.cat(image) if image else none,
        text=torch.cat(rows)[[number[c] for c in captions]] if rows else none,
        image_of=torch.tensor(image_of, dtype=torch.int64),
        names=torch.frombuffer(bytearray(json.dumps(names).encode()), dtype=torch.uint8),
    )
