"""models/linear.py against scikit-learn and by its definition."""

import pytest
import torch
import torch.nn.functional as F

from models.features import Features
from models.linear import METHODS, cca, choose, recalls, ridge


@pytest.fixture
def world():
    """x (200, 6) and y (200, 4), which depend on each other through two hidden numbers."""
    torch.manual_seed(0)
    hidden = torch.randn(200, 2)
    x = hidden @ torch.randn(2, 6) + 0.3 * torch.randn(200, 6) + 1
    y = hidden @ torch.randn(2, 4) + 0.3 * torch.randn(200, 4) - 2
    return x, y


def test_ridge_is_that_of_scikit_learn(world):
    from sklearn.linear_model import Ridge

    x, y = world
    of_x, of_y = ridge(x, y, penalty=0.1)
    alpha = 0.1 * x.var(0, correction=0).mean().item() * len(x)
    expected = Ridge(alpha=alpha).fit(x.numpy(), y.numpy()).predict(x.numpy())
    torch.testing.assert_close(of_x(x), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-4)
    assert torch.equal(of_y(y), y)


def test_cca_finds_correlated_directions_that_are_white_and_weighted(world):
    x, y = world
    of_x, of_y = cca(x, y, penalty=1e-6)
    a, b = of_x(x), of_y(y)
    correlation = a.std(0, correction=0)  # each direction has deviation 1 before it is weighted
    assert (correlation[:2] > 0.8).all() and (correlation[2:4] < 0.4).all()
    for i in range(4):
        pair = torch.corrcoef(torch.stack([a[:, i], b[:, i]]))[0, 1]
        assert pair == pytest.approx(correlation[i].item(), abs=0.01)
    white = torch.corrcoef(a[:, :4].T)
    torch.testing.assert_close(white, torch.eye(4), rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_recalls_of_a_linear_world_are_high(method):
    torch.manual_seed(0)
    image = F.normalize(torch.randn(120, 16), dim=1)
    text = F.normalize(
        (image @ torch.randn(16, 12)).repeat_interleave(2, 0) + 0.1 * torch.randn(240, 12), dim=1
    )
    features = Features(image, text, torch.arange(240) // 2)
    names = [f"{i}.jpg" for i in range(120)]

    def score(penalty, *inner):
        return recalls(METHODS[method], penalty, *inner)["text_retrieval_recall@1"]

    assert choose(score, features, names) < 1
    half = torch.arange(120) < 60
    found = recalls(METHODS[method], 0.001, features.of(half), features.of(~half))
    assert found["text_retrieval_recall@1"] > 0.8
