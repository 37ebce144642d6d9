"""Heat maps as a picture: the image, and beside it a panel for each text or question.

draw(image, of_texts(model, image, ["a dog"]), "map.png")           # an upright RGB PIL image
draw(image, of_questions(model, image, ["What is it?"]), "map.png")
"""

import math
import textwrap
from typing import NamedTuple

from apps.attention.heat import attend, explain

UNITS = {  # of a map of `explain`, by method
    "gradients": "score added by 1 % of the image",
    "occlusion": "fall of the score when hidden",
}
ASKED = "share of the attention, per place"


class Panels(NamedTuple):
    titles: list  # C str, below the panels
    maps: object  # (C, H, W) float32, see apps/attention/heat.py
    unit: str  # of the maps
    lines: list  # C str, for a terminal


def of_texts(model, image, texts, method="gradients"):
    """The Panels of C texts with their scores. `method` and errors as in `explain`."""
    scores, maps = explain(model, image, texts, method)
    shown = list(zip(texts, scores.tolist()))
    titles = [f"{textwrap.fill(text, 44)}\n{score:.4f}" for text, score in shown]
    lines = [f"{score:8.4f}  {text}" for text, score in shown]
    if method == "gradients":
        sums = maps.nanmean((1, 2)).tolist()  # from all places together
        lines = [
            f"{line}   = {total:.4f} from its places + {score - total:.4f} without them"
            for line, (_, score), total in zip(lines, shown, sums)
        ]
        maps = maps / 100
    return Panels(titles, maps, UNITS[method], lines)


def of_questions(model, image, questions):
    """The Panels of C questions with their answers. Errors as in `attend`."""
    maps = attend(model, image, questions)
    lines = [f"{question} {answer}" for question, answer in zip(questions, model.answer(image, questions))]
    return Panels(lines, maps, ASKED, lines)


def draw(image, panels, path):
    """Write a PNG: the image, then in pale grey one panel per title with its map.

    Red places are above 0, blue ones below. All panels share one scale. What no tower saw is veiled."""
    import torch
    from matplotlib.figure import Figure
    from PIL import Image

    from models.files import replacing

    titles, maps, unit, _ = panels
    image = image.resize((maps.shape[2], maps.shape[1]))
    grey = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, "white"), 0.4)
    veil = torch.where(maps[0].isnan(), 0.6, math.nan)
    top = float(maps.nan_to_num().abs().max()) or 1.0
    tall = min(8.0, max(1.0, 3.1 * image.height / image.width))  # inches
    figure = Figure(figsize=(3.3 * (len(titles) + 1) + 0.7, tall + 0.6), layout="constrained")
    axes = figure.subplots(1, len(titles) + 1)
    axes[0].imshow(image)
    axes[0].set_xlabel("the image")
    for axis, title, heat in zip(axes[1:], titles, maps):
        axis.imshow(grey)
        opacity = (1.5 * heat.abs().nan_to_num() / top).clamp(0, 0.8)
        shown = axis.imshow(heat, cmap="RdBu_r", vmin=-top, vmax=top, alpha=opacity)
        axis.set_xlabel(title, parse_math=False)
    for axis in axes:
        axis.imshow(veil, cmap="gray", vmin=0, vmax=1, alpha=0.85)
        axis.set(xticks=[], yticks=[])
    bar = figure.colorbar(shown, ax=list(axes), label=unit, shrink=0.8)
    bar.ax.set_ylim(min(0.0, float(maps.nan_to_num().min())), top)
    with replacing(path) as new:
        figure.savefig(new, dpi=100, format="png")
