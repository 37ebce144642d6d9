"""models/losses.py against hand-computed numbers, torch's own losses and plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from models import losses

SCALE, BIAS = torch.tensor(7.0, dtype=torch.double), torch.tensor(-2.0, dtype=torch.double)


def batch(image_of, dim=5, seed=0):
    """(predicted (N, D), text (M, D), image_of (M,)): random float64 unit rows."""
    generator = torch.Generator().manual_seed(seed)
    image_of = torch.tensor(image_of)
    predicted, text = (
        torch.randn(n, dim, generator=generator, dtype=torch.double)
        for n in (int(image_of.max()) + 1, len(image_of))
    )
    return F.normalize(predicted, dim=-1), F.normalize(text, dim=-1), image_of


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist()))


def naive_info_nce(predicted, text, image_of, scale):
    """Both directions, one query, one positive at a time."""
    score = [[scale * dot(image, caption) for caption in text] for image in predicted]
    own = [[m for m in range(len(text)) if image_of[m] == n] for n in range(len(predicted))]
    image_to_text = text_to_image = 0.0
    for n, captions in enumerate(own):
        wrong = sum(math.exp(score[n][m]) for m in range(len(text)) if m not in captions)
        image_to_text += sum(
            -math.log(math.exp(score[n][m]) / (math.exp(score[n][m]) + wrong)) for m in captions
        ) / len(captions)
    for m in range(len(text)):
        text_to_image -= math.log(math.exp(score[image_of[m]][m]) / sum(math.exp(row[m]) for row in score))
    return (image_to_text / len(predicted) + text_to_image / len(text)) / 2


def test_cosine_equals_the_numbers_by_hand():
    """Catches a loss without the 1 -, a sum instead of a mean, and a caption set against another image's prediction."""
    predicted, text = (
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]),
    )
    assert losses.cosine(predicted, text, torch.tensor([0, 1, 1])).item() == pytest.approx(
        (0.4 + 1.0 + 0.0) / 3
    )
    assert losses.cosine(text, text, torch.arange(3)).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.cosine(-text, text, torch.arange(3)).item() == pytest.approx(2.0)


def test_info_nce_equals_the_number_by_hand():
    """Catches a lost scale or a lost half: two orthogonal pairs at scale ln 3 give -log(3 / (3 + 1)) in both directions."""
    eye = torch.eye(2)
    assert losses.info_nce(eye, eye, torch.arange(2), math.log(3)).item() == pytest.approx(math.log(4 / 3))


def test_info_nce_is_cross_entropy_both_ways_with_one_caption_an_image():
    """Catches any departure from CLIP's loss where the two are the same thing, whatever order the captions come in."""
    predicted, text, image_of = batch([4, 0, 7, 2, 8, 1, 3, 6, 5])
    logits = SCALE * predicted @ text.T
    expected = (F.cross_entropy(logits, image_of.argsort()) + F.cross_entropy(logits.T, image_of)) / 2
    torch.testing.assert_close(losses.info_nce(predicted, text, image_of, SCALE), expected)


@pytest.mark.parametrize("image_of", [range(5), [0, 0, 1, 2, 2, 2], [3, 1, 3, 0, 1, 3, 2], [0, 0, 0, 0, 1]])
def test_info_nce_equals_the_naive_loop_with_several_captions_an_image(image_of):
    """Catches positives that stand in each other's denominator, and a wrong weight of images with many captions."""
    predicted, text, image_of = batch(image_of)
    expected = naive_info_nce(predicted, text, image_of, SCALE.item())
    assert losses.info_nce(predicted, text, image_of, SCALE).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_contrastive_loss_does_not_rise_when_another_caption_of_the_same_image_comes_nearer(name):
    """Catches captions of one image as each other's negatives. Image 1 is orthogonal to all that moves, so nothing else changes."""
    predicted = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])
    text, image_of = torch.tensor([[0.8, 0.6, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]), torch.tensor([0, 0, 1])
    nearer = text.clone()
    nearer[1] = predicted[0]
    before, after = (getattr(losses, name)(predicted, t, image_of, 10.0, -5.0).item() for t in (text, nearer))
    assert after < before


def test_sigmoid_equals_the_number_by_hand():
    """Catches a mean over all pairs (SigLIP sums them and divides by the batch): scale 2, bias -1, two orthogonal pairs."""
    eye = torch.eye(2)
    assert losses.sigmoid(eye, eye, torch.arange(2), 2.0, -1.0).item() == pytest.approx(
        2 * math.log(1 + math.exp(-1))
    )


@pytest.mark.parametrize("image_of", [range(6), [0, 0, 1, 2, 2, 2]])
def test_sigmoid_equals_siglips_formula(image_of):
    """Catches a wrong sign of z, t or b in -1/B sum_i sum_j log 1 / (1 + exp(z_ij (-t x_i.y_j - b))) (SigLIP, equation 1)."""
    predicted, text, image_of = batch(image_of)
    total = 0.0
    for n in range(len(predicted)):
        for m in range(len(text)):
            z = 1 if image_of[m] == n else -1
            total += math.log(
                1 / (1 + math.exp(z * (-SCALE.item() * dot(predicted[n], text[m]) - BIAS.item())))
            )
    assert losses.sigmoid(predicted, text, image_of, SCALE, BIAS).item() == pytest.approx(
        -total / len(text), rel=1e-9
    )


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("image_of", [[0], [0, 0, 0]])
def test_loss_of_a_batch_of_a_single_image_is_finite_with_finite_gradient(name, image_of):
    """Catches log(0) and 0 * inf where a query has no negative at all (the last batch of an epoch may hold one image)."""
    predicted, text, image_of = batch(image_of)
    predicted, scale, bias = (
        predicted.clone().requires_grad_(),
        SCALE.clone().requires_grad_(),
        BIAS.clone().requires_grad_(),
    )
    loss = getattr(losses, name)(predicted, text, image_of, scale, bias)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(t.grad).all() for t in (predicted, scale, bias) if t.grad is not None)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients_are_finite_at_the_largest_scale(name, sign):
    """Catches an exp that overflows float32: at scale 100 right (and wholly wrong) predictions have logits of 100 and -100."""
    _, text, image_of = batch([0, 0, 1, 2, 3, 4, 5, 6])
    text = text.float()
    predicted = (sign * text[1:]).requires_grad_()
    scale = torch.tensor(losses.MAX_SCALE, requires_grad=True)
    loss = getattr(losses, name)(predicted, text, image_of, scale, torch.tensor(-10.0))
    loss.backward()
    assert math.isfinite(loss.item()) and torch.isfinite(predicted.grad).all()
    assert scale.grad is None or torch.isfinite(scale.grad)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_loss_does_not_depend_on_the_order_of_the_batch(name):
    """Catches labels taken from positions in place of `image_of`: captions in another order, images numbered otherwise."""
    predicted, text, image_of = batch([0, 0, 1, 2, 2, 2, 3])
    captions, images = torch.tensor([4, 0, 6, 2, 5, 1, 3]), torch.tensor([2, 0, 3, 1])
    straight = getattr(losses, name)(predicted, text, image_of, SCALE, BIAS)
    mixed = getattr(losses, name)(
        predicted[images], text[captions], images.argsort()[image_of[captions]], SCALE, BIAS
    )
    torch.testing.assert_close(straight, mixed)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_gradient_equals_finite_differences(name):
    """Catches a detach or an in-place step that leaves the value right and the gradient wrong."""
    predicted, text, image_of = batch([0, 0, 1, 2], dim=3)
    inputs = [t.clone().requires_grad_() for t in (predicted, text, SCALE, BIAS)]
    assert torch.autograd.gradcheck(lambda p, t, s, b: getattr(losses, name)(p, t, image_of, s, b), inputs)


@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_collapsed_predictions_lose_to_right_ones(name):
    """Catches a contrastive loss that a model which says the same of every image could win."""
    _, text, image_of = batch(range(8))
    right = getattr(losses, name)(text, text, image_of, SCALE, BIAS)
    collapsed = getattr(losses, name)(
        F.normalize(text.mean(0), dim=0).expand(8, -1), text, image_of, SCALE, BIAS
    )
    assert right < collapsed
