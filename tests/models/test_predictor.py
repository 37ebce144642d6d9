"""models/predictor.py: sizes, unit rows, standardising, and the two layers that are faster than torch's."""

import pytest
import torch
import torch.nn.functional as F

from models.layers import Linear, dropout
from models.predictor import Predictor

SIZES = dict(vision_dim=10, text_dim=6, hidden_dim=8)


def features(rows=50, dim=10):
    noise = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))
    return noise * torch.linspace(0.01, 3, dim) + torch.linspace(-5, 5, dim)


def by_formula(member, x):
    """Linear, GELU by its definition, Linear, L2 norm."""
    h = x @ member.up.weight.T + member.up.bias
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    y = h @ member.down.weight.T + member.down.bias
    return y / y.norm(dim=-1, keepdim=True)


def hidden_inputs(predictor, x):
    """What reaches the first layer of the first member."""
    seen = []
    hook = predictor.members[0].up.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    predictor(x)
    hook.remove()
    return seen[0]


def test_default_predictor_has_the_documented_number_of_parameters():
    assert sum(p.numel() for p in Predictor().parameters()) == 918_912


@pytest.mark.parametrize("members", [1, 3])
def test_prediction_is_the_normalised_mean_of_the_formula_over_members(members):
    predictor, x = Predictor(**SIZES, members=members), features()
    each = torch.stack([by_formula(member, x) for member in predictor.members])  # (members, B, 6)
    torch.testing.assert_close(torch.stack(predictor.each(x)), each, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor(x), F.normalize(each.mean(0), dim=-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predictor(x).norm(dim=-1), torch.ones(50))
    assert members == 1 or not torch.allclose(each[0], each[1])


def test_input_dropout_drops_standardised_inputs():
    """Dropped before the mean is taken off, a feature becomes -mean / std, far outside its range."""
    predictor, x = Predictor(**SIZES, input_dropout=0.5), features()
    predictor.standardise(x)
    seen = hidden_inputs(predictor.train(), x)
    zero = seen == 0
    assert 0.3 < zero.float().mean() < 0.7
    torch.testing.assert_close(seen[~zero], (2 * (x - predictor.mean) / predictor.std)[~zero])


def test_standardise_gives_inputs_of_mean_0_and_deviation_1():
    predictor = Predictor(**SIZES)
    assert torch.equal(hidden_inputs(predictor, features()), features())  # until it is called
    predictor.standardise(features())
    seen = hidden_inputs(predictor, features())
    torch.testing.assert_close(seen.mean(0), torch.zeros(10), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.std(0, correction=0), torch.ones(10), atol=1e-3, rtol=0)


@pytest.mark.parametrize("rows", [1, 50])
def test_standardise_survives_features_that_never_change(rows):
    x = features(rows)
    x[:, 3] = 0.25
    predictor = Predictor(**SIZES)
    predictor.standardise(x)
    assert torch.isfinite(predictor(x)).all()


@pytest.mark.parametrize("options", [{}, dict(dropout=0.25, input_dropout=0.5, members=2)])
def test_config_and_state_rebuild_the_same_predictor(options):
    predictor = Predictor(**SIZES, **options)
    predictor.standardise(features())
    twin = Predictor(**predictor.config)
    twin.load_state_dict(predictor.state_dict())
    assert twin.config == predictor.config and predictor.config.items() >= options.items()
    assert torch.equal(twin.eval()(features()), predictor.eval()(features()))


@pytest.mark.parametrize("which", ["dropout", "input_dropout"])
def test_dropout_acts_in_training_alone(which):
    predictor, x = Predictor(**SIZES, **{which: 0.5}), features()
    assert not torch.equal(predictor.train()(x), predictor(x))
    assert torch.equal(predictor.eval()(x), predictor(x))


def test_mean_and_deviation_are_no_parameters():
    assert all(name.startswith("members.") for name, _ in Predictor(**SIZES).named_parameters())


def test_question_is_refused():
    with pytest.raises(ValueError, match="question"):
        Predictor(**SIZES)(features(), question=torch.zeros(50, 6))


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear_and_its_gradients_equal_torchs(rows):
    torch.manual_seed(0)
    fast, plain = Linear(70, 30), torch.nn.Linear(70, 30)
    plain.load_state_dict(fast.state_dict())
    x, grads = torch.randn(rows, 70), []
    for layer in (fast, plain):
        inputs = x.clone().requires_grad_()
        (layer(inputs) ** 2).sum().backward()
        grads.append([inputs.grad, layer.weight.grad, layer.bias.grad])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_dropout_drops_its_share_everywhere_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(4001, 97)
    y = dropout(x, p, training=True)
    share = round(256 * p) / 256 if p < 0.99 else p
    assert abs((y == 0).double().mean() - share) < 0.004
    by_byte = (y.flatten()[: y.numel() // 8 * 8].view(-1, 8) == 0).double().mean(0)
    assert (by_byte - share).abs().max() < 0.012  # no weak byte in the random words
    kept = y[y != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - share)) if len(kept) else kept)
    assert p in (0.0, 1.0) or not torch.equal(dropout(x, p, training=True), y)
    assert torch.equal(dropout(x, p, training=False), x)


def test_dropout_of_some_rows_is_that_part_of_the_whole_mask():
    x, parts = torch.ones(10, 7), []
    torch.manual_seed(0)
    whole = dropout(x, 0.5, training=True)
    for start, stop in ((0, 4), (4, 10)):
        torch.manual_seed(0)
        parts.append(dropout(x[start:stop], 0.5, training=True, rows=(start, 10)))
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", ["linear", "residual"])
def test_text_head_starts_as_the_identity_and_learns(kind):
    torch.manual_seed(0)
    predictor = Predictor(8, 12, text_head=kind).eval()
    text = F.normalize(torch.randn(5, 12), dim=1)
    torch.testing.assert_close(predictor.project_text(text), text)
    optimiser = torch.optim.SGD(predictor.parameters(), lr=1.0)
    predictor.project_text(text)[:, 0].sum().backward()
    optimiser.step()
    moved = predictor.project_text(text)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(5))
    assert (moved[:, 0] < text[:, 0]).all()


def test_without_a_text_head_text_is_left_alone():
    text = torch.randn(5, 12)
    assert Predictor(8, 12).project_text(text) is text
