"""The rows of the retrieval table beside a model's own: baselines, and the bank of hub correction."""

import torch
import torch.nn.functional as F

from models import metrics
from models.dataset import VisionTextDataset
from models.features import encode_archive
from models.predictor import Predictor


@torch.no_grad()
def baselines(model, features, captions):
    """{row name: the dict of `metrics.retrieval`} of what a model has to beat on these Features and their
    captions. An exported model has no row of an untrained predictor, since its file starts with the
    predictor's output."""
    image, text, image_of = features.image, features.text, features.image_of
    rows = {"chance": metrics.chance(image_of, len(image))}
    if hasattr(model, "predictor"):
        torch.manual_seed(0)
        untrained = Predictor(**model.predictor.parts()["captions"].config).eval()
        if model.recipe["standardise"]:
            untrained.standardise(image)
        rows["untrained predictor"] = metrics.retrieval(untrained(image), text, image_of)
    mean = F.normalize(text.mean(0, keepdim=True), dim=-1)
    rows["mean caption"] = metrics.retrieval(mean.expand(len(image), -1), text, image_of)
    if model.vision.has_text:
        own = model.vision.encode_text(captions).cpu()
        pooled = image if image.ndim == 2 else F.normalize(image.mean(1), dim=1)
        rows[f"{model.vision.name}, zero-shot"] = metrics.retrieval(pooled, own, image_of)
    return rows


def banks(model, cache, quiet):
    """The training set's predictions and captions, for `metrics.ranks`. Raises as `VLJEPA.trained_on`."""
    trained_on, recipe = model.trained_on, model.recipe
    columns = (recipe["image_column"], recipe["caption_column"])
    where = (recipe["csv"], None, recipe["images"], *columns, recipe["skip_bad"])
    options = {name: recipe.get(name, False) for name in ("caption_lists", "follow_links")}
    dataset = VisionTextDataset(*where, only=trained_on, **options)
    options = dict(quiet=quiet, frames=model.frames, in_order=model.reads_order)
    features = encode_archive(dataset, model.vision, model.text, cache, **options)
    text = model.project_text(features.text).cpu()
    return dict(image_bank=model.predict(features.image).cpu(), text_bank=text)
