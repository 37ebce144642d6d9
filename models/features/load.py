"""The features that train.py trains on, from a CSV or from tars, in one process or several."""

import hashlib
import logging
from dataclasses import dataclass

import torch

from models import distributed
from models.dataset import VisionTextDataset, split_by_image

from .archive import Features, encode_archive
from .rows import Rows
from .shards import encode_shards, open_shards


@dataclass
class Data:
    """The features to train on, on the device (in feature shards: on the disk), and the held-out ones."""

    source: str  # the CSV or the pattern of tars
    digest: str  # of the rows, or of tars and towers
    image: torch.Tensor | Rows  # (N, Dv)
    text: torch.Tensor | Rows  # (M, Dt)
    image_of: torch.Tensor  # (M,)
    names: list  # of the N images
    held_out: Features  # on the CPU

    @property
    def has_held_out(self):
        return len(self.held_out.image) > 1


def load_data(args, vision, text, process):
    """Data: every row through the towers, once, and split by image. `args` are the flags of train.py."""
    load = _load_shards if args.shards else _load_csv
    features, names, digest = load(args, vision, text, process)
    train_names, held_out_names = split_by_image(names, args.val_fraction, args.seed)
    source = args.shards or args.csv
    if not train_names:
        raise ValueError(f"{source}: all {len(names)} images are held out; lower --val-fraction")
    is_held_out = torch.tensor([name in held_out_names for name in names])
    image, captions, image_of, *_ = features.of(~is_held_out)
    if not args.shards:
        image, captions = image.to(process.device), captions.to(process.device)
    held_out = features.of(is_held_out)
    held_out = Features(held_out.image[:], held_out.text[:], held_out.image_of)  # [:] reads them from shards
    names = [name for name in names if name not in held_out_names]
    return Data(source, digest, image, captions, image_of.to(process.device), names, held_out)


def _load_csv(args, vision, text, process):
    """(Features, image names, digest of the rows). Each process encodes its share into the cache first."""
    where = (args.csv, None, args.images, args.image_column, args.caption_column)
    options = (args.cache, args.encode_batch, args.workers, args.quiet)
    if process.world > 1:
        logging.disable(logging.WARNING)  # what is left out is logged below, once
        mine = VisionTextDataset(*where, skip_bad=True)
        mine.keep(set(mine.image_names[process.share(len(mine.image_names))]))
        encode_archive(mine, vision, text, *options)
        logging.disable(logging.NOTSET if process.rank == 0 else logging.WARNING)
        distributed.wait()
    dataset = VisionTextDataset(*where, args.skip_bad)
    features = encode_archive(dataset, vision, text, *options)
    rows = "\n".join(f"{row.image_name}\t{row.text}" for row in dataset.rows)
    return features, dataset.image_names, hashlib.sha256(rows.encode()).hexdigest()


def _load_shards(args, vision, text, process):
    """(Features, image names, digest of tars and towers). Each process encodes its share first."""
    options = (process.rank, process.world, args.encode_batch, args.workers, args.quiet)
    names = encode_shards(args.shards, args.shard_features, vision, text, *options)
    distributed.wait()
    shards = open_shards(args.shard_features, names)
    return Features(shards.image, shards.text, shards.image_of), shards.names(), shards.digest
