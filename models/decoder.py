"""A small causal transformer that writes a caption for an embedding.

    decoder = Decoder.build(captions, text.encode(captions), text.sha256)
    for steps, loss in decoder.fit(captions): ...               # from captions alone, without images
    decoder.save("runs/default/decoder")
    Decoder.load("runs/default/decoder").write(model.encode_image("photo.jpg"))   # ["a dog on the beach"]

This is the Y-decoder of VL-JEPA (Chen et al., arXiv 2512.10942), trained as in DeCap (Li et al., ICLR 2023).
It reads the projection of an embedding onto the embeddings of the training captions, where predicted and
true embeddings look alike. The embedding itself is only used to choose among the beams. In training, noise
is added first (as in CapDec, Nukrai et al., EMNLP 2022)."""

import json
import math
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from models.files import sha256

FORMAT = "vl-jepa decoder 1"
FILES = ("model.safetensors", "tokenizer.json")
END = 0  # the token that ends a caption
IGNORED = -100  # the target of padding
LONGEST = 64  # tokens; a longer caption is cut
LIKELIHOOD = 0.3  # of a beam, beside its cosine (docs/EXPERIMENTS.md)
MIXED = 256  # captions in the noise of a step
NEEDED = set("text_sha256 vocab width layers heads dropout longest temperature noise sha256".split())


class Decoder(nn.Module):
    """Made by `Decoder.build` or `Decoder.load`.

    `config` is what config.json holds. `memory` (M, Dt) float32 holds the embeddings of the training
    captions, rounded to float16, as they are saved."""

    def __init__(self, tokenizer, memory, config):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.register_buffer("memory", memory.half().float())
        self.prefix = nn.Linear(memory.shape[1], config["width"])
        sizes = dict(n_embd=config["width"], n_layer=config["layers"], n_head=config["heads"])
        # No dropout on attention weights: it rules out the fused kernel, and an epoch takes longer.
        dropout = dict(resid_pdrop=config["dropout"], embd_pdrop=config["dropout"], attn_pdrop=0.0)
        ends = dict(bos_token_id=END, eos_token_id=END, pad_token_id=END)
        self.network = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config["vocab"],
                n_positions=config["longest"] + 1,
                activation_function="gelu_pytorch_tanh",
                **sizes | dropout | ends,
            )
        )

    @classmethod
    def build(
        cls,
        captions,
        embeddings,
        text_sha256,
        vocab=3000,
        width=192,
        layers=3,
        heads=4,
        dropout=0.1,
        temperature=0.03,
        noise=2.0,
    ):
        """An untrained decoder for M captions and their embeddings (M, Dt) from the text tower of this
        SHA-256.

        The vocabulary is learned from the captions; weights are drawn from torch's global generator.
        `temperature` is in units of cosine, `noise` the largest norm of the noise that `fit` adds to an
        embedding of norm 1. Both defaults were chosen on 593 held-out images of Flickr8k's training split
        (CIDEr-D 52.5, 53.5, 51.3, 51.0 at temperature 0.02, 0.03, 0.04, 0.05; 52.6 with noise up to 1.5, 53.5
        up to 2). Raises ValueError for fewer than two captions and for a temperature or noise out of
        range."""
        if len(captions) != len(embeddings) or len(captions) < 2:
            raise ValueError(
                f"{len(captions)} captions and {len(embeddings)} embeddings; a decoder needs at least two "
                "captions, with one embedding each"
            )
        if temperature <= 0 or noise < 0:
            raise ValueError(
                f"temperature {temperature} and noise {noise}; they must be over 0 and at least 0"
            )
        tokenizer = _learn_tokenizer(captions, vocab)
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(captions)]
        size = dict(
            vocab=tokenizer.get_vocab_size(), width=width, layers=layers, heads=heads, dropout=dropout
        )
        config = dict(format=FORMAT, text_sha256=text_sha256, longest=min(LONGEST, 1 + max(lengths)))
        config |= size | dict(temperature=temperature, noise=noise)
        return cls(tokenizer, embeddings.cpu(), config)

    def project(self, embeddings):
        """(B, Dt) -> (B, Dt) unit rows: the mean of the memory, weighted by softmax(cosine / temperature)."""
        scores = F.normalize(embeddings, dim=-1) @ self.memory.T / self.config["temperature"]  # (B, M)
        return F.normalize(scores.softmax(-1) @ self.memory, dim=-1)

    def forward(self, projected, tokens):
        """The mean cross-entropy of captions, in nats per token. `projected` (B, Dt) is what `project` gives
        for their embeddings, `tokens` (B, T) int64 ends in padding of -100."""
        words = self.network.transformer.wte(tokens[:, :-1].clamp_min(0))
        inputs = torch.cat([self.prefix(projected)[:, None], words], 1)  # (B, T, W)
        hidden = self.network.transformer(inputs_embeds=inputs, use_cache=False).last_hidden_state
        real = tokens >= 0
        return F.cross_entropy(self.network.lm_head(hidden[real]), tokens[real])

    def fit(self, captions, epochs=6, batch_size=64, lr=1.5e-3, weight_decay=0.1, least_steps=300):
        """Train on the captions that `build` was called with, in the same order. A small collection is
        repeated until `least_steps` are done.

        Yields (number of all steps, loss) after each step. Randomness comes from torch's global generator: on
        a CPU the same seed gives the same weights. Raises ValueError when the loss is not finite."""
        if len(captions) != len(self.memory):
            raise ValueError(
                f"{len(captions)} captions, but this decoder was built from {len(self.memory)}; give it those"
            )
        encodings = self.tokenizer.encode_batch(captions)
        tokens = [torch.tensor((e.ids + [END])[: self.config["longest"]]) for e in encodings]
        centred = self.memory - self.memory.mean(0)
        per_epoch = math.ceil(len(captions) / batch_size)
        steps = max(epochs * per_epoch, least_steps)
        optimiser = self._optimiser(lr, weight_decay)
        self.train()
        for step in range(steps):
            if step % per_epoch == 0:
                batches = batches_by_length([len(t) for t in tokens], batch_size)
            batch = batches[step % per_epoch]
            for group in optimiser.param_groups:
                group["lr"] = _learning_rate(lr, step, steps)
            target = nn.utils.rnn.pad_sequence([tokens[i] for i in batch.tolist()], True, IGNORED)  # (B, T)
            noise = self._noise(centred, len(batch))  # (B, Dt)
            projected = self.project(self.memory[batch.to(noise.device)] + noise)
            loss = self(projected, target.to(noise.device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimiser.step()
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(
                    f"loss is {value} at step {step + 1} of {steps}; lower the learning rate ({lr})"
                )
            yield steps, value
        self.eval()

    def _optimiser(self, lr, weight_decay):
        """AdamW, with weight decay on the matrices only."""
        matrices = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]
        groups = [dict(params=matrices, weight_decay=weight_decay), dict(params=others, weight_decay=0.0)]
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))

    def _noise(self, centred, count):
        """(count, Dt): random mixtures of captions of norm up to `noise`, since the errors of a predictor
        point towards other captions rather than in any direction. `centred` is the memory around its mean."""
        device = centred.device
        others = centred[torch.randint(len(centred), (MIXED,), device=device)]
        mixture = torch.randn(count, MIXED, device=device) @ others / MIXED**0.5  # covariance of the captions
        return self.config["noise"] * torch.rand(count, 1, device=device) * mixture

    @torch.no_grad()
    def write(self, embeddings, beams=10, encode=None):
        """B captions for (B, Dt) embeddings, predicted or true: for each, the best of a beam search. With
        `encode`, a function from M texts to their embeddings (M, Dt), the beam with the highest sum of its
        cosine with the given embedding and LIKELIHOOD times its mean log-likelihood per token. Raises
        ValueError for embeddings of another shape."""
        if embeddings.dim() != 2 or embeddings.shape[1] != self.memory.shape[1]:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)}; give (B, {self.memory.shape[1]})"
            )
        self.eval()
        kept = beams if encode else 1
        captions = []
        for rows in embeddings.to(self.memory.device, torch.float32).split(64):
            prefix = self.prefix(self.project(rows))[:, None]  # (B, 1, W)
            found = self.network.generate(
                inputs_embeds=prefix,
                attention_mask=prefix.new_ones(prefix.shape[:2], dtype=torch.long),
                num_beams=beams,
                num_return_sequences=kept,
                do_sample=False,
                max_new_tokens=self.config["longest"],
                return_dict_in_generate=True,
                output_scores=True,
            )
            texts = [text.strip() for text in self.tokenizer.decode_batch(found.sequences.tolist())]
            if kept > 1:
                offered = encode(texts).to(rows.device).view(len(rows), kept, -1)  # (B, K, Dt)
                cosines = torch.einsum("bd,bkd->bk", F.normalize(rows, dim=1), offered)
                scores = cosines + LIKELIHOOD * found.sequences_scores.view(len(rows), kept)
                texts = [texts[i * kept + best] for i, best in enumerate(scores.argmax(1).tolist())]
            captions += texts
        return captions

    def save(self, folder):
        """Write config.json, model.safetensors and tokenizer.json to a new folder, which then takes the place
        of `folder`. An error leaves the old folder alone."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
        try:
            new.mkdir()
            state = self.state_dict() | dict(memory=self.memory.half())
            del state["network.lm_head.weight"]  # shared with the token embeddings
            (new / "model.safetensors").write_bytes(save(state))
            self.tokenizer.save(str(new / "tokenizer.json"))
            config = self.config | dict(sha256={name: sha256(new / name) for name in FILES})
            (new / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @classmethod
    def load(cls, folder, device="cpu", text_sha256=None):
        """The decoder that `save` wrote. Raises FileNotFoundError when there is none, and ValueError when a
        file is damaged or foreign, or when `text_sha256` is not that of the text tower it was trained for."""
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = Path(folder)
        config = _read_config(folder)
        if text_sha256 not in (None, config["text_sha256"]):
            raise ValueError(
                f"{folder}: for the text tower with SHA-256 {config['text_sha256']}, but this one has "
                f"{text_sha256}; train the decoder again"
            )
        state = load_file(folder / "model.safetensors")
        decoder = cls(Tokenizer.from_file(str(folder / "tokenizer.json")), state["memory"], config)
        decoder.load_state_dict(state | {"network.lm_head.weight": state["network.transformer.wte.weight"]})
        return decoder.to(device).eval()


def batches_by_length(lengths, batch_size):
    """The batches of one epoch in random order: a list of indices (B,) int64 into `lengths`. Runs of 50
    batches are sorted by length, so little of a batch is padding."""
    order = torch.randperm(len(lengths))
    lengths = torch.tensor(lengths)
    runs = [run[lengths[run].argsort(stable=True)] for run in order.split(50 * batch_size)]
    batches = [batch for run in runs for batch in run.split(batch_size)]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]


def _learn_tokenizer(captions, vocab):
    """A byte-pair encoding of at most `vocab` tokens. It works on bytes, so it can write any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<end>"],  # becomes token END
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def _learning_rate(lr, step, steps):
    """A rise over the first 5 % of the steps, times half a cosine down to 0."""
    return lr * min(1, (step + 1) / (0.05 * steps)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def _read_config(folder):
    """config.json as a dict, once the other files are found to match its hashes: files of two decoders are
    not mixed, and a flipped bit does not change a word. Raises as `Decoder.load` does."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no decoder there; train one: python -m apps.decode train --run {folder.parent}"
        )
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: damaged, not JSON ({error}); train the decoder again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT or not NEEDED <= config.keys():
        raise ValueError(f"{path}: not the configuration of a decoder of apps.decode ({FORMAT!r})")
    for name in FILES:
        found = sha256(folder / name)
        if found != config["sha256"].get(name):
            raise ValueError(
                f"{folder / name}: damaged, its SHA-256 is {found} and not that in config.json; train the "
                "decoder again"
            )
    return config
