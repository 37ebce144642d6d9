"""Exact top-k against a full sort."""

import pytest
import torch
import torch.nn.functional as F

from apps.search.nearest import top_k


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("n, k", [(0, 3), (1, 3), (5, 5), (70_000, 12), (140_001, 1)])
def test_top_k_equals_a_full_sort(n, k, dtype):
    torch.manual_seed(n)
    rows, queries = F.normalize(torch.randn(n, 16), dim=-1).to(dtype), F.normalize(torch.randn(3, 16), dim=-1)
    scores, found = top_k(queries, rows, k)
    everything = queries @ rows.float().T  # (3, N)
    best = everything.sort(dim=1, descending=True).values[:, :k]
    assert scores.shape == found.shape == (3, min(n, k)) and found.dtype == torch.int64
    torch.testing.assert_close(scores, best, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(everything.gather(1, found), scores, rtol=1e-5, atol=1e-6)
    assert top_k(queries[:0], rows, k)[1].shape == (0, min(n, k))


def test_top_k_keeps_candidates_of_every_block():
    rows = torch.zeros(300_000, 4)
    places = torch.arange(7, 300_000, 20_000)
    rows[places, 0] = torch.arange(len(places)).float() + 1
    found = top_k(torch.tensor([[1.0, 0, 0, 0]]), rows, len(places))[1][0]
    assert torch.equal(found, places.flip(0))
