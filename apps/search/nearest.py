"""The nearest rows to some queries, exactly.

scores, found = top_k(queries, rows, 12)     # (Q, 12) float32, (Q, 12) int64, best first
"""

import torch


def top_k(queries, rows, k):
    """The k best rows for each query by dot product: (scores (Q, k) float32, indices (Q, k) int64), best first, equal scores in
    any order; fewer than k when there are fewer rows. queries (Q, D) float32, rows (N, D) float32 or float16, which is widened
    block by block, inside the processor's cache.

    Through oneDNN on a CPU: one query over a million rows of 384 float32 is bound by reading them (tools/bench.py: search)."""
    onednn = queries.device.type == "cpu" and torch.backends.mkldnn.is_available() and len(queries) > 0
    size = 4096 if rows.dtype == torch.float16 else 65536  # rows at a time
    best, at = (
        queries.new_empty(len(queries), 0),
        torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device),
    )
    for start in range(0, len(rows), size):
        block = rows[start : start + size].float()
        if onednn:
            scores = torch.ops.mkldnn._linear_pointwise(queries, block, None, "none", [], "")  # (Q, size)
        else:
            scores = queries @ block.T
        values, where = scores.topk(min(k, len(block)))
        best, at = torch.cat([best, values], dim=1), torch.cat([at, where + start], dim=1)
        if best.shape[1] > 32 * k or start + size >= len(rows):
            best, kept = best.topk(min(k, best.shape[1]))
            at = at.gather(1, kept)
    return best, at
