"""Cut a sequence of embeddings into segments, to write words once per segment (VL-JEPA, section 4.6).

    order, heights = ward(rows)             # (F-1,), (F-1,): boundaries, in the order Ward removes them
    edges = cut(order, 8)                   # (9,): segment i is rows[edges[i]:edges[i + 1]]
    means(rows, edges), middles(edges)      # (8, Dt), (8,): what to decode
    place(rows, price=0.5)                  # (S,): when to decode, if the nearest in time answers

    for decode in stream(rows): ...         # the same without looking ahead

F frames, S segments, Dt width of an embedding. `rows` (F, Dt) float32 are unit rows, one per frame, in order.
"""

from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F

from apps.video import CHANGE


def ward(rows):
    """(order, heights), int64 and float32 (F - 1,): agglomerative clustering of neighbours in time.

    Each step merges the two neighbouring segments whose union has the least within-segment variance. Boundary
    b lies between rows b and b + 1. order[i] is the boundary that merge i removes, heights[i] its Ward
    distance, sqrt(2 a b / (a + b)) |mean - mean| for segments of a and b rows."""
    from scipy.sparse import diags
    from sklearn.cluster import ward_tree

    count = len(rows)
    if count < 2:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0)
    chain = diags([1.0, 1.0], [-1, 1], shape=(count, count))
    children, _, _, _, heights = ward_tree(rows.double().numpy(), connectivity=chain, return_distance=True)
    first = list(range(count))  # first row of every node
    order = []
    for a, b in children:
        order.append(max(first[a], first[b]) - 1)
        first.append(min(first[a], first[b]))
    return torch.tensor(order), torch.from_numpy(heights).float()


def cut(order, count):
    """Edges (S + 1,) int64 of `count` segments, limited to 1 to `frames`. Their lengths differ by a frame at
    most."""
    frames = len(order) + 1
    if not 1 <= count <= frames:
        raise ValueError(f"{count} segments of {frames} frames; ask for 1 to {frames}")
    kept = order[frames - count :].sort().values + 1
    return torch.cat([torch.tensor([0]), kept, torch.tensor([frames])])


def cut_by_change(rows, step, change=CHANGE):
    """Edges (S + 1,) int64 of the segments whose neighbours differ by more than `change`, for rows that are
    `step` seconds apart."""
    order, heights = ward(rows)
    return cut(order, 1 + int((heights * step**0.5 > change).sum()))


def uniform(frames, count):
    """Edges (S + 1,) int64 of `count` segments, limited to 1 to `frames`. Their lengths differ by a frame at
    most."""
    count = min(max(count, 1), frames)
    return torch.linspace(0, frames, count + 1, dtype=torch.float64).round().long()


def middles(edges):
    """(S,) int64: the frame in the middle of each segment."""
    return (edges[:-1] + edges[1:] - 1) // 2


def means(rows, edges):
    """(S, Dt) float32 unit rows: the mean of each segment."""
    sums = F.pad(rows.double().cumsum(0), (0, 0, 1, 0))[edges]  # (S + 1, Dt)
    return F.normalize(sums[1:] - sums[:-1], dim=-1).float()


def place(rows, price, around=2):
    """(S,) int64: the frames at which to decode, if each frame is answered by the decode nearest in time.

    They have the least sum of `price` per decode and, for each frame, 1 - cosine with the mean of the frames
    within `around` of its decode. Exact, by dynamic programming over neighbouring decodes, in F * F steps."""
    count, frames = len(rows), torch.arange(len(rows))
    near = torch.stack([rows[max(0, i - around) : i + around + 1].mean(0) for i in range(count)])
    far = 1 - rows.double() @ F.normalize(near.double(), dim=-1).T  # (F, F): a frame, a decode
    sums = F.pad(far.cumsum(0), (0, 0, 1, 0))  # (F + 1, F): over the frames before one
    earlier = sums[frames, frames]  # (F,): over the frames before the decode itself
    best, previous = earlier + price, torch.full((count,), -1)
    for b in range(1, count):
        a = frames[:b]
        half = (a + b) // 2 + 1  # the first frame that is nearer to b
        costs = best[:b] + sums[half, a] - earlier[:b] + earlier[b] - sums[half, b] + price
        cost, at = costs.min(0)
        if cost < best[b]:
            best[b], previous[b] = cost, at
    found = [int((best + sums[-1] - earlier).argmin())]
    while (before := int(previous[found[-1]])) >= 0:
        found.append(before)
    return torch.tensor(found[::-1])


class Decode(NamedTuple):
    start: int  # first frame of the segment
    now: int  # last frame that had arrived
    row: torch.Tensor  # (Dt,) unit row to decode


def stream(rows, threshold, settle=6, patience=2, window=8):
    """Yield one `Decode` per segment while rows (Dt,) arrive: once it has `settle` frames, or when it ends.

    After each frame, the last 1 to `window` frames are compared to the rest of the segment by Ward distance.
    The best such cut is made if it is over `threshold` and `patience` frames old. A younger one is not made
    yet, so that a flash of one frame is not a segment, but delays the Decode."""
    start, now, settled = 0, -1, False
    sums = deque([torch.zeros(())], maxlen=window + 1)  # of the segment's rows, up to each of the last frames
    for now, row in enumerate(rows):
        sums.append(sums[-1] + row.double())
        count = now + 1 - start
        distance, last = _best_cut(sums, count)
        if distance > threshold and last >= patience:
            before = sums[-1 - last]
            if not settled:
                yield Decode(start, now, F.normalize(before, dim=-1).float())
            start, count, settled = now + 1 - last, last, False
            sums = deque([s - before for s in list(sums)[-1 - last :]], maxlen=window + 1)
            distance = 0.0
        if not settled and count >= settle and distance <= threshold:
            yield Decode(start, now, F.normalize(sums[-1], dim=-1).float())
            settled = True
    if now >= 0 and not settled:
        yield Decode(start, now, F.normalize(sums[-1], dim=-1).float())


def _best_cut(sums, count):
    """(Ward distance, frames after the cut) of the best cut near the end of a segment of `count` frames;
    `sums` are its sums up to each of the last ones. (0.0, 0) for a single frame."""
    best = (0.0, 0)
    for after in range(1, min(len(sums), count)):
        before = count - after
        difference = sums[-1 - after] / before - (sums[-1] - sums[-1 - after]) / after
        best = max(best, ((2 * after * before / count) ** 0.5 * difference.norm().item(), after))
    return best
