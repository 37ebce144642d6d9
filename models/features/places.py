"""Places, the local features of images: one file per tower, beside the feature cache, and mapped into memory.

    put_places(store, tower, keys, maps)               # (B, P, Dp), in the pass that gives the pooled rows
    known_records(store, tower, keys)                  # {key: (number, P, Dp)} of those that are there
    places = Places([open_part(store, tower, keys)])
    places[torch.tensor([0, 5])]                       # (2, P, Dp) float32

A file is records of P * Dp float16. The feature cache holds the number of each record and its CRC-32, under a
`row_key` of kind "places". A killed process may leave a record that no key names, and nothing worse.
"""

import hashlib
import logging
import struct
import zlib

import torch

from .rows import Parts

log = logging.getLogger(__name__)
ENTRY = struct.Struct(">QIHH")  # number of the record, its CRC-32, P, Dp


class Places:
    """Local features of N images, to read like a tensor (N, P, Dp): `places[index]`, int64 (B,), is
    (B, P, Dp) float32 on the device of the index, and `places[mask]`, bool (N,), the Places under a mask."""

    def __init__(self, parts):
        self.parts = parts  # of each tower the Parts (N, P, Dp)
        self.shape = (*parts[0].shape[:2], sum(part.shape[2] for part in parts))

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, index):
        if index.dtype == torch.bool:
            return Places([part.under(index) for part in self.parts])
        rows = [part.gather(part.places(index)).float() for part in self.parts]
        return torch.cat(rows, dim=2).to(index.device)


def path_of(store, tower):
    """The file of a tower's places. ValueError for a cache in memory, which has none."""
    if store.path is None:
        raise ValueError("the places of images need a cache on disk; name one with --cache FILE")
    digest = hashlib.sha256(tower.key.encode()).hexdigest()[:16]
    return store.path.with_name(f"{store.path.stem}.places-{digest}.f16")


def put_places(store, tower, keys, maps):
    """Append the places (B, P, Dp) of images under these keys. One transaction, so that two processes can
    write to one file."""
    data = maps.half().cpu().numpy()
    size = data[0].nbytes
    with store.db:
        store.db.execute("BEGIN IMMEDIATE")
        with open(path_of(store, tower), "ab") as file:
            first = file.tell() // size
            file.truncate(first * size)  # a killed process may have left part of a record
            file.write(data.tobytes())
        entries = []
        for number, record in enumerate(data, first):
            entries.append(ENTRY.pack(number, zlib.crc32(record.tobytes()), *record.shape))
        store.write(keys, entries)


def known_records(store, tower, keys):
    """{key: (number, P, Dp)} of the records that are there and undamaged. Reads the file once, front to
    back."""
    path = path_of(store, tower)
    known = {}
    if not path.is_file():
        return known
    entries = _entries(store, keys)
    with open(path, "rb") as file:
        for key, (number, checksum, count, width) in sorted(entries.items(), key=lambda item: item[1]):
            file.seek(2 * number * count * width)
            if zlib.crc32(file.read(2 * count * width)) == checksum:
                known[key] = (number, count, width)
    if len(known) < len(entries):
        log.warning("%s: %d damaged records, encoding them again", path, len(entries) - len(known))
    return known


def open_part(store, tower, keys):
    """The Parts (N, P, Dp) of one tower, for Places. All `keys` must be stored."""
    path = path_of(store, tower)
    entries = _entries(store, keys)
    _, _, count, width = entries[keys[0]]
    records = path.stat().st_size // (2 * count * width)
    mapped = torch.from_file(str(path), shared=False, size=records * count * width, dtype=torch.float16)
    numbers = torch.tensor([entries[key][0] for key in keys])
    return Parts([(path, mapped.view(records, count, width))], numbers)


def _entries(store, keys):
    """{key: (number, CRC-32, P, Dp)} as stored."""
    return {key: ENTRY.unpack(blob) for key, blob in store.fetch(keys).items()}
