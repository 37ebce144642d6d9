"""models/metrics.py against plain loops, torchmetrics, Monte Carlo, and models that must not look good."""

import math
from statistics import median_low

import pytest
import torch
import torch.nn.functional as F

from models import metrics

COUNTS = [1, 5, 2, 1, 3, 7, 1]  # captions of each image
BANKS = ("image_bank", "text_bank")


def unit(rows, dim, seed):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def small(rows, dim, seed):
    """Small whole numbers: their scores are exact and often equal."""
    return torch.randint(-1, 2, (rows, dim), generator=torch.Generator().manual_seed(seed)).float()


def captions_of(counts, seed=0):
    """image_of for uneven caption counts, in mixed order."""
    image_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return image_of[torch.randperm(len(image_of), generator=torch.Generator().manual_seed(seed))]


def dot(a, b):
    return sum(x * y for x, y in zip(a.tolist(), b.tolist()))


def naive_ranks(scores, image_of):
    """The rank of each caption's image, and of each image's best caption. `scores` (N, M): lists."""
    images, texts, owner = range(len(scores)), range(len(image_of)), image_of.tolist()
    to_image = [sum(scores[n][m] >= scores[owner[m]][m] for n in images if n != owner[m]) for m in texts]
    to_text = []
    for n in images:
        best = max(scores[n][m] for m in texts if owner[m] == n)
        to_text.append(sum(scores[n][m] >= best for m in texts if owner[m] != n))
    return to_image, to_text


def naive_scores(predicted, text):
    return [[dot(image, caption) for caption in text] for image in predicted]


@pytest.mark.parametrize("counts", [[1] * 12, COUNTS, [4] * 5, [3], [1]])
@pytest.mark.parametrize("draw", [unit, small])
def test_retrieval_equals_the_naive_loop(counts, draw):
    image_of = captions_of(counts)
    for seed in range(5):
        predicted, text = draw(len(counts), 5, seed), draw(len(image_of), 5, seed + 100)
        expected = naive_ranks(naive_scores(predicted, text), image_of)
        to_image, to_text = metrics.ranks(predicted, text, image_of)
        assert (to_image.tolist(), to_text.tolist()) == expected
        found = metrics.retrieval(predicted, text, image_of)
        for name, rank in (("image_retrieval", expected[0]), ("text_retrieval", expected[1])):
            for k in (1, 5, 10):
                assert found[f"{name}_recall@{k}"] == pytest.approx(sum(r < k for r in rank) / len(rank))
            assert found[f"{name}_median_rank"] == median_low(rank) + 1


@pytest.mark.parametrize("k", [1, 5, 10])
def test_retrieval_equals_torchmetrics_hit_rate(k):
    """Recall here is the literature's hit rate, not the share of an image's captions found."""
    from torchmetrics.retrieval import RetrievalHitRate

    image_of = captions_of([5] * 20 + [1] * 10)
    predicted, text = unit(30, 8, 1), unit(len(image_of), 8, 2)
    target = image_of[:, None] == torch.arange(30)  # (M, N)
    scores = text @ predicted.T
    found = metrics.retrieval(predicted, text, image_of)
    for name, preds, wanted in (("image_retrieval", scores, target), ("text_retrieval", scores.T, target.T)):
        indexes = torch.arange(len(preds))[:, None].expand_as(preds)
        peer = RetrievalHitRate(top_k=k)(preds.flatten(), wanted.flatten(), indexes=indexes.flatten()).item()
        assert found[f"{name}_recall@{k}"] == pytest.approx(peer)


def test_perfect_predictions_score_everything_and_random_ones_chance():
    rows = unit(50, 16, 0)
    assert set(metrics.retrieval(rows, rows, torch.arange(50)).values()) == {1}
    found = metrics.retrieval(unit(1000, 32, 0), unit(1000, 32, 1), torch.arange(1000))
    assert found["image_retrieval_recall@1"] < 0.01 and found["text_retrieval_recall@1"] < 0.01
    assert 400 < found["image_retrieval_median_rank"] < 600


SIZES = [(2, 100, 1), (3, 384, 2), (5, 16, 7), (33, 100, 1024), (101, 384, 64), (1013, 384, 1024)]


@pytest.mark.parametrize("images, dim, chunk", SIZES)
def test_collapsed_predictions_or_captions_score_nothing(images, dim, chunk):
    """Equal rows tie wherever they are, although kernels round the last columns of a block differently."""
    image_of = torch.arange(images).repeat_interleave(3)
    same = unit(1, dim, 0).expand(images, dim).contiguous()
    to_image, to_text = metrics.ranks(same, unit(len(image_of), dim, 1), image_of, chunk=chunk)
    assert (to_image == images - 1).all()
    assert (to_text < 1).double().mean() <= 1 / images + 1e-9
    _, to_text = metrics.ranks(unit(images, dim, 1), same, torch.arange(images), chunk=chunk)
    assert (to_text == images - 1).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["predicted", "text", *BANKS])
def test_ranks_refuse_non_finite_numbers(which, value):
    inputs = {name: unit(6, 4, i) for i, name in enumerate(("predicted", "text", *BANKS))}
    inputs[which][3, 2] = value
    with pytest.raises(ValueError, match=which.replace("_", " ")):
        metrics.ranks(image_of=torch.arange(6), **inputs)


@pytest.mark.parametrize("image_of", [[0, 1], [0, 1, 3], [0, -1, 1], [0, 0, 1]])
def test_ranks_refuse_captions_that_do_not_fit_the_images(image_of):
    with pytest.raises(ValueError):
        metrics.ranks(unit(3, 4, 0), unit(3, 4, 1), torch.tensor(image_of))


@pytest.mark.parametrize("banks", [False, True])
def test_ranks_do_not_depend_on_the_chunk_size_or_the_order(banks):
    image_of = captions_of(COUNTS * 5)
    predicted, text = unit(35, 24, 1), unit(len(image_of), 24, 2)
    predicted[20:25], text[50:60] = predicted[:5], text[:10]  # ties
    extra = dict(image_bank=unit(19, 24, 3), text_bank=unit(23, 24, 4)) if banks else {}
    to_image, to_text = metrics.ranks(predicted, text, image_of, **extra)
    for chunk in (1, 2, 7, 35, 36):
        parts = metrics.ranks(predicted, text, image_of, chunk=chunk, **extra)
        assert torch.equal(to_image, parts[0]) and torch.equal(to_text, parts[1]), chunk
    images, captions = torch.randperm(35), torch.randperm(len(image_of))
    mixed = predicted[images], text[captions], images.argsort()[image_of[captions]]
    mixed = metrics.ranks(*mixed, **extra)
    assert torch.equal(mixed[0], to_image[captions]) and torch.equal(mixed[1], to_text[images])


@pytest.mark.parametrize("used", [BANKS, BANKS[:1], BANKS[1:]])
def test_hub_correction_equals_the_naive_loop(used):
    """Each bank moves its own direction only."""
    image_of, t = captions_of(COUNTS), 0.05
    predicted, text = unit(7, 8, 1), unit(len(image_of), 8, 2)
    banks = dict(image_bank=unit(9, 8, 3), text_bank=unit(11, 8, 4))
    banks = {name: rows if name in used else None for name, rows in banks.items()}

    def hubness(items, bank):
        if bank is None:
            return [0.0] * len(items)
        return [t * math.log(sum(math.exp(dot(item, query) / t) for query in bank)) for item in items]

    scores = naive_scores(predicted, text)
    image_hub, text_hub = hubness(predicted, banks["text_bank"]), hubness(text, banks["image_bank"])
    to_image, _ = naive_ranks([[s - hub for s in row] for row, hub in zip(scores, image_hub)], image_of)
    _, to_text = naive_ranks([[s - hub for s, hub in zip(row, text_hub)] for row in scores], image_of)
    found = metrics.ranks(predicted, text, image_of, **banks)
    assert (found[0].tolist(), found[1].tolist()) == (to_image, to_text)


@pytest.mark.parametrize("counts", [COUNTS, [1] * 9, [5] * 6, [1] * 100, [5] * 100])
def test_chance_equals_a_monte_carlo_of_random_scores(counts):
    """Predictions that are the unit vectors turn random captions into a matrix of random scores."""
    n, generator = len(counts), torch.Generator().manual_seed(0)
    image_of, times = captions_of(counts), 1500 if n < 50 else 200
    draws = [
        metrics.retrieval(torch.eye(n), torch.rand(sum(counts), n, generator=generator), image_of)
        for _ in range(times)
    ]
    expected = metrics.chance(image_of, n)
    assert expected.keys() == draws[0].keys()
    for key, value in expected.items():
        seen = sum(draw[key] for draw in draws) / times
        if "recall" in key:
            assert value == pytest.approx(seen, abs=0.015), key
        elif n == 100:  # of few images, the median of a draw is off by up to one rank
            assert value == pytest.approx(seen, rel=0.05), key


def test_bootstrap_equals_the_naive_loop():
    per_image = torch.rand(20, 2, dtype=torch.double, generator=torch.Generator().manual_seed(1)) + 0.5
    generator, draws = torch.Generator().manual_seed(7), []
    for _ in range(50):
        drawn = torch.randint(20, (20,), generator=generator).tolist()
        draws.append(sum(per_image[i, 0].item() for i in drawn) / sum(per_image[i, 1].item() for i in drawn))
    expected = torch.tensor(draws, dtype=torch.double).quantile(
        torch.tensor([0.025, 0.975], dtype=torch.double)
    )
    found = metrics.bootstrap(per_image, lambda total: total[:, 0] / total[:, 1], seed=7, draws=50)
    assert found == pytest.approx(tuple(expected.tolist()))
    assert metrics.interval(torch.tensor([1.0]), torch.tensor([2.0])) == (0.5, 0.5)


def test_intervals_hold_the_point_estimates():
    image_of = captions_of(COUNTS * 20)
    text = unit(len(image_of), 16, 1)
    predicted = F.normalize(torch.zeros(140, 16).index_add(0, image_of, text) + unit(140, 16, 2), dim=-1)
    found = metrics.ranks(predicted, text, image_of)
    table = metrics.summary(*found)
    for key, (low, high) in metrics.intervals(*found, image_of).items():
        assert 0 <= low <= table[key] <= high <= 1 and 0 < high - low < 0.3, key


@pytest.mark.parametrize("images, captions", [(50, 1), (200, 1), (800, 1), (200, 5)])
def test_interval_is_the_normal_one_of_the_number_of_images(images, captions):
    """Five captions that hit or miss together are one observation. Half of the images hit."""
    rank, image_of = torch.arange(images) % 2, torch.arange(images).repeat_interleave(captions)
    for low, high in (
        metrics.intervals(rank[image_of], rank, image_of)[f"{kind}_retrieval_recall@1"]
        for kind in ("image", "text")
    ):
        assert high - low == pytest.approx(2 * 1.96 * 0.5 / images**0.5, rel=0.15)


def naive_classification(scores, truth):
    n, c = len(scores), len(scores[0])
    confusion, ranks = [[0] * c for _ in range(c)], []
    for row, true in zip(scores, truth):
        wrong = [j for j in range(c) if j != true]
        ranks.append(sum(row[j] >= row[true] for j in wrong))
        confusion[true][max(wrong, key=row.__getitem__) if ranks[-1] else true] += 1
    recalls = [row[k] / sum(row) for k, row in enumerate(confusion) if sum(row)]
    found = dict(acc1=sum(rank < 1 for rank in ranks) / n, acc5=sum(rank < 5 for rank in ranks) / n)
    return found | dict(mean_per_class_recall=sum(recalls) / len(recalls)), confusion


@pytest.mark.parametrize("classes", [2, 6, 9])
@pytest.mark.parametrize("draw", [unit, small])
def test_classification_equals_the_naive_loop(classes, draw):
    scores, generator = draw(40, classes, 0), torch.Generator().manual_seed(0)
    truth = torch.randint(0, max(2, classes - 1), (40,), generator=generator)  # the last class has no image
    found, confusion = metrics.classification(scores, truth)
    expected, table = naive_classification(scores.tolist(), truth.tolist())
    assert found == pytest.approx(expected) and confusion.tolist() == table


def test_classification_of_constant_scores_is_all_wrong_and_of_nan_refused():
    found, confusion = metrics.classification(torch.ones(6, 8), torch.tensor([0, 0, 0, 1, 2, 3]))
    assert found == dict(acc1=0.0, acc5=0.0, mean_per_class_recall=0.0)
    assert confusion.sum() == 6 and confusion.diagonal().sum() == 0
    with pytest.raises(ValueError):
        metrics.classification(torch.full((3, 4), math.nan), torch.tensor([0, 1, 2]))


AXES = torch.cat([torch.eye(12), -torch.eye(12)])
BY_HAND = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # singular values: shares 3/4, 1/4
POINT = torch.tensor([[0.6, 0.8, 0.0]]).expand(20, 3)
RANKS = {
    "point": (POINT, 1.0),
    "line": (POINT * torch.linspace(-1, 1, 20)[:, None], 1.0),
    "all directions alike": (AXES, 12.0),
    "moved": (AXES + 100, 12.0),
    "by hand": (BY_HAND, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
}


@pytest.mark.parametrize("case", RANKS)
def test_effective_rank_equals_the_number_by_hand(case):
    rows, expected = RANKS[case]
    found = metrics.spread(rows, rows, torch.arange(len(rows)))["effective_rank"]
    assert found == pytest.approx(expected, rel=1e-3)


def test_matched_and_mismatched_cosine_equal_the_naive_loop():
    image_of = captions_of(COUNTS)
    predicted, text = unit(7, 8, 1), unit(len(image_of), 8, 2)
    scores = naive_scores(predicted, text)
    matched = sum(scores[n][m] for m, n in enumerate(image_of.tolist()))
    every = sum(map(sum, scores))
    found = metrics.spread(predicted, text, image_of)
    assert found["matched"] == pytest.approx(matched / len(text), abs=1e-6)
    assert found["mismatched"] == pytest.approx((every - matched) / (6 * len(text)), abs=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
def test_collapse_alarm_goes_off_when_all_predictions_are_alike(noise):
    text, image_of = unit(100, 64, 0), torch.arange(100)
    predicted = F.normalize(text.mean(0, keepdim=True) + noise * unit(100, 64, 1), dim=-1)
    found = metrics.spread(predicted, text, image_of)
    assert "--loss info_nce" in metrics.collapse_alarm(found, 100, "cosine")
    assert "--loss" not in metrics.collapse_alarm(found, 100, "info_nce")  # it has that loss
    assert metrics.collapse_alarm(found, metrics.FEW - 1, "cosine") is None


@pytest.mark.parametrize("images", [100, 20])
def test_collapse_alarm_is_silent_for_right_predictions(images):
    text = unit(images, 64, 0)
    assert metrics.collapse_alarm(metrics.spread(text, text, torch.arange(images)), images, "cosine") is None
