"""Are heat maps right? Tested where the boxes of things are known.

    boxes = read_boxes("boxes.json")        # {image name: {text: [[x0, y0, x1, y1], ...]}}, in pixels
    rows = pointing({"shuffled": broken, THIS: model}, boxes, "images")

The pointing game (Zhang et al. 2016): is the highest point of a map in a box of its text? Is the named thing
the hottest of those in the image? And do maps change when the weights are shuffled (Adebayo et al. 2018)?"""

import json
import math
from typing import NamedTuple

import torch

THIS = "this model"
ASKED = "attention to 'Is there ...?'"  # of a run that was trained with questions


class Row(NamedTuple):
    """Percent with the two ends of its 95 % interval, twice, and a mean rank correlation."""

    pointed: tuple  # highest point on the thing
    found: tuple  # named thing the hottest
    alike: float  # Spearman's correlation with the maps of THIS model


def read_boxes(path):
    """{image name: {text: [[x0, y0, x1, y1], ...]}} from a JSON file. ValueError names the first wrong
    entry."""
    from models.dataset import read_text

    try:
        boxes = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        remedy = "python -m tools.draw_archive --boxes writes such a file"
        raise ValueError(f"{path}: not JSON ({error}); {remedy}") from None
    for name, texts in boxes.items() if isinstance(boxes, dict) else [("the whole", boxes)]:
        places = list(texts.values()) if isinstance(texts, dict) else []
        if not places or not all(isinstance(p, list) and p and all(map(_is_box, p)) for p in places):
            expected = '{"image.jpg": {"a dog": [[x0, y0, x1, y1], ...]}} in pixels'
            raise ValueError(f"{path}: {name}: {str(texts)[:80]}: expected {expected}")
    return boxes


def _is_box(box):
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(side, (int, float)) for side in box)
    return numbers and 0 <= box[0] < box[2] and 0 <= box[1] < box[3]


@torch.no_grad()
def shuffle(module, seed=0):
    """Permute each parameter of a module in place: the same numbers, and nothing of what was learned."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))


def shuffle_tower(vision):
    """Shuffle the networks of an image tower, and have `encode` run those instead of copies made for
    speed."""
    for tower in vision.parts:
        shuffle(tower.network)
        tower.use(tower.network)


def inside(boxes, heat):
    """bool (H, W): the pixels of a map that lie in one of the boxes [x0, y0, x1, y1]."""
    mask = torch.zeros_like(heat, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes:
        mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    return mask


def judge(heat, boxes, text):
    """(pointed, found) for a map (H, W) and {text: [[x0, y0, x1, y1], ...]} in its pixels: whether its
    highest point is in a box of the text, and whether its mean is highest in the boxes of the text (None when
    there are no other things)."""
    pointed = bool(inside(boxes[text], heat).flatten()[heat.nan_to_num(-math.inf).argmax()])
    if len(boxes) == 1:
        return pointed, None
    means = {other: float(heat[inside(places, heat)].nanmean()) for other, places in boxes.items()}
    own = means.pop(text)
    rivals = [mean for mean in means.values() if not math.isnan(mean)]  # NaN: outside the crop
    return pointed, not math.isnan(own) and all(own > mean for mean in rivals)


def percent(per_image):
    """(percent of hits, low, high), the 95 % bootstrap interval over images, of a list with a list of hits
    per image; NaN when there are no hits or misses."""
    from models.metrics import interval

    counts = [[sum(hits), len(hits)] for hits in per_image if hits]
    counts = torch.tensor(counts, dtype=torch.double)  # (N, 2)
    if not len(counts):
        return (math.nan,) * 3
    hits, trials = counts.T
    low, high = interval(hits, trials)
    return 100 * float(hits.sum() / trials.sum()), 100 * low, 100 * high


def correlation(a, b):
    """Spearman's rank correlation of two maps (H, W) over the places both have."""
    from scipy.stats import spearmanr

    both = ~(a.isnan() | b.isnan())
    return float(spearmanr(a[both], b[both]).statistic)


def pointing(models, boxes, folder, method="gradients", quiet=False):
    """{row name: Row} of the pointing game, played by `models` {row name: VLJEPA}, among them THIS, over the
    images of `boxes` in `folder`. Adds rows of a random point, of the centre, and of THIS model asked for
    another text."""
    from tqdm import tqdm

    from models.dataset import image_path, open_image

    generator = torch.Generator().manual_seed(0)
    names = sorted(boxes)
    results = {}  # {row name: (pointed hits per image, found hits per image, rank correlations)}
    for n, name in enumerate(tqdm(names, unit="image", disable=quiet)):
        image = open_image(image_path(folder, name))
        others = names[n + 1 :] + names[:n]
        # The first text that another image shows and this one does not, if there is any.
        absent = [text for other in others for text in boxes[other] if text not in boxes[name]][:1]
        maps = _maps(models, image, list(boxes[name]), absent, method, generator)
        scale = maps[THIS].shape[2] / image.width
        scaled = {text: [[scale * side for side in box] for box in own] for text, own in boxes[name].items()}
        for row, heats in maps.items():
            hits = [judge(heat, scaled, text) for heat, text in zip(heats, scaled)]
            pointed, found, alike = results.setdefault(row, ([], [], []))
            pointed.append([hit for hit, _ in hits])
            found.append([hit for _, hit in hits if hit is not None])
            alike += [correlation(a, b) for a, b in zip(heats, maps[THIS])]
    rows = {}
    for row, (pointed, found, alike) in results.items():
        rows[row] = Row(percent(pointed), percent(found), sum(alike) / len(alike))
    return rows


def _maps(models, image, texts, wrong, method, generator):
    """{row name: maps (C, H, W)} of the C `texts`; `wrong` holds a text that the image does not show, or
    nothing."""
    from apps.attention.heat import attend, explain

    own = explain(models[THIS], image, texts + wrong, method)[1]
    own, astray = own[: len(texts)], own[len(texts) :]  # (C, H, W), (1 or 0, H, W)
    height, width = own.shape[1:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    unseen = 0 * own  # NaN stays NaN
    maps = {
        "random point": torch.rand(own.shape, generator=generator) + unseen,
        "centre": -(x**2) - y**2 + unseen,
    }
    for row, model in models.items():
        if row != THIS:
            maps[row] = explain(model, image, texts, method)[1]
    if wrong:
        maps["another text"] = astray.expand_as(own)
    if "answers" in models[THIS].predictor.parts():
        maps[ASKED] = attend(models[THIS], image, [f"Is there {text}?" for text in texts])
    return maps | {THIS: own}
