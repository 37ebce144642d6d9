"""MiniLM's forward pass (BERT, mean-pooled; Wang et al. 2020) from its weights alone. sentence-transformers
gives the same rows to 4e-7, takes four seconds to import, and pads every text to the longest of its batch.
Here the tokens of all texts follow each other."""

import math
from itertools import chain, groupby

import torch
import torch.nn.functional as F
from torch import nn

from models import onednn

ROOM = 4096  # tokens at a time: measured fastest from 256 to 8,192
HEADS = 12
EPSILON = 1e-12


class MiniLM(nn.Module):
    """M texts -> (M, Dt), mean-pooled, not normalised. `path` is the model's folder; texts are cut at
    `tokens` tokens."""

    def __init__(self, path, tokens, device):
        from tokenizers import Tokenizer

        super().__init__()
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(tokens)
        weights = _read(path / "model.safetensors", "embeddings.", device)
        self.words = nn.Parameter(weights["word_embeddings.weight"], requires_grad=False)
        places = weights["position_embeddings.weight"] + weights["token_type_embeddings.weight"][0]
        self.places = nn.Parameter(places, requires_grad=False)
        self.norm = _norm(weights, "LayerNorm")
        self.layers = nn.ModuleList()
        while weights := _read(path / "model.safetensors", f"encoder.layer.{len(self.layers)}.", device):
            self.layers.append(Layer(weights))

    def forward(self, texts):
        rows = self.words.new_empty(len(texts), self.words.shape[1])
        for batch, states in self._states(texts):
            rows[batch] = torch.cat([group.mean(1) for group in states])
        return rows

    def tokens(self, texts):
        """M texts -> a list of M (T, Dt): the states of the tokens of each."""
        found = [None] * len(texts)
        for batch, states in self._states(texts):
            for i, state in zip(batch, chain.from_iterable(states)):
                found[i] = state.clone()
        return found

    def _states(self, texts):
        """Yield (indices of texts, their states as in `states`), the shortest texts first."""
        ids = []
        for start in range(0, len(texts), 4096):
            ids += [found.ids for found in self.tokenizer.encode_batch(texts[start : start + 4096])]
        for batch in _batches(ids):
            yield batch, self.states([ids[i] for i in batch])

    def states(self, ids):
        """Lists of token numbers, sorted by length -> for each length the states of its texts (n, T, Dt).
        Products take the tokens of all texts at once, attention those of one length."""
        groups = []  # (first row, number of texts, tokens of each)
        count = 0
        for length, texts in groupby(map(len, ids)):
            number = len(list(texts))
            groups.append((count, number, length))
            count += number * length
        places = torch.cat([torch.arange(length).repeat(number) for _, number, length in groups])
        tokens = torch.tensor(list(chain.from_iterable(ids)), device=self.words.device)
        x = self.words.new_zeros(_padded(count), self.words.shape[1])
        x[:count] = self.words[tokens] + self.places[places.to(tokens.device)]  # (tokens, Dt)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, groups)
        return [x[start : start + n * t].view(n, t, -1) for start, n, t in groups]


class Layer(nn.Module):
    """Attention and MLP of a BERT layer on (tokens, Dt)."""

    def __init__(self, weights):
        super().__init__()
        for kind in ("weight", "bias"):
            parts = [weights[f"attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            weights[f"qkv.{kind}"] = torch.cat(parts)
        self.qkv = _linear(weights, "qkv")
        self.out = _linear(weights, "attention.output.dense")
        self.up = _linear(weights, "intermediate.dense")
        self.down = _linear(weights, "output.dense")
        self.norm_attention = _norm(weights, "attention.output.LayerNorm")
        self.norm_output = _norm(weights, "output.LayerNorm")

    def forward(self, x, groups):
        projected, attended = self.qkv(x), torch.zeros_like(x)
        for start, n, t in groups:  # n texts of t tokens
            rows = slice(start, start + n * t)
            heads = projected[rows].view(n, t, 3, HEADS, -1)
            q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (n, HEADS, t, Dt / HEADS)
            attended[rows] = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n * t, -1)
        x = self.norm_attention(x + self.out(attended))
        return self.norm_output(x + self.down(self.up(x, "gelu")))


def _padded(count):
    """`count` rounded up to a power of two from 8 to 512, or to a multiple of 512. oneDNN keeps a kernel of a
    megabyte for every number of rows it has seen, so there must be few of them."""
    if count > 512:
        return 512 * math.ceil(count / 512)
    size = 8
    while size < count:
        size *= 2
    return size


def _batches(ids):
    """Indices of `ids` by length, in lists of about ROOM tokens."""
    batches, room = [], 0
    for i in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        if len(ids[i]) > room:
            batches.append([])
            room = ROOM
        batches[-1].append(i)
        room -= len(ids[i])
    return batches


def _linear(weights, name):
    return onednn.Linear(weights[f"{name}.weight"], weights[f"{name}.bias"], rows=ROOM)


def _norm(weights, name):
    norm = nn.LayerNorm(len(weights[f"{name}.weight"]), EPSILON, device="meta")
    for kind in ("weight", "bias"):  # copies: a view keeps the mapped file's pages in memory
        setattr(norm, kind, nn.Parameter(weights[f"{name}.{kind}"].clone(), requires_grad=False))
    return norm


def _read(path, prefix, device):
    """The tensors whose names start with `prefix`, without it. They are mapped from the file: what is dropped
    leaves memory."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]
        return {name.removeprefix(prefix): file.get_tensor(name).to(device) for name in names}
