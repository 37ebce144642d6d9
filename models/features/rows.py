"""Rows in files, read like a tensor."""

import torch

from .shard_files import damaged


class Parts:
    """Rows (n, ...) of float16 in files. No row is kept: the pages belong to the files, so the system drops
    them when it needs memory."""

    def __init__(self, parts, picked=None):
        self.parts = parts  # [(path, (rows of the file, ...) float16)]
        self.picked = picked  # the rows that count, (n,) int64, or None for all
        self.starts = torch.tensor([0, *(len(part) for _, part in parts)]).cumsum(0)  # (parts + 1,)
        count = int(self.starts[-1]) if picked is None else len(picked)
        self.shape = (count, *parts[0][1].shape[1:])

    def __len__(self):
        return self.shape[0]

    def under(self, mask):
        """The same under a bool mask (n,)."""
        where = mask.cpu().nonzero()[:, 0]
        return type(self)(self.parts, where if self.picked is None else self.picked[where])

    def places(self, index):
        """(B,) int64: where the rows of an index (B,) are among those of all files. IndexError beyond the
        end."""
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} asked for, of {len(self)}")
        return index.cpu() if self.picked is None else self.picked[index.cpu()]

    def gather(self, places):
        """(len(places), ...) float16: each file is read once, front to back."""
        ordered, order = places.sort()
        bounds = torch.searchsorted(ordered, self.starts).tolist()
        found = torch.empty(len(places), *self.shape[1:], dtype=torch.float16)
        for (_, part), start, first, last in zip(self.parts, self.starts.tolist(), bounds, bounds[1:]):
            if first < last:
                found[order[first:last]] = part[ordered[first:last] - start]
        return found


class Rows(Parts):
    """Rows of float16 in files, to read like a tensor (n, D): `rows[index]` and `rows[a:b]` are (B, D)
    float32 unit rows, on the device of the index; `rows[mask]`, bool (n,), are the `Rows` under a mask.
    ValueError naming the file for a row without the norm that towers give."""

    def __getitem__(self, index):
        if isinstance(index, slice):
            index = torch.tensor(range(len(self))[index], dtype=torch.int64)
        if index.dtype == torch.bool:
            return self.under(index)
        places = self.places(index)
        rows = self.gather(places).float()
        norms = rows.norm(dim=1, keepdim=True)
        # The square of the norm is the number of joined towers; float16 moves it by 0.001.
        sound = (norms.square() - norms.square().round().clamp(1, 8)).abs() < 0.02
        if not sound.all():  # NaN too
            first = places[~sound[:, 0]][0]
            path = self.parts[int((self.starts <= first).sum()) - 1][0]
            raise damaged(path, "a row without the norm that towers give")
        rows = rows.div_(norms)
        if index.device.type == "cuda":
            return rows.pin_memory().to(index.device, non_blocking=True)
        return rows.to(index.device)

    def blocks(self, size=2048):
        """All rows in order, (size, D) float32 at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))
