"""The features that train.py trains on, from a CSV or from tars, in one process or several."""

import hashlib
import logging

from models import distributed
from models.dataset import VisionTextDataset

from .archive import Features, encode_archive
from .shards import encode_shards, open_shards


def load_csv(args, vision, text, process):
    """(Features, image names, digest of the rows) of `args.csv`. Each process encodes its share into the cache first."""
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


def load_shards(args, vision, text, process):
    """(Features, image names, digest of tars and towers) of `args.shards`. Each process encodes its share of the tars first."""
    options = (process.rank, process.world, args.encode_batch, args.workers, args.quiet)
    names = encode_shards(args.shards, args.shard_features, vision, text, *options)
    distributed.wait()
    shards = open_shards(args.shard_features, names)
    return Features(shards.image, shards.text, shards.image_of), shards.names(), shards.digest
