"""The only part that is trained: an image's features in, the embedding of its caption out."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import Linear, dropout
from models.temporal import TIMES

# Of the networks that answer questions; docs/EXPERIMENTS.md has what else was tried.
WIDTH = 512
READERS = 2  # attention pooling over the tokens of a question, one query each (Lin et al. 2017)
HEADS = 4  # of attention over the places, shared by the readers
KEY_WIDTH = 32  # of a head
VALUE_WIDTH = 64
WHERE_WIDTH = 256
COORDINATES = 5
COORDINATE_SCALE = 3.0  # so that they weigh as much as a standardised feature of the question
PLACES_DROPOUT = 0.4  # of input_dropout
MASKED = -1e9  # the score of padding
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
    known: (K, token_dim) unit rows of questions of the training set, KNOWN at most."""

    def __init__(
        self,
        vision_dim,
        text_dim,
        hidden_dim,
        dropout,
        input_dropout,
        members,
        places_dim,
        token_dim,
        known=0,
        captions=True,
        text_head="none",
        time="mean",
    ):
        super().__init__()
        sizes = dict(vision_dim=vision_dim, text_dim=text_dim, hidden_dim=hidden_dim, dropout=dropout)
        sizes |= dict(input_dropout=input_dropout, members=members)
        sizes |= dict(text_head=text_head, time=time)
        self.config = sizes | dict(places_dim=places_dim, token_dim=token_dim, known=known, captions=captions)
        self.captions = Predictor(**sizes) if captions else None
        self.answers = AnswerPredictor(
            token_dim, text_dim, vision_dim, places_dim, dropout, input_dropout, members, time
        )
        self.question_only = AnswerPredictor(token_dim, text_dim, dropout=dropout)
        self.register_buffer("known", torch.zeros(known, token_dim))

    def parts(self):
        """{kind of batch: the predictor that it trains}."""
        parts = dict(captions=self.captions, answers=self.answers, question_only=self.question_only)
        return {kind: part for kind, part in parts.items() if part is not None}

    @property
    def mean(self):
        """The mean of the training images' features, (vision_dim,)."""
        return self.answers.image_mean

    def project_text(self, text):
        """As Predictor.project_text, for captions. Questions and answers stay in the text tower's space."""
        return self.captions.project_text(text) if self.captions else text

    def standardise(self, image, places, questions):
        """Take means and deviations of the inputs from training features: image (N, vision_dim), places
        (N, P, places_dim), questions (K, T, token_dim). The mean-pooled questions are kept as `known`, to
        tell unlike ones from them."""
        self.answers.standardise(questions, image, places)
        self.question_only.standardise(questions)
        self.known.copy_(mean_pool(questions))

    def forward(self, image, places=None, question=None):
        """(B, vision_dim) float -> (B, text_dim) unit rows: of the caption, or with questions
        (B, T, token_dim) and places (B, P, places_dim) of the answer. ValueError without a question if it was
        trained without captions."""
        if question is not None:
            return self.answers(question, image, places)
        if self.captions is None:
            raise ValueError("this model was trained on questions alone: ask it one, or train with --csv too")
        return self.captions(image)


class AnswerPredictor(nn.Module):
    """Questions (B, T, token_dim), images (N, vision_dim) and places (N, P, places_dim) -> (B, text_dim) unit
    rows, the mean of `members` networks. A question is the states of its tokens, padded with zeros.
    `image_of` (B,) is the image of each question; without it each has its own. With `vision_dim` 0 it reads
    the question alone. `log_scale` is log(1 / temperature) of its loss, `time` as in Predictor."""

    def __init__(
        self,
        token_dim,
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
        dims = dict(image=vision_dim, places=places_dim, question=token_dim, token=token_dim)
        for name, dim in dims.items():
            self.register_buffer(f"{name}_mean", torch.zeros(dim))
            self.register_buffer(f"{name}_std", torch.ones(dim))
        if self.reads_image:
            sizes = (token_dim, text_dim, vision_dim, places_dim, dropout, input_dropout)
            networks = [Attention(*sizes) for _ in range(members)]
        else:
            networks = [Member(token_dim, WIDTH, text_dim, dropout, 0.0) for _ in range(members)]
        self.members = nn.ModuleList(networks)
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.3)))

    @torch.no_grad()
    def standardise(self, questions, image=None, places=None):
        """Take mean and deviation of each feature from these inputs, of places from about 1,024 images."""
        _fit(self.question_mean, self.question_std, mean_pool(questions))
        _fit(self.token_mean, self.token_std, questions[token_mask(questions)])
        if self.reads_image:
            some = torch.arange(0, len(places), max(1, len(places) // 1024))
            _fit(self.image_mean, self.image_std, self.read(image))
            _fit(self.places_mean, self.places_std, places[some].flatten(0, 1))

    def attention(self, question, places):
        """(B, P) float32 that sums to 1: where the members look, the mean over their readers and heads."""
        image_of = torch.arange(len(question), device=question.device)
        places = self._scaled("places", places)
        tokens = self._tokens(question)
        scores = [member.look(*tokens, places, image_of)[0] for member in self.members]
        return torch.stack(scores).softmax(4).mean((0, 2, 3))

    def _scaled(self, name, rows):
        """Standardised rows of the input `name`."""
        return (rows - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_std")

    def _tokens(self, question):
        """(standardised tokens (B, T, token_dim), zeros in the padding; the mask of real tokens (B, T))."""
        mask = token_mask(question)
        return self._scaled("token", question) * mask[:, :, None], mask

    def each(self, question, image=None, places=None, image_of=None, rows=None, image_rows=None):
        """The prediction of each member, a list of (B, text_dim) unit rows. `rows` of the questions and
        `image_rows` of the images are as in Predictor.each."""
        sentence = self._scaled("question", mean_pool(question))
        if self.reads_image:
            if image_of is None:
                image_of = torch.arange(len(question), device=question.device)
            image = self._scaled("image", self.read(image))
            places = self._scaled("places", places)
            inputs = (*self._tokens(question), sentence, image, places, image_of, rows, image_rows)
        else:
            inputs = (sentence, rows)
        return [F.normalize(member(*inputs), dim=-1) for member in self.members]

    def forward(self, question, image=None, places=None, image_of=None):
        """(B, text_dim) unit rows, the mean of the members."""
        return F.normalize(sum(self.each(question, image, places, image_of)), dim=-1)


class Attention(nn.Module):
    """One network that reads a question and looks where it asks.

    Each of `READERS` readers pools the tokens of the question by attention, which picks a word. The word is
    the query of attention with `HEADS` heads over the places. The readers share the heads: those that find
    the dog of "Is there a dog?" find it in "Is the cat left of the dog?". An MLP reads what
    the heads see, where they look, how well the best place fits, the image, the question, and their product.

    Where the heads look passes by the dropout of the rest, because few numbers tell the side of a thing. In
    training, `dropout` is also the share of questions that are answered without the image's row, so that
    attention is trained where that row would do, too (docs/EXPERIMENTS.md)."""

    def __init__(self, token_dim, text_dim, vision_dim, places_dim, dropout, input_dropout):
        super().__init__()
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.image = Linear(vision_dim, WIDTH)
        self.question = Linear(token_dim, WIDTH)
        self.pick = nn.Linear(token_dim, READERS)
        self.query = Linear(token_dim, HEADS * KEY_WIDTH)
        self.key = nn.Linear(places_dim + COORDINATES, HEADS * KEY_WIDTH)
        self.value = nn.Linear(places_dim + COORDINATES, HEADS * VALUE_WIDTH)
        looks = HEADS * READERS
        self.seen = Linear(looks * VALUE_WIDTH, WIDTH)
        self.where = Linear(looks * (COORDINATES + 1) + token_dim, WHERE_WIDTH)
        self.up = Linear(4 * WIDTH + WHERE_WIDTH, 2 * WIDTH)
        self.down = Linear(2 * WIDTH, text_dim)

    def forward(self, tokens, mask, sentence, image, places, image_of, rows=None, image_rows=None):
        """(B, text_dim), the answers before the norm. Of the questions: `tokens` (B, T, token_dim), the
        `mask` of real ones (B, T), and `sentence` (B, token_dim), their mean."""

        def drop(x, p, rows=rows):
            return dropout(x, p, self.training, rows)

        some = drop(places.flatten(1), PLACES_DROPOUT * self.input_dropout, image_rows).view_as(places)
        scores, values = self.look(tokens, mask, some, image_of)
        weights = scores.softmax(3)
        seen = (weights @ values).flatten(1)  # (B, HEADS * READERS * VALUE_WIDTH)
        seen = F.gelu(self.seen(drop(seen, self.dropout / 2)))
        where = COORDINATE_SCALE * (weights @ coordinates(places.new_empty(1, places.shape[1]))[0])
        fit = scores.logsumexp(3) - math.log(scores.shape[3])  # (B, HEADS, READERS)
        where = F.gelu(self.where(torch.cat([where.flatten(1), fit.flatten(1), sentence], dim=1)))
        image = F.gelu(self.image(drop(image, self.input_dropout, image_rows)))[image_of]
        image = image * (drop(torch.ones_like(image[:, :1]), self.dropout) > 0)
        question = F.gelu(self.question(sentence))
        x = drop(torch.cat([image, question, image * question, seen], dim=1), self.dropout)
        x = F.gelu(self.up(torch.cat([x, where], dim=1)))
        return self.down(drop(x, self.dropout))

    def look(self, tokens, mask, places, image_of):
        """(scores (B, HEADS, READERS, P), whose softmax is the attention over the places; the values of the
        places (B, HEADS, P, VALUE_WIDTH))."""
        places = torch.cat([places, coordinates(places)], dim=2)
        keys = self.key(places).unflatten(2, (HEADS, KEY_WIDTH)).permute(0, 2, 3, 1)
        values = F.gelu(self.value(places)).unflatten(2, (HEADS, VALUE_WIDTH)).transpose(1, 2)
        picked = self.pick(tokens).masked_fill(~mask[:, :, None], MASKED).softmax(1)  # (B, T, READERS)
        words = picked.transpose(1, 2) @ tokens  # (B, READERS, token_dim)
        query = self.query(words.flatten(0, 1)).view(-1, READERS, HEADS, KEY_WIDTH).transpose(1, 2)
        return query @ keys[image_of] / KEY_WIDTH**0.5, values[image_of]


def token_mask(question):
    """(B, T) bool: which rows of (B, T, token_dim) are tokens. The others are zeros, the padding."""
    return (question != 0).any(2)


def mean_pool(question):
    """(B, T, token_dim) -> (B, token_dim) unit rows: the mean of the tokens, as MiniLM pools them."""
    return F.normalize(question.sum(1), dim=1)


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
