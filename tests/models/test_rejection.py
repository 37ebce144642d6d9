"""models/rejection.py, against a naive loop."""

import pytest
import torch
import torch.nn.functional as F

from models.metrics import FEW
from models.rejection import PRECISION, kept, least_score, pairs, threshold


def naive(scores, right):
    """The lowest score from which PRECISION of FEW or more choices are right, or None."""
    found = []
    for least in scores:
        kept = [hit for score, hit in zip(scores, right) if score >= least]
        if len(kept) >= FEW and sum(kept) >= PRECISION * len(kept):
            found.append(least)
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [1, 6])  # with one decimal many scores are equal
def test_threshold_is_that_of_the_naive_loop(seed, decimals):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(200, generator=generator, dtype=torch.double).round(decimals=decimals)
    right = torch.rand(200, generator=generator) < scores.clamp_min(0.5) + 0.2
    found = threshold(scores, right)
    assert found["threshold"] == naive(scores.tolist(), right.tolist())
    assert found["threshold"] is not None
    assert found["kept"] == (scores >= found["threshold"]).sum() and found["of"] == 200
    assert kept(found["threshold"], scores, right)["kept"] == found["kept"]
    last = found["curve"][-1]
    assert last[0] == pytest.approx(scores.min().item(), abs=1e-4)
    assert last[1] == pytest.approx(right.double().mean().item(), abs=1e-4) and last[2] == 1


def test_there_is_no_threshold_for_wrong_or_few_choices():
    scores = torch.linspace(0, 1, 100)
    assert threshold(scores, torch.zeros(100, dtype=torch.bool))["threshold"] is None
    few = threshold(scores[: FEW - 1], torch.ones(FEW - 1, dtype=torch.bool))
    assert few["threshold"] is None and few["of"] == FEW - 1


@pytest.mark.parametrize("images", [2, 3, 30])
def test_pairs_are_each_caption_with_its_own_and_another_image(images):
    torch.manual_seed(0)
    predicted = F.normalize(torch.randn(images, 8), dim=1)
    text = F.normalize(torch.randn(2 * images, 8), dim=1)
    image_of = torch.arange(2 * images) % images
    scores, right = pairs(predicted, text, image_of)
    every = predicted @ text.T
    for caption, own in enumerate(image_of.tolist()):
        torch.testing.assert_close(scores[caption], every[own, caption])
        other = scores[len(text) + caption]
        assert any(torch.isclose(other, every[i, caption]) for i in range(images) if i != own)
    assert right.tolist() == [True] * len(text) + [False] * len(text)


def test_least_score_of_a_record_without_one_says_why():
    assert least_score(dict(held_out=dict(reject=dict(threshold=0.5))), "reject", "run") == 0.5
    with pytest.raises(ValueError, match="run: no image was held out.*such as 0.4"):
        least_score(dict(held_out=None), "reject", "run")
    with pytest.raises(ValueError, match="run: of its 30 held-out pairs"):
        least_score(dict(held_out=dict(reject=threshold(torch.rand(30), torch.zeros(30)))), "reject", "run")
