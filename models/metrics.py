"""How good predicted embeddings are. Pure functions of tensors.

recall@k is the hit rate, as in the literature and CLIP_benchmark: the share of queries with a true item among
their first k. A tie counts against the true item, so constant predictions score nothing. Scores must be
finite.

    predicted (N, D)   one unit row per image       text (M, D)   one unit row per caption
    image_of  (M,)     the image that a caption describes
"""

import torch

KS = (1, 5, 10)
DRAWN_AT_ONCE = 1_000_000  # images of the bootstrap, 8 bytes each
FEW = 20  # images: recalls of fewer mean little
TIE = 1e-6  # closer cosines are equal: the products of equal float32 rows differ by about 1e-7


def ranks(predicted, text, image_of, image_bank=None, text_bank=None, temperature=0.05, chunk=1024):
    """(text_to_image (M,), image_to_text (N,)) int64: how many wrong items score at least as high as the true
    one; 0 is a hit at 1. The true item of an image is its best caption. Scores `chunk` queries at a time.

    Banks are rows of other images and captions, such as the training set's. With them, scores are
    hub-corrected by inverted softmax (Smith et al. 2017; QB-Norm, CVPR 2022): an item near to every bank
    query scores less. ValueError for rows that are not finite, and for images without a caption."""
    given = {"predicted": predicted, "text": text, "image bank": image_bank, "text bank": text_bank}
    for name, rows in given.items():
        if rows is not None and not torch.isfinite(rows).all():
            raise ValueError(f"{name} embeddings hold non-finite numbers; their ranks mean nothing")
    n = len(predicted)
    if len(image_of) != len(text) or (len(text) and not 0 <= image_of.min() <= image_of.max() < n):
        raise ValueError(f"image_of must name one of {n} images for each of {len(text)} captions")
    if len(image_of.unique()) != n:
        raise ValueError(f"{n - len(image_of.unique())} of {n} images have no caption to rank")
    image_hub = _hubness(predicted, text_bank, temperature, chunk)
    text_hub = _hubness(text, image_bank, temperature, chunk)
    to_image = []
    for i in range(0, len(text), chunk):
        scores = text[i : i + chunk] @ predicted.T - image_hub  # (chunk, N)
        true = scores.gather(1, image_of[i : i + chunk, None])
        to_image.append((scores >= true - TIE).sum(1) - 1)  # minus the true item itself
    to_text = []
    for i in range(0, len(predicted), chunk):
        scores = predicted[i : i + chunk] @ text.T - text_hub  # (chunk, M)
        own = image_of[None] == torch.arange(i, i + len(scores))[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        to_text.append(((scores >= best - TIE) & ~own).sum(1))
    return torch.cat(to_image), torch.cat(to_text)


def _hubness(items, bank, temperature, chunk):
    """(len(items),): log-sum-exp of each item's scores with the bank, as cosines; 0 without a bank."""
    if bank is None:
        return torch.zeros(len(items))
    parts = items.split(chunk)
    return torch.cat([(part @ bank.T / temperature).logsumexp(1) * temperature for part in parts])


def retrieval(predicted, text, image_of, **banks):
    """A dict with CLIP_benchmark's keys: recalls as fractions, and median ranks, where 1 is best.
    "image_retrieval" is text to image. Banks and errors as in `ranks`."""
    to_image, to_text = ranks(predicted, text, image_of, **banks)
    return summary(to_image, to_text)


def summary(to_image, to_text):
    """The dict of `retrieval` from the two rank vectors of `ranks`."""
    found = {}
    for name, rank in (("image_retrieval", to_image), ("text_retrieval", to_text)):
        found |= {f"{name}_recall@{k}": (rank < k).double().mean().item() for k in KS}
        found[f"{name}_median_rank"] = rank.double().median().item() + 1
    return found


def chance(image_of, images):
    """The dict of `retrieval` for random scores: expected recalls, and the median ranks."""
    found = {f"image_retrieval_recall@{k}": min(k / images, 1.0) for k in KS}
    found["image_retrieval_median_rank"] = (images + 1) / 2
    found |= {f"text_retrieval_recall@{k}": 1.0 for k in KS}  # stays where there are fewer than k captions
    for k, hit in enumerate(_chance_hits(image_of, images), 1):
        if k in KS:
            found[f"text_retrieval_recall@{k}"] = hit
        if hit >= 0.5:
            found.setdefault("text_retrieval_median_rank", k)
        if hit >= 0.5 and k >= max(KS):
            break
    return found


def _chance_hits(image_of, images):
    """Yield the share of images that have a caption among the first 1, 2, ... M captions in random order."""
    m = len(image_of)
    captions, count = image_of.bincount(minlength=images).unique(return_counts=True)
    miss = torch.ones(len(captions), dtype=torch.double)  # P(no caption of such an image so far)
    for k in range(m):
        miss *= (m - captions - k).clamp_min(0) / (m - k)
        yield 1 - (miss * count).sum().item() / images


def intervals(to_image, to_text, image_of):
    """{key: (low, high)}: the 95 % interval of each recall. The candidates stay the whole set."""
    n = len(to_text)
    captions = image_of.bincount(minlength=n)
    found = {}
    for k in KS:
        found[f"text_retrieval_recall@{k}"] = ((to_text < k).double(), torch.ones(n))
    for k in KS:
        hits = torch.zeros(n, dtype=torch.double).index_add(0, image_of, (to_image < k).double())
        found[f"image_retrieval_recall@{k}"] = (hits, captions)
    hits, trials = (torch.stack([pair[i].double() for pair in found.values()], dim=1) for i in range(2))
    low, high = interval(hits, trials)  # 6 numbers each
    return dict(zip(found, zip(low, high)))


def interval(hits, trials, seed=0):
    """(low, high): the 95 % interval of sum(hits) / sum(trials), both (N,) or (N, R), one entry per image.
    With R columns the ends are lists of R numbers."""
    columns = 1 if hits.ndim == 1 else hits.shape[1]
    per_image = torch.cat([hits.double().view(len(hits), -1), trials.double().view(len(hits), -1)], dim=1)

    def ratio(totals):
        return (totals[:, :columns] / totals[:, columns:]).view(len(totals), *hits.shape[1:])

    return bootstrap(per_image, ratio, seed)


def bootstrap(per_image, statistic, seed=0, draws=1000):
    """(low, high): the 95 % interval of a statistic over images drawn with replacement (Efron's percentile
    bootstrap).

    per_image (N, F) float64 holds what each image adds to F totals. `statistic` maps totals (draws, F) to
    (draws,) or (draws, R); the ends are then lists of R numbers. Images are drawn, not captions: the captions
    of one image are not independent."""
    n = len(per_image)
    generator = torch.Generator().manual_seed(seed)
    totals = []
    at_once = max(1, DRAWN_AT_ONCE // n)
    for start in range(0, draws, at_once):
        count = min(at_once, draws - start)
        images = torch.randint(n, (count, n), generator=generator) + n * torch.arange(count)[:, None]
        times = images.flatten().bincount(minlength=count * n).view(count, n)  # each image is drawn
        totals.append(times.double() @ per_image)
    ends = torch.tensor([0.025, 0.975], dtype=torch.double)
    low, high = statistic(torch.cat(totals)).quantile(ends, dim=0)
    return low.tolist(), high.tolist()


def classification(scores, truth):
    """({acc1, acc5, mean_per_class_recall}, confusion (C, C) int64 counts with a row per true class) for
    scores (N, C) and truth (N,) int64. A tie counts against the true class: the confusion matrix then holds
    the tied wrong one. ValueError for scores that are not finite."""
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold non-finite numbers; their accuracy means nothing")
    c = scores.shape[1]
    true = scores.gather(1, truth[:, None])  # (N, 1)
    rank = (scores >= true - TIE).sum(1) - 1  # (N,)
    wrong = scores.scatter(1, truth[:, None], -torch.inf).argmax(1)
    answer = torch.where(rank == 0, truth, wrong)
    confusion = (truth * c + answer).bincount(minlength=c * c).view(c, c)
    recall = (confusion.diagonal() / confusion.sum(1))[confusion.sum(1) > 0].mean().item()
    found = dict(acc1=(rank < 1).double().mean().item(), acc5=(rank < 5).double().mean().item())
    return found | dict(mean_per_class_recall=recall), confusion


def spread(predicted, text, image_of):
    """{effective_rank, matched, mismatched}: how different the predictions are.

    The effective rank is exp of the entropy of the centred singular values (Roy and Vetterli 2007): 1 when
    all predictions lie on a line, D at most. The others are the mean cosines of matched and of mismatched
    pairs; mismatched is NaN for one image."""
    centred = predicted.double() - predicted.double().mean(0)
    wide = len(centred) < centred.shape[1]
    square = centred @ centred.T if wide else centred.T @ centred  # the smaller of the two
    values = torch.linalg.eigvalsh(square).clamp_min(0).sqrt()  # the singular values
    share = values / values.sum().clamp_min(1e-12)
    matched = (predicted[image_of] * text).sum(1).mean().item()
    n = len(predicted)
    every_pair = (predicted.mean(0) @ text.mean(0)).item()
    return dict(
        effective_rank=torch.exp(-(share * share.clamp_min(1e-12).log()).sum()).item(),
        matched=matched,
        mismatched=(every_pair * n - matched) / (n - 1) if n > 1 else float("nan"),
    )


def collapse_alarm(found, images, loss):
    """A sentence when `spread` found predictions that are nearly alike for all of `images` images, else None,
    and None for fewer than FEW. `loss` is the one it was trained with. The limits
    are far from healthy runs (effective ranks of 72 to 164, margins of 0.33 to 0.40); a constant output
    crosses them."""
    if images < FEW:
        return None
    advice = "another --lr" if loss == "info_nce" else "--loss info_nce or another --lr"
    if found["effective_rank"] >= min(4, (images - 1) / 2) and found["matched"] - found["mismatched"] >= 0.01:
        return None
    return (
        "  collapse alarm: predictions nearly alike for all images "
        f"(effective rank {found['effective_rank']:.1f}, cosine of matched pairs {found['matched']:.3f}, "
        f"of mismatched {found['mismatched']:.3f}); try {advice}"
    )
