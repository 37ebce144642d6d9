"""The trained whole: frozen towers and predictor behind two verbs.

    model = VLJEPA.load("runs/default")
    model.encode_image(["a.jpg", image])          # (B, Dt) unit rows: what the images mean
    model.encode_text(["a dog on a beach"])       # (M, Dt) unit rows, in the same space
    model.answer("a.jpg", "What color is it?")   # "red", for a run that was trained with --questions
    model.save_pretrained("shared")               # or .push_to_hub("me/name")
    VLJEPA.from_pretrained("shared")              # a folder (a run folder too) or a repository of the hub

What is saved is config.json, model.safetensors and a model card.
"""

import hashlib
import os
from functools import cached_property, partial
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from models import hub, report, runs
from models.dataset import FRAMES, VisionTextDataset, open_frames, read_questions, read_rows, upright_rgb
from models.distributed import choose_device
from models.features import encode_ahead, encode_texts, frames_for
from models.features.shards import open_shards
from models.features.tars import expand
from models.predictor import Predictor, QueryPredictor, mean_pool
from models.script import MOST_FRAMES
from models.text import TEXT_ENCODERS, TextEncoder
from models.vision import VISION_ENCODERS, VisionEncoder
from models.zeroshot import class_embeddings, classify


class VLJEPA(nn.Module, ModelHubMixin):
    """Made by `VLJEPA.load` or `.from_pretrained`.

    `vision` and `text` are the towers it was trained with, `config` is what config.json holds, `record` what
    changes with the weights: epoch, history and held-out results. `recipe` are the flags of train.py: with
    local paths for a run of this machine, else the public ones alone."""

    def __init__(self, predictor, vision, text, config, record, folder="this model", private=None):
        super().__init__()
        self.predictor = predictor.eval().requires_grad_(False)
        self.vision = vision
        self.text = text
        self.config = config
        self.record = record
        self.folder = folder
        self._private = private  # (recipe, names of the training images) for a run of this machine

    @classmethod
    def load(cls, run="runs/default", device="cpu"):
        """The model of a run folder, or of a folder that `save_pretrained` wrote, on a torch device or
        "auto".

        Raises FileNotFoundError when nothing was trained there, and ValueError for a damaged file or when a
        tower is not the one it was trained with, by SHA-256."""
        predictor, config, record = runs.load_model(run)
        return cls._build(predictor, config, record, run, device)

    @classmethod
    def from_pretrained(cls, name, device="cpu", vision=None, download_towers=False):
        """The model of a folder or of a repository on the Hugging Face hub.

        `vision` is the file or folder of the image tower's weights, for a model whose tower was trained from
        a local file. A tower that is not on this machine is fetched only if it is one of this project's own,
        or with `download_towers`: the name of any other comes from whoever shared the model, and its hash can
        be compared only after it is fetched. Raises as `load` does."""
        folder = name
        if not Path(name).is_dir():
            paths = [hub.fetch_file(str(name), [file]) for file in (runs.CONFIG, runs.WEIGHTS)]
            folder = paths[0].parent
        predictor, config, record = runs.load_model(folder)
        return cls._build(predictor, config, record, folder, device, vision, download_towers)

    @classmethod
    def _build(cls, weights, config, record, folder, device, vision=None, download_towers=False):
        device = choose_device(device)
        private = runs.load_private(folder)
        names = {kind: config["towers"][kind]["name"] for kind in ("vision", "text")}
        if private:  # a run of this machine: its towers may be local files
            names = {kind: private[0][kind] for kind in names}
        is_own = set(names["vision"].split("+")) <= VISION_ENCODERS.keys()
        tower = VisionEncoder(device, names["vision"], path=vision, download=download_towers or is_own)
        text = TextEncoder(device, names["text"], download=download_towers or names["text"] in TEXT_ENCODERS)
        for kind, found in (("vision", tower), ("text", text)):
            expected = config["towers"][kind]["sha256"]
            if found.sha256 != expected:
                made_with = f"trained with the {kind} tower {found.name} of SHA-256 {expected}"
                raise ValueError(
                    f"{folder}: {made_with}, but the one here has {found.sha256}; the two do not mix"
                )
        predictor = _predictor(weights, config, folder).to(device)
        return cls(predictor, tower, text, config, record, folder, private)

    def _save_pretrained(self, save_directory):
        """For the mixin's `save_pretrained` and `push_to_hub`: the two public files."""
        runs.save_config(save_directory, self.config)
        runs.save_model(save_directory, self.predictor.state_dict(), self.record)
        # The mixin keeps a card that is there already, which may describe another model.
        (save_directory / "README.md").unlink(missing_ok=True)

    def generate_model_card(self, results=None):
        """The card that `save_pretrained` writes. `results` is what `eval.py --csv ... --json FILE` wrote;
        without it, the held-out results of training.

        To set it: `save_pretrained(folder, model_card_kwargs=dict(results=...))`."""
        parameters = sum(p.numel() for p in self.predictor.parameters())
        return ModelCard(report.card(self.config, self.record, parameters, results))

    def encode_image(self, images, frames=None):
        """One or many paths, PIL images or preprocessed pixels (B, ...) -> (B, Dt) float32 unit rows. Of the
        path of a video, the mean over `frames` frames of what the tower gives is predicted from, or what the
        predictor makes of their order, see `reads_order`; by default as many as it was trained with."""
        if not isinstance(images, torch.Tensor):
            frames = frames or self.frames
            return self.predict(_features(self.vision, _as_list(images), frames, in_order=self.reads_order))
        return self.predict(self.vision.encode(images))

    @torch.no_grad()
    def predict(self, image_features, places=None, question=None):
        """Tower output (B, Dv), of videos also (B, F, Dv) if it `reads_order`, on any device -> (B, Dt)
        float32 unit rows on the model's: what the images mean, or with places (B, P, Dp) and the tokens of
        questions (B, T, Dk) the answers."""
        inputs = (image_features, places, question)
        device = self.device
        return self.predictor(*(None if x is None else x.to(device) for x in inputs))

    @property
    def reads_order(self):
        """Whether the predictor was trained on the order of a video's frames (--time change)."""
        return self.predictor.config["time"] == "change"

    @property
    def device(self):
        return self.predictor.mean.device

    @torch.no_grad()
    def encode_text(self, texts):
        """M captions or labels -> (M, Dt) float32 unit rows, in the space of `encode_image`."""
        rows = self.text.encode([texts] if isinstance(texts, str) else texts)
        return self.project_text(rows)

    @torch.no_grad()
    def project_text(self, rows):
        """(M, Dt) unit rows of the text tower on any device -> (M, Dt) on the model's: the embeddings that
        predictions are compared with. Without a text head they are the same rows."""
        return self.predictor.project_text(rows.to(self.device))

    def classify(self, image, labels):
        """The cosine score of each label, (C,) float32, for one image."""
        return classify(self.encode_image(image), class_embeddings(self.encode_text, labels))[0]

    def answer(self, images, questions, candidates=None):
        """The nearest answer to each question about each image. One image and one question give a str; a list
        of one of them gives a list, lists of both a list per image. Raises as `answer_scores` does."""
        scores = self.answer_scores(images, questions, candidates)  # (B, K, A)
        names = list(candidates or self.config["answers"])
        found = [[names[i] for i in row] for row in scores.argmax(2).tolist()]
        found = [row[0] for row in found] if isinstance(questions, str) else found
        return found[0] if _is_one(images) else found

    def answer_scores(self, images, questions, candidates=None, frames=None):
        """(B, K, A) float32: the cosine of the answer that is predicted for each of B images and K questions
        with each of A candidates, by default the answers that it was trained on, the most frequent first. A
        video is asked about by the means over its frames, see `encode_image`.
        ValueError for a run that was trained without questions."""
        self.check_answers()
        frames = frames or self.frames
        image, places = _features(self.vision, _as_list(images), frames, True, self.reads_order)
        asked = self._tokens(questions)  # (K, T, Dk)
        answers = self._answer_rows(list(candidates)) if candidates else self._answers
        b, k = len(image), len(asked)
        predicted = self.predict(
            image.repeat_interleave(k, 0), places.repeat_interleave(k, 0), asked.repeat(b, 1, 1)
        )
        return (predicted @ answers.to(predicted.device).T).view(b, k, -1)

    def attention(self, image, questions):
        """(K, P) float32 that sums to 1: where it looks for each of K questions about one image. P places
        are a square grid, row by row, over what the image tower sees. Raises as `answer_scores` does."""
        self.check_answers()
        _, places = _features(self.vision, [image], self.frames, places=True)
        asked = self._tokens(questions).to(self.device)
        with torch.no_grad():
            places = places.to(self.device).expand(len(asked), -1, -1)
            return self.predictor.answers.attention(asked, places).cpu()

    def check_answers(self):
        """ValueError for a run that was trained without questions."""
        if not isinstance(self.predictor, QueryPredictor):
            advice = "train one with `python train.py --recipe answer --questions FILE --run RUN`"
            raise ValueError(f"{self.folder}: was trained without questions, so it has no answers; {advice}")

    @cached_property
    def _answers(self):
        """(A, Dt): the embeddings of the answers it was trained on."""
        return self._answer_rows(list(self.config["answers"]))

    def _answer_rows(self, answers):
        """(A, Dt) unit rows of answers, which pass by the text head."""
        return self.text.encode(answers)

    def _tokens(self, questions):
        """(K, T, Dk): the states of the tokens of questions, padded with zeros."""
        states = self.text.encode_tokens([questions] if isinstance(questions, str) else questions)
        nothing = torch.zeros(0, 1, self.predictor.config["token_dim"])
        return pad_sequence(states, batch_first=True) if states else nothing

    def familiarity(self, questions):
        """(K,) float32: the cosine of each question with the nearest one that it was trained on."""
        return (mean_pool(self._tokens(questions).to(self.device)) @ self.predictor.known.T).amax(1)

    def training_questions(self):
        """The rows of the questions file about the images it was trained on. ValueError when they are not
        known, or not there any more."""
        trained_on = self.trained_on
        path = self.recipe["questions"]
        if not Path(path).is_file():
            advice = "run this where train.py ran"
            raise ValueError(f"{path}: the questions it was trained on are not there; {advice}")
        rows = read_questions(path, self.recipe["image_column"], self.recipe["skip_bad"])
        return [row for row in rows if row.question and row.image_name in trained_on]

    @cached_property
    def identity(self):
        """A hex digest of all that an embedding depends on: the predictor and both towers."""
        facts = [self.config["predictor"], self.vision.key, self.text.key]
        return _digest(facts, self.predictor.state_dict())

    @cached_property
    def text_space(self):
        """A hex digest of what `encode_text` depends on: the SHA-256 of the text tower, with a text head also
        its parameters."""
        state = self.predictor.state_dict()
        head = {name: value for name, value in state.items() if "text_head." in name}
        return _digest([self.text.sha256], head) if head else self.text.sha256

    @property
    def recipe(self):
        return self._private[0] if self._private else self.config["recipe"]

    @property
    def frames(self):
        """How many frames a video was read as in training. ValueError for a config that says nonsense."""
        frames = self.recipe.get("frames", FRAMES)
        if type(frames) is not int or not 1 <= frames <= MOST_FRAMES:
            raise ValueError(f"{runs.CONFIG}: frames is {frames!r}; it is 1 to {MOST_FRAMES:,}")
        return frames

    @property
    def knows_training_images(self):
        return bool(self._private and self._private[1])

    @property
    def trained_on(self):
        """The names of the images it was trained on, a set. ValueError for a shared model, which does not
        hold them."""
        if not self.knows_training_images:
            advice = "take the run folder of train.py, trained from a CSV"
            raise ValueError(f"{self.folder}: does not name the images it was trained on; {advice}")
        return set(self._private[1])

    def captions(self, cache=".cache/features.sqlite"):
        """(texts, (M, Dt) float32 unit rows on the CPU): the distinct captions it was trained on and their
        embeddings, from the feature cache or the feature shards. ValueError when the captions file or the
        shards are not there any more."""
        recipe = self.recipe
        if recipe["shards"] and self._private:
            texts, rows = _shard_captions(recipe, self.config["data"])
            return texts, self.project_text(rows).cpu()
        trained_on = self.trained_on
        if not Path(recipe["csv"]).is_file():
            raise ValueError(
                f"{recipe['csv']}: the captions it was trained on are not there; run this where train.py ran"
            )
        columns = (recipe["image_column"], recipe["caption_column"])
        options = dict(skip_bad=recipe["skip_bad"], caption_lists=recipe.get("caption_lists", False))
        rows = read_rows(recipe["csv"], *columns, **options)
        texts = list(dict.fromkeys(row.text for row in rows if row.image_name in trained_on))
        if not texts:
            raise ValueError(
                f"{recipe['csv']}: holds none of the images it was trained on, so the file has changed"
            )
        return texts, self.project_text(encode_texts(texts, self.text, cache, quiet=True)).cpu()

    def held_out(
        self,
        csv=None,
        images=None,
        image_column=None,
        caption_column=None,
        skip_bad=None,
        caption_lists=None,
        follow_links=False,
    ):
        """The VisionTextDataset of the images it was not trained on; what is None is taken from the
        recipe."""
        recipe, trained_on = self.recipe, self.trained_on
        dataset = VisionTextDataset(
            csv or recipe["csv"],
            None,
            images or recipe["images"],
            image_column or recipe["image_column"],
            caption_column or recipe["caption_column"],
            recipe["skip_bad"] if skip_bad is None else skip_bad,
            caption_lists=recipe.get("caption_lists", False) if caption_lists is None else caption_lists,
            follow_links=follow_links or recipe.get("follow_links", False),
        )
        dataset.keep(set(dataset.image_names) - trained_on, "of images it was trained on")
        return dataset


def _predictor(weights, config, folder):
    """The Predictor of `weights`. ValueError when they do not fit the sizes in `config`."""
    sizes = config["predictor"]
    if "places_dim" in sizes and "token_dim" not in sizes:
        raise ValueError(
            f"{folder}: trained before 2026-11-27, when questions were read in another way; train it again"
        )
    try:
        if not 1 <= sizes["members"] <= len(weights):  # or an untrusted config builds modules without end
            raise ValueError(f"{sizes['members']} members")
        kind = QueryPredictor if "places_dim" in sizes else Predictor
        with torch.device("meta"):  # no random parameters that are then thrown away
            predictor = kind(**sizes)
        predictor.load_state_dict(weights, assign=True)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        where = Path(folder, runs.WEIGHTS)
        raise ValueError(
            f"{where}: its parameters do not fit the sizes in {runs.CONFIG}: {sizes} ({error})"
        ) from None
    if any(value.dtype != torch.float32 for value in weights.values()):
        raise ValueError(f"{Path(folder, runs.WEIGHTS)}: its parameters are not float32")
    return predictor


def _digest(facts, state):
    """The SHA-256 of some facts and of the tensors {name: tensor} of a module, 64 hex digits."""
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in state.items():
        digest.update(name.encode())
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()


def _shard_captions(recipe, data):
    """(the distinct captions, (M, Dt) unit rows of the text tower) of the feature shards of a run."""
    names = list(expand(recipe["shards"])) if Path(recipe["shard_features"]).is_dir() else []
    if not names:
        raise ValueError(f"{recipe['shard_features']}: the feature shards it was trained on are not there")
    shards = open_shards(recipe["shard_features"], names)
    if shards.digest != data:
        raise ValueError(f"{recipe['shard_features']}: not the feature shards it was trained on; train again")
    first = {}
    for number, caption in enumerate(shards.captions()):
        first.setdefault(caption, number)
    if not first:
        raise ValueError(f"{recipe['shards']}: it was trained on questions alone, so there are no captions")
    return list(first), shards.text[torch.tensor(list(first.values()))]


def _features(vision, images, frames, places=False, in_order=False):
    """(B, Dv) rows of paths and PIL images, or with `in_order` (B, frames, Dv), of an image its row again and
    again. The next ones are decoded ahead. With `places` a pair of these and (B, P, Dp)."""
    rows, maps = [], []
    frames = frames_for(vision, frames)
    read = partial(_frames_of, count=frames)
    for _, found, error in encode_ahead(images, read, vision.parts, places=places, each_frame=in_order):
        if error:
            raise error
        if places:
            found, local = zip(*found)  # of each tower
            maps.append(torch.cat(local, dim=1))
        rows.append(vision.join([row.expand(frames, -1) for row in found] if in_order else found))
    if places and not rows:
        raise ValueError("no images were given")
    image = torch.stack(rows) if rows else torch.empty(0, vision.dim)
    return (image, torch.stack(maps)) if places else image


def _is_one(images):
    """Whether this is a path or a PIL image, and no list of them."""
    return isinstance(images, (str, os.PathLike)) or hasattr(images, "convert")


def _as_list(images):
    return [images] if _is_one(images) else images


def _frames_of(image, count):
    return open_frames(image, count) if isinstance(image, (str, os.PathLike)) else [upright_rgb(image)]
