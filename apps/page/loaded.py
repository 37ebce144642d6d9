"""What the page loads once: the model of a run, its captions, its decoder and the index of a folder.

loaded = Loaded("runs/default", ".cache/search.sqlite")
loaded.model.encode_image(images)
"""

from functools import cached_property
from pathlib import Path

import torch

from apps.video.watch import writer
from models.decoder import Decoder
from models.predictor import QueryPredictor
from models.rejection import threshold_of
from models.vljepa import VLJEPA


class Loaded:
    """`run` and `index` are paths, `cache` the feature cache of train.py. Raises what VLJEPA.load does."""

    def __init__(self, run, index, device="auto", cache=".cache/features.sqlite"):
        self.run, self.index, self.cache = run, index, cache
        self.model = VLJEPA.load(run, device)

    @property
    def answers(self):
        """Whether the run answers questions."""
        return isinstance(self.model.predictor, QueryPredictor)

    @property
    def least(self):
        """The score below which none of the labels is right; -1, below every score, where the run stores
        none."""
        found = threshold_of(self.model.record, "reject")
        return -1.0 if found is None else found

    @cached_property
    def captions(self):
        """(M texts, (M, Dt) float32 on the CPU), see VLJEPA.captions, with its errors."""
        return self.model.captions(self.cache)

    @cached_property
    def decoder(self):
        """The Decoder of the run, None where none was trained."""
        folder = Path(self.run, "decoder")
        return Decoder.load(folder, self.model.device, self.model.text_space) if folder.exists() else None

    @cached_property
    def writer(self):
        """Rows (S, Dt) -> S pairs (cosine, words): of the decoder, without one the nearest captions. Of a
        shared model, which has neither, the words say so."""
        words = "nearest" if self.decoder is None else "decoder"
        try:
            return writer(self.model, words, Path(self.run, "decoder"), self.cache)[0]
        except ValueError as error:
            reason = f"no words: {error}"
            return lambda rows: [(0.0, reason)] * len(rows)

    def nearest(self, row, count=5):
        """[(text, cosine)] of the training captions nearest to an embedding (Dt,), best first."""
        texts, text = self.captions
        scores, found = (text @ row.cpu()).topk(min(count, len(texts)))
        return list(zip([texts[i] for i in found.tolist()], scores.tolist()))


def mean_row(rows):
    """The unit row (Dt,) of what several frames (F, Dt) show together."""
    return torch.nn.functional.normalize(rows.mean(0), dim=0)
