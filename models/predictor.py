"""The only part that is trained: an image's features in, the embedding of its caption out."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import Linear, dropout
from models.temporal import TIMES

# Of the networks that answer questions; docs/EXPERIMENTS.md has what else was tried.
WIDTH = 512
HEADS = 8
KEY_WIDTH = 32  # of a head
VALUE_WIDTH = 64
WHERE_WIDTH = 256
COORDINATES = 5
COORDINATE_SCALE = 3.0  # so that they weigh as much as a standardised feature of the question
PLACES_DROPOUT = 0.4  # of input_dropout
KNOWN = 2048  # questions kept to tell unlike ones from
TEXT_HIDDEN = 1024  # of the residual text head


class Predictor(nn.Module):
    """(B, vision_dim) float -> (B, text_dim) unit rows: Linear -> GELU -> Linear -> L2 norm.

    The defaults (CLIP ViT-B/16 to MiniLM, hidden 1024) have 918,912 parameters. `mean` and `std` are buffers
    that standardise the input, zeros and ones until `standardise` is called. In training, `input_dropout` is
    the share of standardised inputs and `dropout` the share of hidden units set to zero. The network is
    replicated `members` times, each with its own weights and its own loss, and the prediction is their mean
    (docs/EXPERIMENTS.md: worth a point). `text_head`, one of TEXT_HEADS, is trained beside it, and moves the
    captions that predictions are compared with. With `time` "change" it also takes the frames of videos in
    order, (B, F, vision_dim), and reads what `over_time` makes of them.

    >>> Predictor()(torch.randn(2, 512)).norm(dim=-1)
    tensor([1., 1.], grad_fn=...)"""

    def __init__(
        self,
        vision_dim=512,
        text_dim=384,
        hidden_dim=1024,
        dropout=0.0,
        input_dropout=0.0,
        members=1,
        text_head="none",
        time="mean",
    ):
        super().__init__()
        self.config = dict(
            vision_dim=vision_dim,
            text_dim=text_dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            input_dropout=input_dropout,
            members=members,
            text_head=text_head,
            time=time,
        )
        self.read = TIMES[time]
        width = self.read(torch.empty(0, vision_dim)).shape[1]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        sizes = (width, hidden_dim, text_dim, dropout, input_dropout)
        self.members = nn.ModuleList(Member(*sizes) for _ in range(members))
        self.text_head = TEXT_HEADS[text_head](text_dim, dropout)

    def project_text(self, text):
        """(M, text_dim) unit rows of captions from the text tower -> (M, text_dim) unit rows in the space of
        the predictions: the same rows without a text head."""
        return self.text_head(text)

    @torch.no_grad()
    def standardise(self, image):
        """Take mean and standard deviation of the inputs from training features (N, vision_dim). A feature
        that never changes keeps deviation 1."""
        _fit(self.mean, self.std, self.read(image))

    def parts(self):
        """{kind of batch: the predictor that it trains}."""
        return dict(captions=self)

    def each(self, image, places=None, question=None, rows=None):
        """The prediction of each member, a list of (B, text_dim) unit rows. Training takes the loss of each.

        `rows` is (start, total) when `image` holds rows start, start + 1, ... of a batch of `total` rows that
        several processes share (models/distributed.py). ValueError when there is a question."""
        if question is not None:
            what = "this predictor answers one question only, what an image shows"
            raise ValueError(f"{what}; it takes no question")
        x = (self.read(image) - self.mean) / self.std
        return [F.normalize(member(x, rows), dim=-1) for member in self.members]

    def forward(self, image, places=None, question=None):
        """(B, vision_dim) float -> (B, text_dim) unit rows, the mean of the members. `places` is ignored;
        ValueError when there is a question."""
        return F.normalize(sum(self.each(image, places, question)), dim=-1)  # (B, text_dim)


def _fit(mean, std, rows):
    """Set `mean` and `std` (D,) to those of the columns of rows (N, D); a deviation near 0 becomes 1."""
    found = rows.std(0, correction=0)
    mean.copy_(rows.mean(0))
    std.copy_(torch.where(found > 1e-6, found, 1.0))


class QueryPredictor(nn.Module):
    """A predictor that takes a question. Without one it predicts the embedding of an image's caption, with
    one that of the answer.

    captions: the Predictor of captions, None for a run without any.
    answers: the AnswerPredictor that reads the image, its places and the question.
    question_only: an AnswerPredictor that sees no image, the baseline for what the wording gives away.
    known: (K, text_dim) unit rows of questions of the training set, KNOWN at most."""

    def __init__(
        self,
        vision_dim,
        text_dim,
        hidden_dim,
        dropout,
        input_dropout,
        members,
        places_dim,
        known=0,
        captions=True,
        text_head="none",
        time="mean",
    ):
        super().__init__()
        sizes = dict(vision_dim=vision_dim, text_dim=text_dim, hidden_dim=hidden_dim, dropout=dropout)
        sizes |= dict(input_dropout=input_dropout, members=members)
        sizes |= dict(text_head=text_head, time=time)
        self.config = sizes | dict(places_dim=places_dim, known=known, captions=captions)
        self.captions = Predictor(**sizes) if captions else None
        self.answers = AnswerPredictor(
            text_dim, vision_dim, places_dim, dropout, input_dropout, members, time
        )
        self.question_only = AnswerPredictor(text_dim, dropout=dropout)
        self.register_buffer("known", torch.zeros(known, text_dim))

    def parts(self):
        """{kind of batch: the predictor that it trains}."""
        parts = dict(captions=self.captions, answers=self.answers, question_only=self.question_only)
        return {kind: part for kind, part in parts.items() if part is not None}

    @property
    def mean(self):
        """The mean of the training images' features, (vision_dim,)."""
        return self.answers.mean

    def project_text(self, text):
        """As Predictor.project_text, for captions. Questions and answers stay in the text tower's space."""
        return self.captions.project_text(text) if self.captions else text

    def standardise(self, image, places, questions):
        """Take means and deviations of the inputs from training features: image (N, vision_dim), places
        (N, P, places_dim). Keep some of the questions (K, text_dim), to tell unlike ones from them."""
        self.answers.standardise(questions, image, places)
        self.question_only.standardise(questions)
        spread = torch.linspace(0, len(questions) - 1, len(self.known)).round().long()
        self.known.copy_(questions[spread])

    def forward(self, image, places=None, question=None):
        """(B, vision_dim) float -> (B, text_dim) unit rows: of the caption, or with questions (B, text_dim)
        and places (B, P, places_dim) of the answer. ValueError without a question if it was trained without
        captions."""
        if question is not None:
            return self.answers(question, image, places)
        if self.captions is None:
            raise ValueError("this model was trained on questions alone: ask it one, or train with --csv too")
        return self.captions(image)


class AnswerPredictor(nn.Module):
    """Questions (B, text_dim), images (N, vision_dim) and places (N, P, places_dim) -> (B, text_dim) unit
    rows, the mean of `members` networks. `image_of` (B,) is the image of each question; without it each has
    its own. With `vision_dim` 0 it reads the question alone. `log_scale` is log(1 / temperature) of its loss,
    `time` as in Predictor."""

    def __init__(
        self,
        text_dim,
        vision_dim=0,
        places_dim=0,
        dropout=0.0,
        input_dropout=0.0,
        members=1,
        time="mean",
    ):
        super().__init__()
        self.reads_image = vision_dim > 0
        self.read = TIMES[time]
        vision_dim = self.read(torch.empty(0, vision_dim)).shape[1]
        for name, dim in (("", vision_dim), ("places_", places_dim), ("question_", text_dim)):
            self.register_buffer(f"{name}mean", torch.zeros(dim))
            self.register_buffer(f"{name}std", torch.ones(dim))
        if self.reads_image:
            networks = [
                Attention(text_dim, vision_dim, places_dim, dropout, input_dropout) for _ in range(members)
            ]
        else:
            networks = [Member(text_dim, WIDTH, text_dim, dropout, 0.0) for _ in range(members)]
        self.members = nn.ModuleList(networks)
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.3)))

    @torch.no_grad()
    def standardise(self, questions, image=None, places=None):
        """Take mean and deviation of each feature from the training set, of places from 1,024 images."""
        _fit(self.question_mean, self.question_std, questions)
        if self.reads_image:
            some = torch.arange(0, len(places), max(1, len(places) // 1024))
            _fit(self.mean, self.std, self.read(image))
            _fit(self.places_mean, self.places_std, places[some].flatten(0, 1))

    def attention(self, question, places):
        """(B, P) float32 that sums to 1: where the members look, the mean over their heads."""
        image_of = torch.arange(len(question), device=question.device)
        question, places = self._scaled(question, places)
        scores = [member.look(question, places, image_of)[0] for member in self.members]
        return torch.stack(scores).softmax(3).mean((0, 2))

    def _scaled(self, question, places):
        """Standardised questions and places."""
        question = (question - self.question_mean) / self.question_std
        return question, (places - self.places_mean) / self.places_std

    def each(self, question, image=None, places=None, image_of=None, rows=None, image_rows=None):
        """The prediction of each member, a list of (B, text_dim) unit rows. `rows` of the questions and
        `image_rows` of the images are as in Predictor.each."""
        if self.reads_image:
            if image_of is None:
                image_of = torch.arange(len(question), device=question.device)
            question, places = self._scaled(question, places)
            image = (self.read(image) - self.mean) / self.std
            inputs = (question, image, places, image_of, rows, image_rows)
        else:
            inputs = ((question - self.question_mean) / self.question_std, rows)
        return [F.normalize(member(*inputs), dim=-1) for member in self.members]

    def forward(self, question, image=None, places=None, image_of=None):
        """(B, text_dim) unit rows, the mean of the members."""
        return F.normalize(sum(self.each(question, image, places, image_of)), dim=-1)


class Attention(nn.Module):
    """One network that reads a question and looks where it asks.

    The question is the query of attention with `HEADS` heads over the places. An MLP reads what the heads
    see, where they look, how well the best place fits, the image, the question, and their product.

    Where the heads look passes by the dropout of the rest, because few numbers tell the side of a thing. In
    training, `dropout` is also the share of questions that are answered without the image's row, so that
    attention is trained where that row would do, too (docs/EXPERIMENTS.md)."""

    def __init__(self, text_dim, vision_dim, places_dim, dropout, input_dropout):
        super().__init__()
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.image = Linear(vision_dim, WIDTH)
        self.question = Linear(text_dim, WIDTH)
        self.query = Linear(text_dim, HEADS * KEY_WIDTH)
        self.key = nn.Linear(places_dim + COORDINATES, HEADS * KEY_WIDTH)
        self.value = nn.Linear(places_dim + COORDINATES, HEADS * VALUE_WIDTH)
        self.seen = Linear(HEADS * VALUE_WIDTH, WIDTH)
        self.where = Linear(HEADS * (COORDINATES + 1) + text_dim, WHERE_WIDTH)
        self.up = Linear(4 * WIDTH + WHERE_WIDTH, 2 * WIDTH)
        self.down = Linear(2 * WIDTH, text_dim)

    def forward(self, question, image, places, image_of, rows=None, image_rows=None):
        """(B, text_dim), the answers before the norm."""

        def drop(x, p, rows=rows):
            return dropout(x, p, self.training, rows)

        some = drop(places.flatten(1), PLACES_DROPOUT * self.input_dropout, image_rows).view_as(places)
        scores, values = self.look(question, some, image_of)
        weights = scores.softmax(2)
        seen = (weights[:, :, None] @ values)[:, :, 0].flatten(1)  # (B, HEADS * VALUE_WIDTH)
        seen = F.gelu(self.seen(drop(seen, self.dropout / 2)))
        where = COORDINATE_SCALE * (weights @ coordinates(places[:1])[0])  # (B, HEADS, COORDINATES)
        fit = scores.logsumexp(2) - math.log(scores.shape[2])  # (B, HEADS)
        where = F.gelu(self.where(torch.cat([where.flatten(1), fit, question], dim=1)))
        image = F.gelu(self.image(drop(image, self.input_dropout, image_rows)))[image_of]
        image = image * (drop(torch.ones_like(image[:, :1]), self.dropout) > 0)
        question = F.gelu(self.question(question))
        x = drop(torch.cat([image, question, image * question, seen], dim=1), self.dropout)
        x = F.gelu(self.up(torch.cat([x, where], dim=1)))
        return self.down(drop(x, self.dropout))

    def look(self, question, places, image_of):
        """(scores (B, HEADS, P), whose softmax is the attention over the places; the values of the places
        (B, HEADS, P, VALUE_WIDTH))."""
        places = torch.cat([places, coordinates(places)], dim=2)
        keys = self.key(places).unflatten(2, (HEADS, KEY_WIDTH)).permute(0, 2, 3, 1)
        values = F.gelu(self.value(places)).unflatten(2, (HEADS, VALUE_WIDTH)).transpose(1, 2)
        query = self.query(question).view(-1, HEADS, 1, KEY_WIDTH)
        return (query @ keys[image_of])[:, :, 0] / KEY_WIDTH**0.5, values[image_of]


def coordinates(places):
    """(B, P, COORDINATES) float32: y, x, y * y, x * x and x * y of each place of a square grid, from -1 to
    1."""
    side = math.isqrt(places.shape[1])
    along = torch.linspace(-1, 1, side, device=places.device)
    y, x = (grid.flatten() for grid in torch.meshgrid(along, along, indexing="ij"))  # (P,)
    return torch.stack([y, x, y * y, x * x, x * y], dim=1).expand(len(places), -1, -1)


def mirror(places, which):
    """(B, P, Dp): places of a square grid, swapped left to right where `which` (B,) says so."""
    side = math.isqrt(places.shape[1])
    grid = places.unflatten(1, (side, side))  # (B, down, across, Dp)
    return torch.where(which[:, None, None, None], grid.flip(2), grid).flatten(1, 2)


class LinearHead(nn.Module):
    """(M, text_dim) -> (M, text_dim) unit rows: one layer, which starts as the identity."""

    def __init__(self, text_dim, dropout=0.0):
        super().__init__()
        self.layer = Linear(text_dim, text_dim)
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, text):
        return F.normalize(self.layer(text), dim=-1)


class ResidualHead(nn.Module):
    """(M, text_dim) -> (M, text_dim) unit rows: the text plus what an MLP says of it, at first nothing."""

    def __init__(self, text_dim, dropout=0.0):
        super().__init__()
        self.mlp = Member(text_dim, TEXT_HIDDEN, text_dim, dropout, input_dropout=0.4 * dropout)
        nn.init.zeros_(self.mlp.down.weight)
        nn.init.zeros_(self.mlp.down.bias)

    def forward(self, text):
        return F.normalize(text + self.mlp(text * text.shape[1] ** 0.5), dim=-1)


class Member(nn.Module):
    """Linear -> GELU -> Linear, with dropout before each layer: (B, vision_dim) -> (B, text_dim)."""

    def __init__(self, vision_dim, hidden_dim, text_dim, dropout, input_dropout):
        super().__init__()
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.up = Linear(vision_dim, hidden_dim)
        self.down = Linear(hidden_dim, text_dim)

    def forward(self, x, rows=None):
        x = dropout(x, self.input_dropout, self.training, rows)
        x = F.gelu(self.up(x))  # (B, hidden_dim)
        x = dropout(x, self.dropout, self.training, rows)
        return self.down(x)


TEXT_HEADS = dict(none=lambda text_dim, dropout: nn.Identity(), linear=LinearHead, residual=ResidualHead)
