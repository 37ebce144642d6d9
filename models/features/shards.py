"""Archives of any size: tars of images and captions go through the towers once, into feature shards on the
disk.

    names = encode_shards("cc3m-{00000..00331}.tar", "features/cc3m", vision, text)
    shards = open_shards("features/cc3m", names)
    shards.image[torch.tensor([7, 2_000_000])]    # (2, Dv) float32 unit rows, read from the disk

A tar has the layout of WebDataset, which img2dataset writes: KEY.jpg (jpeg, png, webp) next to KEY.txt, its
caption, or next to KEY.json with a list of them under "captions". NAME.tar becomes FOLDER/NAME.safetensors,
whole or not at all: a killed run goes on with the tar it was in, and machines that share the folder each take
every world-th tar. It also keeps what became of the tar's members."""

import hashlib
import io
import logging
import tarfile
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from models.dataset import open_frames
from models.files import packed, sha256, unpacked

from .ahead import encode_ahead
from .cache import batched
from .rows import Rows
from .shard_files import is_up_to_date, read, size_and_time, write
from .tars import DAMAGED, UNDECODABLE, Tally, expand, samples

log = logging.getLogger(__name__)


class Shards(NamedTuple):
    """The features of all tars, read from their files on demand."""

    image: Rows  # (N, Dv)
    text: Rows  # (M, Dt)
    image_of: torch.Tensor  # (M,) int64, the image each caption describes
    digest: str  # of the tars and the towers
    parts: list  # the tensors of each shard
    tally: Tally  # of the members of all tars

    def names(self):
        """A list of N str: the name of each image."""
        return [name for tensors in self.parts for name in unpacked(tensors["names"])]

    def captions(self):
        """A list of M str."""
        return [caption for tensors in self.parts for caption in unpacked(tensors["captions"])]


def encode_shards(pattern, folder, vision, text, rank=0, world=1, batch_size=32, workers=None, quiet=False):
    """Write the feature shards that are not there yet, of every `world`-th tar from number `rank` on. Returns
    the names of all shards of the pattern, for `open_shards`.

    `pattern` holds {00000..00331}, {a,b} or *. Rows are float16, so they equal those of `encode_archive`; the
    rows of one shard have to fit in memory. Members that cannot be used are left out, counted and logged, one
    line per tar. Raises ValueError before any tower runs for a file that is no tar or is missing (an encoded
    tar may be deleted), and for a shard made with other towers or from another tar."""
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}: ranks are 0 to {world - 1}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tars = expand(pattern)
    towers = dict(vision=vision.name, text=text.name, vision_key=vision.key, text_key=text.key)
    own = [(tar, folder / f"{name}.safetensors") for name, tar in list(tars.items())[rank::world]]
    todo = [(tar, path) for tar, path in own if not is_up_to_date(path, tar, towers)]
    for tar, _ in todo:
        _check_tar(tar)
    if len(todo) < len(own):
        log.info("%s: %d of %d tars are encoded already", folder, len(own) - len(todo), len(own))
    for number, (tar, path) in enumerate(todo, 1):
        metadata = size_and_time(tar) | dict(tar_sha256=sha256(tar))
        tally = Tally()
        title = f"{number}/{len(todo)} {tar.name}"
        tensors = _encode(tar, vision, text, batch_size, workers, tally, title, quiet)
        write(path, tensors, tally, towers | metadata)
        log.info("%s: %s", tar.name, summary(tensors["image"], tensors["text"], tally))
    return list(tars)


def summary(image, text, tally):
    """'2 images, 4 captions, from 4 of 5 members; left out ...', for tensors image (N, Dv) and text (M, Dt)
    and what became of their tars' members."""
    return f"{len(image):,} images, {len(text):,} captions, {tally}"


def open_shards(folder, names=None):
    """The `Shards` of a folder, mapped into memory and not read: those named, in that order, or all of them.
    ValueError for a file that is damaged or was made with other towers than the first; FileNotFoundError for
    one that is not there."""
    folder = Path(folder)
    if names is None:
        paths = sorted(folder.glob("*.safetensors"))
    else:
        paths = [folder / f"{name}.safetensors" for name in names]
    digest, towers, found, total = hashlib.sha256(), None, [], Tally()
    for path in paths:
        metadata, tensors, tally = read(path, towers)
        towers = towers or metadata
        total.add(tally)
        digest.update(metadata["digest"].encode())
        if len(tensors["image"]):  # a tar may hold nothing that can be used
            found.append((path, tensors))
    if not found:
        layout = "a tar holds KEY.jpg and KEY.txt, one after the other (tar --sort=name)"
        raise ValueError(f"{folder}: no features in it, {total}; {layout}")
    image, text = (Rows([(path, tensors[kind]) for path, tensors in found]) for kind in ("image", "text"))
    parts = [tensors for _, tensors in found]
    image_of = torch.cat([tensors["image_of"] + start for start, tensors in zip(image.starts, parts)])
    return Shards(image, text, image_of, digest.hexdigest(), parts, total)


def _check_tar(tar):
    try:
        tarfile.open(tar, "r:").close()
    except (*DAMAGED, OSError) as error:
        raise ValueError(
            f"{tar}: not an uncompressed tar ({error}); unpack it, or leave it out of the pattern"
        ) from None


def _encode(tar, vision, text, batch_size, workers, tally, title, quiet):
    """The tensors of one tar's feature shard. `tally` counts its members."""
    names, captions, image_of, image = [], [], [], []

    def read_frames(sample):
        return open_frames(io.BytesIO(sample.content))

    with tqdm(desc=title, unit="", disable=quiet, leave=False) as bar:
        encoded = encode_ahead(samples(tar, tally), read_frames, vision.parts, batch_size, workers)
        for sample, rows, error in encoded:
            bar.update()
            if error:
                first, *others = sample.members
                why = str(error).removeprefix("image: ")
                tally.leave_out(UNDECODABLE, f"{first}: {why}", *others)
                continue
            tally.read += len(sample.members)
            # Each tower's row is rounded on its own, as in the cache.
            image.append(torch.cat([row.half() for row in rows]))
            image_of += [len(names)] * len(sample.captions)
            captions += sample.captions
            names.append(sample.name)
        bar.set_description(f"{title}, captions")
        rows_of = _text_rows(captions, text)
    none = torch.empty(0, 0, dtype=torch.float16)
    return dict(
        image=torch.stack(image) if image else none,
        text=torch.stack([rows_of[caption] for caption in captions]) if captions else none,
        image_of=torch.tensor(image_of, dtype=torch.int64),
        names=packed(names),
        captions=packed(captions),
    )


def _text_rows(captions, text):
    """{caption: (Dt,) float16 row} of the distinct captions."""
    # Texts of similar length need little padding.
    distinct = sorted(set(captions), key=lambda caption: (-len(caption), caption))
    found = {}
    for batch in batched(distinct, 512):
        rows = text.encode(batch)
        if not ((rows.norm(dim=1) - 1).abs() < 0.01).all():
            raise ValueError(
                f"tower {text.name} gave rows that are not finite and of norm 1; its weights may be damaged"
            )
        found |= zip(batch, rows.half().cpu())
    return found
