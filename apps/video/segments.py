"""Cut a stream of embeddings into segments, so that words are only written once a segment (VL-JEPA, section 4.6).

    order, heights = ward(rows)             # (F-1,), (F-1,): the boundaries between neighbours, in the order Ward takes them out
    edges = cut(order, 8)                   # (9,): segment i is rows[edges[i]:edges[i + 1]]
    means(rows, edges), middles(edges)      # (8, Dt), (8,): what to decode

    for decode in stream(rows): ...         # the same without looking ahead

F frames, S segments, Dt width of an embedding. `rows` (F, Dt) float32 are unit rows, one a frame, in order of time.
"""

from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F


def ward(rows):
    """(order, heights), int64 and float32 (F - 1,): agglomerative clustering that only joins neighbours in time, each time those
    whose union has the least within-segment variance. Boundary b lies between rows b and b + 1; order[i] is the one the i-th
    merge takes out, heights[i] its Ward distance, sqrt(2 a b / (a + b)) |mean - mean| for segments of a and b rows."""
    from scipy.sparse import diags
    from sklearn.cluster import ward_tree

    count = len(rows)
    if count < 2:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0)
    chain = diags([1.0, 1.0], [-1, 1], shape=(count, count))
    children, _, _, _, heights = ward_tree(rows.double().numpy(), connectivity=chain, return_distance=True)
    first, order = list(range(count)), []  # first row of every node
    for a, b in children:
        order.append(max(first[a], first[b]) - 1)
        first.append(min(first[a], first[b]))
    return torch.tensor(order), torch.from_numpy(heights).float()


def cut(order, count):
    """Edges (S + 1,) of the `count` segments that are left when Ward has joined all others."""
    if not 1 <= count <= len(order) + 1:
        raise ValueError(f"{count} segments of {len(order) + 1} frames; ask for 1 to {len(order) + 1}")
    kept = order[len(order) + 1 - count :].sort().values + 1
    return torch.cat([torch.tensor([0]), kept, torch.tensor([len(order) + 1])])


def uniform(frames, count):
    """Edges (S + 1,) of `count` segments of equal length, give or take a frame."""
    return torch.linspace(0, frames, count + 1, dtype=torch.float64).round().long()


def middles(edges):
    """(S,) int64: the frame in the middle of each segment."""
    return (edges[:-1] + edges[1:] - 1) // 2


def means(rows, edges):
    """(S, Dt) unit rows: the mean of each segment."""
    sums = F.pad(rows.double().cumsum(0), (0, 0, 1, 0))[edges]  # (S + 1, Dt)
    return F.normalize(sums[1:] - sums[:-1], dim=-1).float()


class Decode(NamedTuple):
    start: int  # frame the segment begins with
    now: int  # frame that had arrived when it was decided
    row: torch.Tensor  # (Dt,) unit row to decode


def stream(rows, threshold, settle=6, patience=2, window=8):
    """Yield a `Decode` a segment while rows (Dt,) arrive, each at most once looked at: as soon as the segment has `settle` frames,
    or before it is left if it was shorter.

    Each frame asks whether the last 1 to `window` frames are better off as a segment of their own, by the Ward distance to what
    stood before them in the segment. If the best such cut is over `threshold` and `patience` frames old, it is made; a younger one
    waits, and holds the words back, so that a flash of a single frame is not a segment."""
    start, now, settled = 0, -1, False
    sums = deque(
        [torch.zeros(())], maxlen=window + 1
    )  # of the segment's rows up to now, and as they were up to `window` frames ago
    for now, row in enumerate(rows):
        sums.append(sums[-1] + row.double())
        count = now + 1 - start
        found, last = 0.0, 0  # Ward distance of the best cut, and the frames behind it
        for m in range(1, min(window, count - 1) + 1):
            before, after = sums[-1 - m], sums[-1] - sums[-1 - m]
            distance = (2 * m * (count - m) / count) ** 0.5 * (before / (count - m) - after / m).norm().item()
            found, last = max((found, last), (distance, m))
        if found > threshold and last >= patience:
            before = sums[-1 - last]
            if not settled:
                yield Decode(start, now, F.normalize(before, dim=-1).float())
            start, count, settled = now + 1 - last, last, False
            sums = deque([s - before for s in list(sums)[-1 - last :]], maxlen=window + 1)
            found = 0.0
        if not settled and count >= settle and found <= threshold:
            yield Decode(start, now, F.normalize(sums[-1], dim=-1).float())
            settled = True
    if now >= 0 and not settled:
        yield Decode(start, now, F.normalize(sums[-1], dim=-1).float())
