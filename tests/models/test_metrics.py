"""models/metrics.py against plain loops, torchmetrics, Monte Carlo, and models that must not look good."""

import math
from statistics import median_low

import pytest
import torch
import torch.nn.functional as F

from models import metrics

COUNTS = [1, 5, 2, 1, 3, 7, 1]  # captions of each image


def unit(rows, dim, seed):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def captions_of(counts, seed=0):
    """image_of for uneven caption counts, in mixed order."""
    image_of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return image_of[torch.randperm(len(image_of), generator=torch.Generator().manual_seed(seed))]


def naive_ranks(predicted, text, image_of, score=None):
    """Rank of each caption's image and of each image's best caption: wrong ones that score at least as high, one at a time."""
    predicted, text, image_of = predicted.tolist(), text.tolist(), image_of.tolist()
    score = score or (lambda n, m: sum(a * b for a, b in zip(predicted[n], text[m])))
    scores = [[score(n, m) for m in range(len(text))] for n in range(len(predicted))]
    to_image = [
        sum(scores[n][m] >= scores[image_of[m]][m] for n in range(len(predicted)) if n != image_of[m])
        for m in range(len(text))
    ]
    to_text = []
    for n in range(len(predicted)):
        best = max(scores[n][m] for m in range(len(text)) if image_of[m] == n)
        to_text.append(sum(scores[n][m] >= best for m in range(len(text)) if image_of[m] != n))
    return to_image, to_text


@pytest.mark.parametrize("counts", [[1] * 12, COUNTS, [4] * 5, [3]])
@pytest.mark.parametrize("ties", [False, True])
def test_retrieval_equals_the_naive_loop(counts, ties):
    """Catches directions mixed up, ties that count for the model, captions of one image held against each other, wrong medians.
    With ties: small whole numbers, whose scores are exact and often equal."""
    image_of, generator = captions_of(counts), torch.Generator().manual_seed(len(counts))
    for _ in range(5):
        if ties:
            predicted, text = (
                torch.randint(-1, 2, (n, 3), generator=generator).float()
                for n in (len(counts), len(image_of))
            )
        else:
            predicted, text = (
                F.normalize(torch.randn(n, 6, generator=generator), dim=-1)
                for n in (len(counts), len(image_of))
            )
        expected = naive_ranks(predicted, text, image_of)
        to_image, to_text = metrics.ranks(predicted, text, image_of)
        assert (to_image.tolist(), to_text.tolist()) == expected
        found = metrics.retrieval(predicted, text, image_of)
        for name, rank in (("image_retrieval", expected[0]), ("text_retrieval", expected[1])):
            for k in (1, 5, 10):
                assert found[f"{name}_recall@{k}"] == pytest.approx(sum(r < k for r in rank) / len(rank))
            assert found[f"{name}_median_rank"] == median_low(rank) + 1


@pytest.mark.parametrize("k", [1, 5, 10])
def test_retrieval_equals_torchmetrics_hit_rate(k):
    """Catches true recall (the share of an image's captions found) in place of the literature's hit rate."""
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


def test_perfect_predictions_score_everything():
    """Catches an off-by-one that costs a right answer its first place."""
    rows = unit(50, 16, 0)
    found = metrics.retrieval(rows, rows, torch.arange(50))
    assert all(value == 1 for value in found.values())


@pytest.mark.parametrize(
    "images, dim, chunk",
    [(2, 100, 1), (3, 384, 2), (5, 16, 7), (33, 100, 1024), (101, 384, 64), (1013, 384, 1024)],
)
def test_collapsed_predictions_score_nothing(images, dim, chunk):
    """Catches a model that says the same of every image and looks good. Equal rows must tie whatever their place in the matrix
    product: float32 kernels round the last columns of a block otherwise than the first, and chance is then handed out."""
    image_of = torch.arange(images).repeat_interleave(3)
    predicted = unit(1, dim, 0).expand(images, dim).contiguous()
    to_image, to_text = metrics.ranks(predicted, unit(len(image_of), dim, 1), image_of, chunk=chunk)
    assert (to_image == images - 1).all()
    assert (to_text < 1).double().mean() <= 1 / images + 1e-9


@pytest.mark.parametrize("images, dim", [(10, 384), (33, 100), (101, 384)])
def test_collapsed_captions_score_nothing(images, dim):
    """Catches the same for a text tower that says the same of every caption."""
    text = unit(1, dim, 0).expand(images, dim).contiguous()
    _, to_text = metrics.ranks(unit(images, dim, 1), text, torch.arange(images), chunk=3)
    assert (to_text == images - 1).all()


def test_untrained_random_predictions_score_chance():
    """Catches a leak of the truth into the ranks: random embeddings of 1,000 pairs find about one in a thousand."""
    found = metrics.retrieval(unit(1000, 32, 0), unit(1000, 32, 1), torch.arange(1000))
    assert found["image_retrieval_recall@1"] < 0.01 and found["text_retrieval_recall@1"] < 0.01
    assert 400 < found["image_retrieval_median_rank"] < 600


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["predicted", "text", "image_bank", "text_bank"])
def test_ranks_refuse_non_finite_numbers(which, value):
    """Catches NaN >= NaN, which is false: nothing beats the true item and a broken model finds 100 %."""
    inputs = {name: unit(6, 4, i) for i, name in enumerate(("predicted", "text", "image_bank", "text_bank"))}
    inputs[which][3, 2] = value
    with pytest.raises(ValueError, match="non-finite"):
        metrics.ranks(image_of=torch.arange(6), **inputs)


@pytest.mark.parametrize("image_of", [[0, 1], [0, 1, 3], [0, -1, 1], [0, 0, 1]])
def test_ranks_refuse_captions_that_do_not_fit_the_images(image_of):
    """Catches captions without an image, images without a caption, and a wrong number of either."""
    with pytest.raises(ValueError):
        metrics.ranks(unit(3, 4, 0), unit(3, 4, 1), torch.tensor(image_of))


@pytest.mark.parametrize("banks", [False, True])
def test_ranks_do_not_depend_on_the_chunk_size(banks):
    """Catches an index that forgets where the chunk began. Some rows stand twice, so that there are ties too."""
    image_of = captions_of(COUNTS * 5)
    predicted, text = unit(35, 24, 1), unit(len(image_of), 24, 2)
    predicted[20:25], text[50:60] = predicted[:5], text[:10]
    extra = dict(image_bank=unit(19, 24, 3), text_bank=unit(23, 24, 4)) if banks else {}
    whole = metrics.ranks(predicted, text, image_of, **extra)
    for chunk in (1, 2, 7, 35, 36):
        parts = metrics.ranks(predicted, text, image_of, chunk=chunk, **extra)
        assert torch.equal(whole[0], parts[0]) and torch.equal(whole[1], parts[1]), chunk


def test_ranks_do_not_depend_on_the_order_of_images_or_captions():
    """Catches an image taken for its position."""
    image_of = captions_of(COUNTS)
    predicted, text = unit(7, 8, 1), unit(len(image_of), 8, 2)
    images, captions = torch.randperm(7), torch.randperm(len(image_of))
    to_image, to_text = metrics.ranks(predicted, text, image_of)
    mixed = metrics.ranks(predicted[images], text[captions], images.argsort()[image_of[captions]])
    assert torch.equal(mixed[0], to_image[captions]) and torch.equal(mixed[1], to_text[images])


def test_hub_correction_equals_the_naive_loop():
    """Catches banks taken for each other, a lost temperature, a correction of the query in place of the item."""
    image_of, t = captions_of(COUNTS), 0.05
    predicted, text = unit(7, 8, 1), unit(len(image_of), 8, 2)
    image_bank, text_bank = unit(9, 8, 3), unit(11, 8, 4)

    def hub(item, bank):
        return t * math.log(
            sum(math.exp(sum(a * b for a, b in zip(item, query)) / t) for query in bank.tolist())
        )

    def dot(n, m):
        return sum(a * b for a, b in zip(predicted[n].tolist(), text[m].tolist()))

    to_image, _ = naive_ranks(
        predicted, text, image_of, lambda n, m: dot(n, m) - hub(predicted[n].tolist(), text_bank)
    )
    _, to_text = naive_ranks(
        predicted, text, image_of, lambda n, m: dot(n, m) - hub(text[m].tolist(), image_bank)
    )
    found = metrics.ranks(predicted, text, image_of, image_bank=image_bank, text_bank=text_bank)
    assert (found[0].tolist(), found[1].tolist()) == (to_image, to_text)


def test_hub_correction_without_banks_changes_nothing():
    """Catches a correction that is half on: each bank alone moves only its own direction, none moves none."""
    image_of = captions_of(COUNTS)
    predicted, text, bank = unit(7, 4, 1), unit(len(image_of), 4, 2), unit(50, 4, 3)
    plain = metrics.ranks(predicted, text, image_of)
    neither, images, texts = (
        metrics.ranks(predicted, text, image_of, **b)
        for b in (dict(image_bank=None, text_bank=None), dict(image_bank=bank), dict(text_bank=bank))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, neither))
    assert torch.equal(images[0], plain[0]) and not torch.equal(images[1], plain[1])
    assert torch.equal(texts[1], plain[1]) and not torch.equal(texts[0], plain[0])


def test_hub_correction_takes_out_a_planted_hub():
    """Catches a correction with the wrong sign: one prediction that is near to every caption takes first place from all others."""
    common = F.normalize(torch.ones(32), dim=0)
    text = F.normalize(unit(40, 32, 0) * 0.5 + common, dim=-1)
    predicted = F.normalize(text + 0.5 * unit(40, 32, 1), dim=-1)
    predicted[0] = common
    plain = metrics.retrieval(predicted, text, torch.arange(40))["image_retrieval_recall@1"]
    bank = F.normalize(unit(200, 32, 2) * 0.5 + common, dim=-1)
    corrected = metrics.retrieval(predicted, text, torch.arange(40), text_bank=bank, image_bank=bank)[
        "image_retrieval_recall@1"
    ]
    assert plain < 0.5 < corrected


@pytest.mark.parametrize("counts", [COUNTS, [1] * 9, [5] * 6])
def test_chance_equals_a_monte_carlo_of_random_scores(counts):
    """Catches a baseline that is too low, beside which any model looks good. Predictions that are the unit vectors turn random
    captions into a matrix of random scores."""
    image_of, generator = captions_of(counts), torch.Generator().manual_seed(0)
    random = (torch.rand(len(image_of), len(counts), generator=generator) for _ in range(1500))
    draws = [metrics.retrieval(torch.eye(len(counts)), text, image_of) for text in random]
    expected = metrics.chance(image_of, len(counts))
    assert expected.keys() == draws[0].keys()
    for key in expected:
        if "recall" in key:
            assert expected[key] == pytest.approx(sum(d[key] for d in draws) / len(draws), abs=0.015), key


@pytest.mark.parametrize("each", [1, 5])
def test_chance_median_ranks_are_those_of_random_scores(each):
    """Catches an expected rank given out as the median: the best of 5 captions at random is at 13 % of the list in half of all
    draws and at 17 % on average, so a model that knows nothing would seem to beat chance."""
    image_of, generator = torch.arange(100).repeat_interleave(each), torch.Generator().manual_seed(0)
    draws = [
        metrics.retrieval(torch.eye(100), torch.rand(len(image_of), 100, generator=generator), image_of)
        for _ in range(100)
    ]
    for key in ("image_retrieval_median_rank", "text_retrieval_median_rank"):
        seen = sum(d[key] for d in draws) / len(draws)
        assert metrics.chance(image_of, 100)[key] == pytest.approx(seen, rel=0.05), key


def test_bootstrap_interval_holds_the_point_estimate():
    """Catches an interval of something else than the number it stands beside."""
    image_of = captions_of(COUNTS * 20)
    text = unit(len(image_of), 16, 1)
    predicted = F.normalize(torch.zeros(140, 16).index_add(0, image_of, text) + unit(140, 16, 2), dim=-1)
    found = metrics.ranks(predicted, text, image_of)
    table = metrics.summary(*found)
    for key, (low, high) in metrics.intervals(*found, image_of).items():
        assert 0 <= low <= table[key] <= high <= 1, key
        assert 0 < high - low < 0.3, key


def test_bootstrap_interval_narrows_with_the_number_of_images():
    """Catches a resampling of the draws in place of the images. At a hit rate of one half the normal interval is known."""
    for n in (50, 200, 800):
        rank = torch.arange(n) % 2
        low, high = metrics.intervals(rank, rank, torch.arange(n))["text_retrieval_recall@1"]
        assert high - low == pytest.approx(2 * 1.96 * 0.5 / n**0.5, rel=0.15)


def test_bootstrap_keeps_the_captions_of_an_image_together():
    """Catches captions drawn one by one: five captions that hit or miss as one are one observation and not five."""
    image_of = torch.arange(200).repeat_interleave(5)
    low, high = metrics.intervals(image_of % 2, torch.arange(200), image_of)["image_retrieval_recall@1"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 200**0.5, rel=0.15)


def naive_classification(scores, truth):
    n, c = len(scores), len(scores[0])
    confusion, hits1, hits5 = [[0] * c for _ in range(c)], 0, 0
    for row, true in zip(scores, truth):
        rank = sum(row[j] >= row[true] for j in range(c) if j != true)
        wrong = [j for j in range(c) if j != true]
        confusion[true][true if rank == 0 else max(wrong, key=lambda j: row[j])] += 1
        hits1, hits5 = hits1 + (rank < 1), hits5 + (rank < 5)
    present = [k for k in range(c) if sum(confusion[k])]
    recall = sum(confusion[k][k] / sum(confusion[k]) for k in present) / len(present)
    return dict(acc1=hits1 / n, acc5=hits5 / n, mean_per_class_recall=recall), confusion


@pytest.mark.parametrize("ties", [False, True])
def test_classification_equals_the_naive_loop(ties):
    """Catches a confusion matrix on its side, a recall over absent classes, ties that count for the model."""
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 6, 9):
        scores = (
            torch.randint(0, 4, (40, classes), generator=generator).float()
            if ties
            else torch.randn(40, classes, generator=generator)
        )
        truth = torch.randint(
            0, max(2, classes - 1), (40,), generator=generator
        )  # the last class has no image
        found, confusion = metrics.classification(scores, truth)
        expected, table = naive_classification(scores.tolist(), truth.tolist())
        assert found == pytest.approx(expected)
        assert confusion.tolist() == table


def test_classification_of_constant_scores_is_all_wrong():
    """Catches argmax's first index as an answer: a model that says the same of every class would be right on class 0."""
    truth = torch.tensor([0, 0, 0, 1, 2, 3])
    found, confusion = metrics.classification(torch.ones(6, 8), truth)
    assert found == dict(acc1=0.0, acc5=0.0, mean_per_class_recall=0.0)
    assert confusion.sum() == 6 and confusion.diagonal().sum() == 0


def test_classification_refuses_nan():
    """Catches NaN scores, which no comparison beats."""
    with pytest.raises(ValueError, match="non-finite"):
        metrics.classification(torch.full((3, 4), math.nan), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("shape", ["line", "point"])
def test_effective_rank_of_a_line_and_of_a_point_is_one(shape):
    """Catches an alarm that stays silent (or divides by zero) when every image has the same prediction."""
    predicted = (
        torch.tensor([[0.6, 0.8, 0.0]])
        * (torch.linspace(-1, 1, 20) if shape == "line" else torch.ones(20))[:, None]
    )
    found = metrics.spread(predicted, predicted, torch.arange(20))
    assert found["effective_rank"] == pytest.approx(1.0, abs=1e-3)


def test_effective_rank_of_all_directions_alike_is_their_number():
    """Catches eigenvalues taken for singular values, and a spread that is not centred."""
    isotropic = torch.cat([torch.eye(12), -torch.eye(12)])
    assert metrics.spread(isotropic, isotropic, torch.arange(24))["effective_rank"] == pytest.approx(12.0)
    moved = isotropic + 100 * torch.ones(12)
    assert metrics.spread(moved, moved, torch.arange(24))["effective_rank"] == pytest.approx(12.0, rel=1e-3)


def test_effective_rank_equals_the_number_by_hand():
    """Catches a wrong base of the logarithm: singular values 3 and 1 are shares 3/4 and 1/4."""
    rows = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert metrics.spread(rows, rows, torch.arange(4))["effective_rank"] == pytest.approx(math.exp(entropy))


def test_matched_and_mismatched_cosine_equal_the_naive_loop():
    """Catches the matched pairs left inside the mean of the mismatched, where captions an image are uneven."""
    image_of = captions_of(COUNTS)
    predicted, text = unit(7, 8, 1), unit(len(image_of), 8, 2)
    pairs = [
        ((predicted[n] * text[m]).sum().item(), n == image_of[m]) for n in range(7) for m in range(len(text))
    ]
    found = metrics.spread(predicted, text, image_of)
    assert found["matched"] == pytest.approx(sum(s for s, own in pairs if own) / len(text), abs=1e-6)
    assert found["mismatched"] == pytest.approx(
        sum(s for s, own in pairs if not own) / (6 * len(text)), abs=1e-6
    )


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
def test_collapse_alarm_goes_off_when_all_predictions_are_alike(noise):
    """Catches an alarm that rounding noise (of full rank) or noise in every direction keeps silent."""
    text, image_of = unit(100, 64, 0), torch.arange(100)
    predicted = F.normalize(text.mean(0, keepdim=True) + noise * unit(100, 64, 1), dim=-1)
    assert metrics.collapse_alarm(metrics.spread(predicted, text, image_of), 100)


@pytest.mark.parametrize("images", [100, 4, 3])
def test_collapse_alarm_is_silent_for_right_predictions(images):
    """Catches a false alarm: 4 centred predictions span 3 directions at most, whatever the model."""
    text = unit(images, 64, 0)
    assert metrics.collapse_alarm(metrics.spread(text, text, torch.arange(images)), images) is None
