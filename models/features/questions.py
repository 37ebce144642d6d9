"""Questions about images, and the bank of answers to choose from.

    questions = encode_questions(rows, names, text.encode_tokens)   # Questions: Q pairs of image and question
    bank = questions.bank()                              # {answer: number of rows}, most frequent first
    answer_of, share = questions.right(bank)             # (Q, W) each: the right answers of each pair
    mirror, has_mirror = questions.mirrored(bank)        # (A,), (Q,): the answers about mirrored images

Several rows with one image and one question are one pair with several right answers.
"""

import re
from collections import Counter
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch

from models.dataset import reworded

SWAPPED = dict(left="right", right="left")


class Tokens:
    """The states of the tokens of K texts, to read like a tensor: `tokens[index]`, int64 (B,), is
    (B, T, Dk) float32, where T is the length of the longest of these texts; shorter ones end in zeros."""

    def __init__(self, states):
        """`states` is a list of K arrays or tensors (T, Dk), kept as float16."""
        joined = np.concatenate(states)  # those of all texts, one after another
        self.states = torch.from_numpy(joined.astype(np.float16, copy=False))
        ends = torch.tensor([len(own) for own in states]).cumsum(0)
        self.first = torch.cat([ends.new_zeros(1), ends])  # (K + 1,)

    def __getitem__(self, index):
        first = self.first[index]
        length = self.first[index + 1] - first
        longest = int(length.max()) if len(length) else 1
        place = torch.arange(longest, device=first.device)  # (T,)
        mask = place < length[:, None]  # (B, T)
        rows = (first[:, None] + place).clamp_max(len(self.states) - 1)
        return self.states[rows].float() * mask[:, :, None]

    def to(self, device):
        """The same on `device`."""
        moved = copy(self)
        moved.states, moved.first = self.states.to(device), self.first.to(device)
        return moved


@dataclass
class Questions:
    """Q pairs of an image and a question."""

    image_of: torch.Tensor  # (Q,) int64, the image of each pair
    question_of: torch.Tensor  # (Q,) int64, its question, a number in `tokens`
    tokens: Tokens  # of the K distinct questions, then of other wordings
    wordings: torch.Tensor  # (K, W) int64, numbers in `tokens`: each question's own, then other wordings
    texts: list  # the K questions
    answers: list  # of each pair {answer: how many rows say so}
    types: list  # of each pair, "" where the file has none

    def __len__(self):
        return len(self.answers)

    def of(self, images):
        """The pairs of some images (a bool mask (N,)), with the images renumbered."""
        kept = images[self.image_of]
        pairs = kept.nonzero()[:, 0].tolist()
        return replace(
            self,
            image_of=(images.cumsum(0) - 1)[self.image_of[kept]],
            question_of=self.question_of[kept],
            answers=[self.answers[pair] for pair in pairs],
            types=[self.types[pair] for pair in pairs],
        )

    def to(self, device):
        """The same with its tensors on `device`."""
        names = ("image_of", "question_of", "tokens", "wordings")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def bank(self):
        """{answer: how many rows have it}, the most frequent first."""
        counts = Counter()
        for answers in self.answers:
            counts.update(answers)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    def right(self, bank):
        """(answer_of (Q, W) int64, share (Q, W) float32): the right answers of each pair as numbers in
        `bank`, and which share of its rows says so. W is the most that a pair has; where it has fewer, or
        `bank` lacks one, the share is 0."""
        number = {answer: i for i, answer in enumerate(bank)}
        width = max(map(len, self.answers), default=1)
        answer_of, share = [], []
        for answers in self.answers:
            known = [(number[answer], count) for answer, count in answers.items() if answer in number]
            total = sum(count for _, count in known)
            empty = [0] * (width - len(known))
            answer_of.append([answer for answer, _ in known] + empty)
            share.append([count / total for _, count in known] + empty)
        return torch.tensor(answer_of).view(-1, width), torch.tensor(share, dtype=torch.float32).view(
            -1, width
        )

    def mirrored(self, bank):
        """(mirror (A,) int64, has_mirror (Q,) bool): of each answer the one with left and right swapped, and
        of each pair whether these answer it about the mirrored image. They do not if `bank` lacks one, or if
        the question says left or right and no answer does."""
        number = {answer: i for i, answer in enumerate(bank)}
        swapped = {answer: swap_sides(answer) for answer in bank}
        mirror = torch.tensor([number.get(swapped[answer], i) for answer, i in number.items()])
        neutral = torch.tensor([swap_sides(text) == text for text in self.texts])
        sided = [any(swapped[answer] != answer for answer in answers) for answers in self.answers]
        known = [all(swapped[answer] in number for answer in answers) for answers in self.answers]
        return mirror, torch.tensor(known) & (torch.tensor(sided) | neutral[self.question_of])


def swap_sides(text):
    """A text with left and right swapped.

    >>> swap_sides("on the left")
    'on the right'
    """
    return re.sub(r"\b(left|right)\b", lambda found: SWAPPED[found[0].lower()], text, flags=re.IGNORECASE)


def encode_questions(rows, image_names, encode_tokens):
    """The Questions of a list of Row about the images `image_names`. `encode_tokens` maps a list of texts to
    the states of their tokens, a list of (T, Dk)."""
    number = {name: i for i, name in enumerate(image_names)}
    answers, types = {}, {}
    for row in rows:
        pair = (number[row.image_name], row.question)
        answers.setdefault(pair, Counter())[row.text] += 1
        types.setdefault(pair, row.type)
    texts = list(dict.fromkeys(question for _, question in answers))
    others = [reworded(text) for text in texts]
    place = {text: i for i, text in enumerate(dict.fromkeys([*texts, *chain.from_iterable(others)]))}
    wordings = [[place[text], *(place[other] for other in own)] for text, own in zip(texts, others)]
    width = max(map(len, wordings))
    return Questions(
        torch.tensor([image for image, _ in answers]),
        torch.tensor([place[question] for _, question in answers]),
        Tokens(encode_tokens(list(place))),
        torch.tensor([own + own[:1] * (width - len(own)) for own in wordings]),
        texts,
        list(answers.values()),
        list(types.values()),
    )
