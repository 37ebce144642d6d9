"""models/losses.py against numbers by hand, torch's own losses and plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import losses

SCALE, BIAS = torch.tensor(7.0, dtype=torch.double), torch.tensor(-2.0, dtype=torch.double)
ALL = [getattr(losses, name) for name in losses.LOSSES]


def batch(image_of, dim=5, seed=0):
    """(predicted (N, D), text (M, D), image_of (M,)): random float64 unit rows."""
    generator = torch.Generator().manual_seed(seed)
    image_of = torch.tensor(image_of)
    counts = int(image_of.max()) + 1, len(image_of)
    rows = (torch.randn(n, dim, generator=generator, dtype=torch.double) for n in counts)
    return *(F.normalize(part, dim=-1) for part in rows), image_of


def naive_info_nce(score, image_of):
    """Both directions, one query and one right answer at a time. `score` (N, M) is a list of lists."""
    n, m = len(score), len(image_of)
    image_to_text = text_to_image = 0.0
    for i in range(n):
        own = [j for j in range(m) if image_of[j] == i]
        wrong = sum(math.exp(score[i][j]) for j in range(m) if j not in own)
        for j in own:
            right = math.exp(score[i][j])
            image_to_text -= math.log(right / (right + wrong)) / len(own)
    for j in range(m):
        text_to_image -= math.log(math.exp(score[image_of[j]][j]) / sum(math.exp(row[j]) for row in score))
    return (image_to_text / n + text_to_image / m) / 2


def naive_sigmoid(score, image_of):
    """SigLIP, equation 1: -1/B sum_i sum_j log 1 / (1 + exp(-z_ij (t x_i.y_j + b)))."""
    total = 0.0
    for i, row in enumerate(score):
        for j, value in enumerate(row):
            z = 1 if image_of[j] == i else -1
            total += math.log(1 / (1 + math.exp(-z * value)))
    return -total / len(image_of)


def test_cosine_equals_the_numbers_by_hand():
    predicted = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    found = losses.cosine(predicted, text, torch.tensor([0, 1, 1])).item()
    assert found == pytest.approx((0.4 + 1.0 + 0.0) / 3)
    assert losses.cosine(-text, text, torch.arange(3)).item() == pytest.approx(2.0)


def test_contrastive_losses_of_two_orthogonal_pairs_equal_the_numbers_by_hand():
    pairs = torch.eye(2), torch.eye(2), torch.arange(2)
    assert losses.info_nce(*pairs, math.log(3)).item() == pytest.approx(math.log(4 / 3))
    assert losses.sigmoid(*pairs, 2.0, -1.0).item() == pytest.approx(2 * math.log(1 + math.exp(-1)))


def test_info_nce_with_one_caption_per_image_is_clips_cross_entropy():
    predicted, text, image_of = batch([4, 0, 7, 2, 8, 1, 3, 6, 5])
    logits = SCALE * predicted @ text.T
    expected = (F.cross_entropy(logits, image_of.argsort()) + F.cross_entropy(logits.T, image_of)) / 2
    torch.testing.assert_close(losses.info_nce(predicted, text, image_of, SCALE), expected)


@pytest.mark.parametrize("image_of", [range(5), [0, 0, 1, 2, 2, 2], [3, 1, 3, 0, 1, 3, 2], [0, 0, 0, 0, 1]])
def test_contrastive_losses_equal_the_naive_loops(image_of):
    predicted, text, image_of = batch(image_of)
    score = SCALE * predicted @ text.T
    expected = naive_info_nce(score.tolist(), image_of.tolist())
    assert losses.info_nce(predicted, text, image_of, SCALE).item() == pytest.approx(expected, rel=1e-6)
    expected = naive_sigmoid((score + BIAS).tolist(), image_of.tolist())
    assert losses.sigmoid(predicted, text, image_of, SCALE, BIAS).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("image_of", [[0], [0, 0, 0]])
def test_loss_of_a_single_image_is_finite_with_finite_gradient(loss, image_of):
    """The last batch of an epoch may hold one image, which has no negatives."""
    predicted, text, image_of = batch(image_of)
    inputs = [tensor.clone().requires_grad_() for tensor in (predicted, SCALE, BIAS)]
    found = loss(inputs[0], text, image_of, *inputs[1:])
    found.backward()
    assert math.isfinite(found.item())
    assert all(tensor.grad is None or torch.isfinite(tensor.grad).all() for tensor in inputs)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_at_the_largest_scale(loss, sign):
    """exp(100) overflows float32."""
    _, text, image_of = batch([0, 0, 1, 2, 3, 4, 5, 6])
    text = text.float()
    predicted = (sign * text[1:]).requires_grad_()
    scale = torch.tensor(losses.MAX_SCALE, requires_grad=True)
    found = loss(predicted, text, image_of, scale, torch.tensor(-10.0))
    found.backward()
    assert math.isfinite(found.item()) and torch.isfinite(predicted.grad).all()
    assert scale.grad is None or torch.isfinite(scale.grad)


@pytest.mark.parametrize("loss", ALL)
def test_gradient_equals_finite_differences(loss):
    predicted, text, image_of = batch([0, 0, 1, 2], dim=3)
    inputs = [tensor.clone().requires_grad_() for tensor in (predicted, text, SCALE, BIAS)]
    assert torch.autograd.gradcheck(lambda p, t, s, b: loss(p, t, image_of, s, b), inputs)
