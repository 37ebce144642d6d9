"""The trained whole: frozen towers and predictor behind two verbs.

model = VLJEPA.load("runs/default")
model.encode_image(["a.jpg", image])          # (B, Dt) unit rows: what the images mean, in the text tower's space
model.encode_text(["a dog on a beach"])       # (M, Dt) unit rows
model.save_pretrained("shared")               # config.json, model.safetensors and a model card; or .push_to_hub("me/name")
VLJEPA.from_pretrained("shared")              # the same model, from that folder or from the Hugging Face hub
"""

import json
import os
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from models import runs as checkpoint
from models.card import LOCAL, card
from models.dataset import open_image, read_captions, upright_rgb
from models.device import choose as choose_device
from models.features import encode_captions
from models.predictor import Predictor
from models.text import TextEncoder
from models.vision import VisionEncoder
from models.zeroshot import class_embeddings, classify

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PUBLIC = (
    "format",
    "config",
    "towers",
    "epoch",
    "data",
    "images",
    "captions",
    "history",
    "held_out",
)  # of a checkpoint's dict


class VLJEPA(nn.Module, ModelHubMixin):
    """Made by `VLJEPA.load` or `.from_pretrained`. `state` is the checkpoint's dict, `vision` and `text` the towers it was
    trained with."""

    def __init__(self, predictor, vision, text, state=None):
        super().__init__()
        self.predictor, self.vision, self.text, self.state = (
            predictor.eval().requires_grad_(False),
            vision,
            text,
            state or {},
        )

    @classmethod
    def load(cls, run="runs/default", device="cpu"):
        """From a run folder (its best.pt), a checkpoint file, or a folder that `save_pretrained` wrote, to a torch device or "auto".
        Raises FileNotFoundError when nothing was trained there, and ValueError when a tower is not, by hash, the one it was trained
        with."""
        if Path(run, CONFIG).is_file():
            try:
                return cls.from_pretrained(run, device=device)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise ValueError(f"{Path(run, CONFIG)}: damaged, not JSON ({error})") from None
        path = Path(run, "best.pt") if not str(run).endswith(".pt") else Path(run)
        return cls._from_state(checkpoint.load(path), path, device)

    @classmethod
    def _from_state(cls, state, path, device):
        towers, device = {}, choose_device(device)
        if not {"vision", "text"} <= state["towers"].keys():
            raise ValueError(f"{path}: names no vision and text tower; train.py writes no such checkpoint")
        for kind, encoder in (("vision", VisionEncoder), ("text", TextEncoder)):
            towers[kind] = encoder(device, state["towers"][kind]["name"])
            if towers[kind].sha256 != state["towers"][kind]["sha256"]:
                raise ValueError(
                    f"{path}: trained with the {kind} tower {towers[kind].name} of SHA-256 {state['towers'][kind]['sha256']}, "
                    f"but the one here has {towers[kind].sha256}; embeddings of the two don't mix"
                )
        try:
            with torch.device("meta"):  # no random parameters made to be thrown away
                predictor = Predictor(**state["config"])
            predictor.load_state_dict(state["predictor"], assign=True)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: its parameters don't fit its own configuration {state['config']} ({error})"
            ) from None
        return cls(predictor.to(device), towers["vision"], towers["text"], state)

    def _save_pretrained(self, save_directory):
        """For the mixin's `save_pretrained` and `push_to_hub`: the predictor, and of the checkpoint's dict what others may know. The
        names of the training images and the paths of whoever trained it stay at home."""
        keep = {key: value for key, value in self.state.items() if key in PUBLIC}
        recipe = {key: value for key, value in self.state["recipe"].items() if key not in LOCAL}
        recipe |= {key: os.path.basename(self.state["recipe"][key].rstrip("/")) for key in ("csv", "images")}
        weights = {key: value.cpu().contiguous() for key, value in self.predictor.state_dict().items()}
        save_file(weights, save_directory / WEIGHTS, metadata={"format": "pt"})
        (save_directory / CONFIG).write_text(
            json.dumps(keep | dict(recipe=recipe, trained_on=[]), indent=1) + "\n"
        )
        (save_directory / "README.md").unlink(
            missing_ok=True
        )  # the mixin keeps an old card, which would tell of another model

    @classmethod
    def _from_pretrained(cls, *, model_id, config=None, device="cpu", **download):
        """For the mixin's `from_pretrained(folder or repository, device=...)`. Raises as `load` does."""
        local = Path(model_id, WEIGHTS)
        if config is None or (Path(model_id).is_dir() and not local.is_file()):
            raise FileNotFoundError(
                f"{model_id}: no {CONFIG} and {WEIGHTS} there, so it is not what VLJEPA.save_pretrained writes"
            )
        path = local if local.is_file() else Path(hf_hub_download(model_id, WEIGHTS, **download))
        try:
            state = config | dict(predictor=load_file(path, device="cpu"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None
        return cls._from_state(checkpoint.checked(state, model_id), model_id, device)

    def generate_model_card(self, results=None):
        """The card `save_pretrained` writes. `results` is what `eval.py --csv ... --json FILE` wrote; without it, the held-out
        results of training. Give it as `save_pretrained(folder, model_card_kwargs=dict(results=...))`."""
        return ModelCard(card(self.state, sum(p.numel() for p in self.predictor.parameters()), results))

    def encode_image(self, images):
        """One or many paths, PIL images or preprocessed pixels (B, 3, S, S) -> (B, Dt) float32 unit rows."""
        if not isinstance(images, torch.Tensor):
            one = isinstance(images, (str, os.PathLike)) or hasattr(images, "convert")
            images = torch.stack(
                [self.vision.preprocess(_upright(image)) for image in ([images] if one else images)]
            )
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
        if not trained_on:
            raise ValueError(
                "a shared model does not name the images it was trained on; load the run folder of train.py"
            )
        if not Path(recipe["csv"]).is_file():
            raise ValueError(
                f"{recipe['csv']}: the captions this model was trained on are not there; run this where train.py ran"
            )
        rows = read_captions(
            recipe["csv"], recipe["image_column"], recipe["caption_column"], recipe["skip_bad"]
        )
        captions = list(dict.fromkeys(row.caption for row in rows if row.image_name in trained_on))
        if not captions:
            raise ValueError(
                f"{recipe['csv']}: holds none of the images this model was trained on, so it is another file now"
            )
        return captions, encode_captions(captions, self.text, cache, quiet=True)

    def classify(self, image, labels):
        """Cosine score of each label, (C,) float32, for one image."""
        return classify(self.encode_image(image), class_embeddings(self.encode_text, labels))[0]


def _upright(image):
    if isinstance(image, (str, os.PathLike)):
        return open_image(image)
    return upright_rgb(image)
