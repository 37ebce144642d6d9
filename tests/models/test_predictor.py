"""models/predictor.py: sizes, unit rows, and what `standardise` does."""

import pytest
import torch

from models.predictor import Dropout, Linear, Predictor

SIZES = dict(vision_dim=10, text_dim=6, hidden_dim=8)


def features(rows=50, dim=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, dim, generator=generator) * torch.linspace(0.01, 3, dim) + torch.linspace(
        -5, 5, dim
    )


def test_default_predictor_has_the_documented_number_of_parameters():
    """Catches a layer, bias or width that crept in: CLIP ViT-B/16 to MiniLM was promised 918,912 parameters."""
    assert sum(p.numel() for p in Predictor(vision_dim=512, text_dim=384).parameters()) == 918_912
    assert sum(p.numel() for p in Predictor().parameters()) == 918_912


def test_predictions_are_unit_rows():
    """Catches a lost normalisation: every score downstream is taken for a cosine."""
    predicted = Predictor(**SIZES)(features())
    assert predicted.shape == (50, 6) and predicted.dtype == torch.float32
    torch.testing.assert_close(predicted.norm(dim=-1), torch.ones(50))


def test_prediction_equals_the_formula():
    """Catches another activation (tanh GELU, ReLU) than the one documented: Linear, GELU, Linear, L2 norm."""
    predictor, x = Predictor(**SIZES), features()
    torch.testing.assert_close(predictor(x), by_formula(predictor.members[0], x), rtol=1e-4, atol=1e-5)


def by_formula(member, x):
    _, hidden, _, _, out = member
    h = x @ hidden.weight.T + hidden.bias
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    y = h @ out.weight.T + out.bias
    return y / y.norm(dim=-1, keepdim=True)


def test_several_members_answer_with_their_mean_and_differ():
    """Catches members that share weights, or of which one alone is asked."""
    predictor, x = Predictor(**SIZES, members=3), features()
    each = [by_formula(member, x) for member in predictor.members]
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(torch.stack(predictor.each(x)), torch.stack(each), rtol=1e-4, atol=1e-5)
    mean = torch.stack(each).mean(0)
    torch.testing.assert_close(predictor(x), mean / mean.norm(dim=-1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_input_dropout_drops_standardised_inputs():
    """Catches dropout before the mean is taken off: a dropped feature would then be -mean / std and far outside its range."""
    predictor, seen = Predictor(**SIZES, input_dropout=0.5), []
    predictor.members[0][1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = features()
    predictor.standardise(x)
    predictor.train()(x)
    zero = seen[0] == 0
    assert 0.3 < zero.float().mean() < 0.7
    torch.testing.assert_close(seen[0][~zero], (2 * (x - predictor.mean) / predictor.std)[~zero])


def test_standardise_gives_the_hidden_layer_mean_0_and_deviation_1():
    """Catches variance in place of deviation, and statistics over the wrong axis."""
    predictor, seen = Predictor(**SIZES), []
    predictor.members[0][1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predictor.standardise(features())
    predictor(features())
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].std(0, correction=0), torch.ones(10), atol=1e-3, rtol=0)


def test_standardise_survives_a_feature_that_never_changes():
    """Catches a division by zero for a dead feature of the tower."""
    x = features()
    x[:, 3] = 0.25
    predictor = Predictor(**SIZES)
    predictor.standardise(x)
    assert torch.isfinite(predictor(x)).all()


def test_standardise_of_a_single_image_is_finite():
    """Catches the deviation of one number, which is NaN with Bessel's correction: the loss of an archive of one image would be too."""
    predictor = Predictor(**SIZES)
    predictor.standardise(features(rows=1))
    assert torch.isfinite(predictor(features(rows=1))).all()


def test_without_standardise_the_input_is_left_as_it_is():
    """Catches buffers that are not zeros and ones at first."""
    predictor = Predictor(**SIZES)
    assert torch.equal(predictor.mean, torch.zeros(10)) and torch.equal(predictor.std, torch.ones(10))


@pytest.mark.parametrize("options", [{}, dict(dropout=0.25, input_dropout=0.5, members=2)])
def test_config_and_state_rebuild_the_same_predictor(options):
    """Catches an option that `config` forgets, and statistics that the state dict does not carry."""
    predictor = Predictor(**SIZES, **options)
    predictor.standardise(features())
    twin = Predictor(**predictor.config)
    twin.load_state_dict(predictor.state_dict())
    assert twin.config == predictor.config
    assert [twin.members[0][3].p, twin.members[0][0].p] == [
        options.get("dropout", 0.0),
        options.get("input_dropout", 0.0),
    ]
    assert len(twin.members) == options.get("members", 1)
    assert torch.equal(twin.eval()(features()), predictor.eval()(features()))


@pytest.mark.parametrize("which", ["dropout", "input_dropout"])
def test_dropout_acts_in_training_alone(which):
    """Catches answers that change from one call to the next, and a dropout that is never used."""
    predictor, x = Predictor(**SIZES, **{which: 0.5}), features()
    assert not torch.equal(predictor.train()(x), predictor(x))
    assert torch.equal(predictor.eval()(x), predictor(x))


def test_statistics_are_no_parameters():
    """Catches a mean and deviation that the optimiser would train away."""
    assert all(name.startswith("members.") for name, _ in Predictor(**SIZES).named_parameters())


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear_and_its_gradients_equal_torchs(rows):
    """Catches a transposed product in the backward pass, and an empty batch that oneDNN refuses."""
    torch.manual_seed(0)
    fast, plain = Linear(70, 30), torch.nn.Linear(70, 30)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(rows, 70)
    grads = []
    for layer in (fast, plain):
        inputs = x.clone().requires_grad_()
        (layer(inputs) ** 2).sum().backward()
        grads.append([inputs.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_dropout_drops_its_share_everywhere_and_keeps_the_mean(p):
    """Catches a mask with a weak bit (every eighth byte), a scale that is off, and a mask that repeats."""
    torch.manual_seed(0)
    dropout, x = Dropout(p).train(), torch.ones(4001, 97)
    y = dropout(x)
    share = round(256 * p) / 256 if p < 0.99 else p
    assert abs((y == 0).double().mean() - share) < 0.004
    by_byte = (y.flatten()[: y.numel() // 8 * 8].view(-1, 8) == 0).double().mean(0)
    assert (by_byte - share).abs().max() < 0.012
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)) if len(kept) else kept)
    assert p in (0.0, 1.0) or not torch.equal(dropout(x), y)
    assert torch.equal(dropout.eval()(x), x)
