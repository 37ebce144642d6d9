"""The nearest rows to some queries, exactly.

scores, found = top_k(queries, rows, 12)     # (Q, 12) float32, (Q, 12) int64, best first
"""

import torch

from models.onednn import linear


def top_k(queries, rows, k):
    """(scores (Q, k) float32, indices (Q, k) int64) of the k best rows per query by dot product, best first.

    Equal scores come in any order; fewer rows than k give fewer columns. queries (Q, D) float32, rows (N, D)
    float32 or float16, widened in blocks that fit the processor's cache. One query over a million rows is
    bound by reading them (tools.bench: search)."""
    best = queries.new_empty(len(queries), 0)
    at = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    if not len(queries):  # oneDNN refuses an empty batch
        return best.new_empty(0, min(k, len(rows))), at.new_empty(0, min(k, len(rows)))
    size = 4096 if rows.dtype == torch.float16 else 65536  # rows in a block
    for start in range(0, len(rows), size):
        scores = linear(queries, rows[start : start + size].float())  # (Q, size)
        values, where = scores.topk(min(k, scores.shape[1]))
        best = torch.cat([best, values], dim=1)
        at = torch.cat([at, where + start], dim=1)
        if best.shape[1] > 32 * k or start + size >= len(rows):
            best, kept = best.topk(min(k, best.shape[1]))  # (Q, k)
            at = at.gather(1, kept)
    return best, at
