"""How good predicted embeddings are. Pure functions of tensors.

R@k here is the literature's (and CLIP_benchmark's): the hit rate, the share of queries with a true item among
their first k. A tie counts against the true item, so a model that says the same of every image scores
nothing, and scores have to be finite.

    predicted (N, D)   one unit row an image        text (M, D)   one unit row a caption
    image_of  (M,)     the image a caption describes
"""

import torch

KS = (1, 5, 10)
TIE = 1e-6  # cosines this near are equal: float32 matrix products of equal rows differ by about 1e-7 with their place in the matrix


def ranks(predicted, text, image_of, image_bank=None, text_bank=None, temperature=0.05, chunk=1024):
    """(text_to_image (M,), image_to_text (N,)) int64: how many wrong items score at least as high as the true
    one (for an image, its best caption); 0 is a hit at 1. Memory: `chunk` queries at a time.

    With banks (rows of images / captions from elsewhere, the training set's, say) scores are hub-corrected by
    inverted softmax (Smith et al. 2017; QB-Norm, CVPR 2022): an item that is near to every bank query is
    marked down."""
    for name, rows in (
        ("predicted", predicted),
        ("text", text),
        ("image bank", image_bank),
        ("text bank", text_bank),
    ):
        if rows is not None and not torch.isfinite(rows).all():
            raise ValueError(
                f"{name} embeddings hold non-finite numbers; a rank made of them would mean nothing"
            )
    if len(image_of) != len(text) or (
        len(text) and not 0 <= int(image_of.min()) <= int(image_of.max()) < len(predicted)
    ):
        raise ValueError(
            f"image_of has to give one of {len(predicted)} images for each of {len(text)} captions"
        )
    if len(image_of.unique()) != len(predicted):
        raise ValueError("every image needs at least one caption to be ranked")

    def hubness(
        items, bank
    ):  # (len(items),): log-sum-exp of what the bank's queries think of each item, in units of cosine
        if bank is None:
            return torch.zeros(len(items))
        return torch.cat(
            [(part @ bank.T / temperature).logsumexp(1) * temperature for part in items.split(chunk)]
        )

    image_hub, text_hub = hubness(predicted, text_bank), hubness(text, image_bank)
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


def retrieval(predicted, text, image_of, **banks):
    """CLIP_benchmark's keys, as fractions, beside median ranks (1 is best): image_retrieval is text to
    image."""
    to_image, to_text = ranks(predicted, text, image_of, **banks)
    return summary(to_image, to_text)


def summary(to_image, to_text):
    """The table of `retrieval` from the two rank vectors of `ranks`."""
    found = {}
    for name, rank in (("image_retrieval", to_image), ("text_retrieval", to_text)):
        found |= {f"{name}_recall@{k}": (rank < k).double().mean().item() for k in KS}
        found[f"{name}_median_rank"] = rank.double().median().item() + 1
    return found


def chance(image_of, images):
    """What scores drawn at random give: the same keys as `retrieval`, the recalls in expectation."""
    found = {f"image_retrieval_recall@{k}": min(k / images, 1.0) for k in KS} | {
        "image_retrieval_median_rank": (images + 1) / 2
    }
    m = len(image_of)
    captions, share = image_of.bincount(minlength=images).unique(
        return_counts=True
    )  # an image has c captions: how many have c
    miss, k = (
        torch.ones(len(captions), dtype=torch.double),
        0,
    )  # P(none of an image's c captions is among the first k of m)
    hit = 0.0
    while k < m and (k < max(KS) or hit < 0.5):
        miss *= (m - captions - k).clamp_min(0) / (m - k)
        k, hit = k + 1, 1 - (miss * share).sum().item() / images
        if k in KS:
            found[f"text_retrieval_recall@{k}"] = hit
        if hit >= 0.5:
            found.setdefault("text_retrieval_median_rank", k)
    return {f"text_retrieval_recall@{k}": 1.0 for k in KS} | found


def intervals(to_image, to_text, image_of):
    """{key: (low, high)}: the 95 % interval of each recall. The candidates stay the whole set."""
    n = len(to_text)
    captions = image_of.bincount(minlength=n)
    found = {}
    for k in KS:
        hits = (to_text < k).double()
        found[f"text_retrieval_recall@{k}"] = interval(hits, torch.ones(n))
    for k in KS:
        hits = torch.zeros(n, dtype=torch.double).index_add(0, image_of, (to_image < k).double())
        found[f"image_retrieval_recall@{k}"] = interval(hits, captions)
    return found


def interval(hits, trials, seed=0):
    """(low, high): the 95 % interval of sum(hits) / sum(trials), both (N,), one entry per image."""
    return bootstrap(
        torch.stack([hits.double(), trials.double()], dim=1), lambda total: total[:, 0] / total[:, 1], seed
    )


def bootstrap(per_image, statistic, seed=0, draws=1000):
    """(low, high): the 95 % interval of a statistic over images drawn with replacement (Efron's percentile
    bootstrap).

    per_image (N, F) float64 holds what each image adds to F totals; `statistic` maps totals (draws, F) to
    (draws,). Images are drawn rather than captions, since the captions of one image are not independent."""
    n = len(per_image)
    generator = torch.Generator().manual_seed(seed)
    totals = []
    for _ in range(draws):
        times = torch.randint(n, (n,), generator=generator).bincount(
            minlength=n
        )  # how often each image was drawn
        totals.append(times.double() @ per_image)
    low, high = (
        statistic(torch.stack(totals)).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    )
    return low, high


def classification(scores, truth):
    """scores (N, C), truth (N,) int64 -> ({acc1, acc5, mean_per_class_recall}, confusion (C, C) counts, row
    the truth). A tie counts against the true class here too; the predicted class of the confusion matrix is
    then the tied wrong one."""
    if not torch.isfinite(scores).all():
        raise ValueError("scores hold non-finite numbers; an accuracy made of them would mean nothing")
    c = scores.shape[1]
    true = scores.gather(1, truth[:, None])
    rank = (scores >= true - TIE).sum(1) - 1
    wrong = scores.scatter(1, truth[:, None], -torch.inf).argmax(1)
    answer = torch.where(rank == 0, truth, wrong)
    confusion = (truth * c + answer).bincount(minlength=c * c).view(c, c)
    recall = (confusion.diagonal() / confusion.sum(1))[confusion.sum(1) > 0].mean().item()
    return dict(
        acc1=(rank < 1).double().mean().item(),
        acc5=(rank < 5).double().mean().item(),
        mean_per_class_recall=recall,
    ), confusion


def spread(predicted, text, image_of):
    """The collapse alarm: effective rank of the predictions (Roy and Vetterli 2007: exp of the entropy of the
    centred singular values; 1 means they lie on a line, D at most), and mean cosine of matched and mismatched
    pairs."""
    centred = predicted.double() - predicted.double().mean(0)
    square = (
        centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    )  # the smaller of the two
    values = torch.linalg.eigvalsh(square).clamp_min(0).sqrt()  # the singular values
    share = values / values.sum().clamp_min(1e-12)
    matched = (predicted[image_of] * text).sum(1).mean().item()
    n, every_pair = len(predicted), (predicted.mean(0) @ text.mean(0)).item()
    return dict(
        effective_rank=torch.exp(-(share * share.clamp_min(1e-12).log()).sum()).item(),
        matched=matched,
        mismatched=(every_pair * n - matched) / (n - 1) if n > 1 else float("nan"),
    )


def collapse_alarm(found, images):
    """A sentence when what `spread` found means that predictions are nearly alike for all images, else None.
    The limits are far from any healthy run (effective ranks of 72 to 164 and margins of 0.33 to 0.40 were
    seen) and are crossed by a constant output."""
    if found["effective_rank"] >= min(4, (images - 1) / 2) and found["matched"] - found["mismatched"] >= 0.01:
        return None
    return (
        f"  collapse alarm: predictions nearly alike for all images (effective rank {found['effective_rank']:.1f}, cosine of matched "
        f"pairs {found['matched']:.3f}, of mismatched {found['mismatched']:.3f}); take --loss info_nce or another --lr"
    )
