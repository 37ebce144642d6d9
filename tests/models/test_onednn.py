"""models/onednn.py: the fast layers equal torch's, which run where an operator is missing or wrong."""

import logging

import pytest
import torch
import torch.nn.functional as F

from models import onednn
from models.predictor import Predictor
from models.text.minilm import MiniLM
from models.vision import VisionEncoder

NAMES = ("_linear", "_linear_add", "_pack", "_conv2d")


def missing(*args):
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def garbage(*args):
    return torch.full((1, 1), 3.0)


@pytest.fixture(params=[missing, garbage])
def broken(request, monkeypatch):
    """Every operator is missing, or returns garbage."""
    for name in NAMES:
        monkeypatch.setattr(onednn, name, request.param)
    onednn.works.cache_clear()
    yield request.param
    onednn.works.cache_clear()


def random(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("after", onednn.ACTIVATIONS)
@pytest.mark.parametrize("packed", [False, True])
def test_linear_equals_torchs(after, packed):
    x, weight, bias, other = random((2, 5, 30), (40, 30), (40,), (2, 5, 40))
    used = onednn.pack(weight, 10) if packed else weight
    plain = F.linear(x, weight, bias)
    torch.testing.assert_close(
        onednn.linear(x, used, bias, after), onednn.ACTIVATIONS[after](plain), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(onednn.linear_add(x, used, bias, other), plain + other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups, stride, relu6", [(1, 1, True), (8, 2, True), (8, 1, False)])
def test_conv2d_equals_torchs(groups, stride, relu6):
    x, weight, bias = random((2, 8, 9, 9), (8, 8 // groups, 3, 3), (8,))
    plain = F.conv2d(5 * x, weight, bias, stride, 1, groups=groups)
    found = onednn.conv2d(5 * x, weight, bias, stride, 1, groups, relu6)
    torch.testing.assert_close(found, F.relu6(plain) if relu6 else plain, rtol=1e-4, atol=1e-4)


def test_gradients_pass_through_the_layers():
    x, weight, bias = random((4, 8), (3, 8), (3,))
    x.requires_grad_()
    onednn.linear(x, weight, bias, "gelu").sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_broken_operator_is_reported_once_by_name(broken, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not onednn.works("conv2d")
    assert len(caplog.records) == 1 and "conv2d" in caplog.text


def test_weight_packed_before_an_operator_breaks_still_works(monkeypatch):
    x, weight, bias = random((4, 16), (8, 16), (8,))
    packed = onednn.pack(weight, 4)
    monkeypatch.setattr(onednn, "works", lambda *args: False)
    torch.testing.assert_close(
        onednn.linear(x, packed, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5
    )


def test_text_tower_without_operators_gives_the_same_rows(broken, minilm):
    texts = ["a dog runs", "", "two people on a bridge"]
    slow = MiniLM(minilm.path, 256, minilm.device)
    torch.testing.assert_close(F.normalize(slow(texts), dim=-1), minilm.encode(texts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["efficientnet-lite0-stages", "clip"])
def test_image_tower_without_operators_gives_the_same_rows(name, request, monkeypatch):
    if name == "clip":
        name = f"open_clip:ViT-B-16-quickgelu/{request.getfixturevalue('clip_file')}"
    rows = {}
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows["fast"] = VisionEncoder("cpu", name).encode(pixels)
    for kind in (missing, garbage):
        for function in NAMES:
            monkeypatch.setattr(onednn, function, kind)
        onednn.works.cache_clear()
        rows[kind] = VisionEncoder("cpu", name).encode(pixels)
    onednn.works.cache_clear()
    torch.testing.assert_close(rows[missing], rows["fast"], rtol=1e-4, atol=1e-5)
    assert torch.equal(rows[garbage], rows[missing])


def test_training_step_without_operators_gives_the_same_gradients(monkeypatch):
    x, target = random((6, 20), (6, 8))
    gradients = []
    for kind in (None, missing, garbage):
        for name in NAMES if kind else ():
            monkeypatch.setattr(onednn, name, kind)
        onednn.works.cache_clear()
        torch.manual_seed(0)
        predictor = Predictor(20, 8, 16)
        (1 - F.cosine_similarity(predictor(x), target).mean()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in predictor.parameters()]))
    onednn.works.cache_clear()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)
    assert torch.equal(gradients[2], gradients[1])
