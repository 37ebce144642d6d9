"""The trained whole: frozen towers and predictor behind two verbs.

    model = VLJEPA.load("runs/default")
    model.encode_image(["a.jpg", image])          # (B, Dt) unit rows: what the images mean, in the text tower's space
    model.encode_text(["a dog on a beach"])       # (M, Dt) unit rows
"""

import os
from pathlib import Path

import torch
from torch import nn

from models import checkpoint
from models.dataset import open_image, read_captions, upright_rgb
from models.features import encode_captions
from models.predictor import Predictor
from models.text import TextEncoder
from models.vision import VisionEncoder
from models.zeroshot import class_embeddings, classify


class VLJEPA(nn.Module):
    """Made by `VLJEPA.load`. `state` is the checkpoint's dict, `vision` and `text` the towers it was trained with."""

    def __init__(self, predictor, vision, text, state=None):
        super().__init__()
        self.predictor, self.vision, self.text, self.state = predictor.eval().requires_grad_(False), vision, text, state or {}

    @classmethod
    def load(cls, run="runs/default", device="cpu"):
        """From a run folder (its best.pt) or a checkpoint file. Raises FileNotFoundError when nothing was trained there, and
        ValueError when a tower is not, by hash, the one the predictor was trained with."""
        path = Path(run, "best.pt") if not str(run).endswith(".pt") else Path(run)
        state = checkpoint.load(path)
        towers = {}
        for kind, encoder in (("vision", VisionEncoder), ("text", TextEncoder)):
            towers[kind] = encoder(device, state["towers"][kind]["name"])
            if towers[kind].sha256 != state["towers"][kind]["sha256"]:
                raise ValueError(f"{path}: trained with the {kind} tower {towers[kind].name} of SHA-256 {state['towers'][kind]['sha256']}, "
                                 f"but the one here has {towers[kind].sha256}; embeddings of the two don't mix")  # fmt: skip
        try:
            predictor = Predictor(**state["config"])
            predictor.load_state_dict(state["predictor"])
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path}: its parameters don't fit its own configuration {state['config']} ({error})") from None
        return cls(predictor.to(device), towers["vision"], towers["text"], state)

    def encode_image(self, images):
        """One or many paths, PIL images or preprocessed pixels (B, 3, S, S) -> (B, Dt) float32 unit rows."""
        if not isinstance(images, torch.Tensor):
            one = isinstance(images, (str, os.PathLike)) or hasattr(images, "convert")
            images = torch.stack([self.vision.preprocess(_upright(image)) for image in ([images] if one else images)])
        return self.predict(self.vision.encode(images))

    @torch.no_grad()
    def predict(self, image_features):
        """Tower output (B, Dv) on any device -> (B, Dt) float32 unit rows on the model's."""
        return self.predictor(image_features.to(self.predictor.mean.device))

    def encode_text(self, texts):
        """M texts -> (M, Dt) float32 unit rows."""
        return self.text.encode([texts] if isinstance(texts, str) else texts)

    def memory(self, cache=".cache/features.sqlite"):
        """(captions, (M, Dt) float32 unit rows on the CPU): the distinct captions the predictor was trained on and their
        embeddings, from the feature cache. ValueError when the captions file it was trained on is not there any more."""
        recipe, trained_on = self.state["recipe"], set(self.state["trained_on"])
        if not Path(recipe["csv"]).is_file():
            raise ValueError(f"{recipe['csv']}: the captions this model was trained on are not there; run this where train.py ran")
        rows = read_captions(recipe["csv"], recipe["image_column"], recipe["caption_column"], recipe["skip_bad"])
        captions = list(dict.fromkeys(row.caption for row in rows if row.image_name in trained_on))
        if not captions:
            raise ValueError(f"{recipe['csv']}: holds none of the images this model was trained on, so it is another file now")
        return captions, encode_captions(captions, self.text, cache, quiet=True)

    def classify(self, image, labels):
        """Cosine score of each label, (C,) float32, for one image."""
        return classify(self.encode_image(image), class_embeddings(self.encode_text, labels))[0]


def _upright(image):
    if isinstance(image, (str, os.PathLike)):
        return open_image(image)
    return upright_rgb(image)
