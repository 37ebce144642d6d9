"""Words from an embedding: a small causal transformer that writes a caption.

    decoder = Decoder.build(captions, text.encode(captions), text.sha256)
    for steps, loss in decoder.fit(captions): ...               # captions alone: no image is seen
    decoder.save("runs/default/decoder")
    Decoder.load("runs/default/decoder").write(model.encode_image("photo.jpg"))   # ["a dog runs on the beach"]

The Y-decoder of VL-JEPA (Chen et al., arXiv 2512.10942), trained as DeCap is (Li et al., ICLR 2023): what it
reads is never an embedding itself but that embedding's projection onto the captions it remembers, where
predicted and true embeddings look alike; in training with noise on it first (as in CapDec, Nukrai et al.,
EMNLP 2022)."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

FORMAT = "vl-jepa decoder 1"
FILES = ("model.safetensors", "tokenizer.json")
END = 0  # the token that ends a caption
LONGEST = 64  # tokens; what is longer is cut there
NEEDED = (
    "text_sha256",
    "vocab",
    "width",
    "layers",
    "heads",
    "dropout",
    "longest",
    "temperature",
    "noise",
    "sha256",
)


class Decoder(nn.Module):
    """Made by `Decoder.build` or `Decoder.load`. `config` is what config.json holds, `memory` (M, Dt) float32
    the embeddings of the captions it was trained on, rounded to float16, which is how they are kept."""

    def __init__(self, tokenizer, memory, config):
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        self.tokenizer, self.config = tokenizer, config
        self.register_buffer("memory", memory.half().float())
        self.prefix = nn.Linear(memory.shape[1], config["width"])
        # No dropout on attention weights: it keeps the fused kernel out, and an epoch takes longer.
        self.network = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config["vocab"],
                n_positions=config["longest"] + 1,
                n_embd=config["width"],
                n_layer=config["layers"],
                n_head=config["heads"],
                resid_pdrop=config["dropout"],
                embd_pdrop=config["dropout"],
                attn_pdrop=0.0,
                activation_function="gelu_pytorch_tanh",
                bos_token_id=END,
                eos_token_id=END,
                pad_token_id=END,
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
        """An untrained decoder for M captions and their embeddings (M, Dt). `text_sha256` names the text
        tower they come from. The vocabulary is learnt here; weights are drawn from torch's global generator.
        `temperature` is in cosine, `noise` the largest norm of what `fit` adds to an embedding, whose own is
        1; both were chosen on 593 held-out images of Flickr8k's training split (CIDEr-D 52.5, 53.5, 51.3,
        51.0 at 0.02, 0.03, 0.04, 0.05; 52.6 with noise up to 1.5, 53.5 up to 2)."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if len(captions) != len(embeddings) or len(captions) < 2:
            raise ValueError(
                f"{len(captions)} captions and {len(embeddings)} embeddings; a decoder needs two captions or more, and "
                "one embedding for each"
            )
        if temperature <= 0 or noise < 0:
            raise ValueError(
                f"temperature {temperature} and noise {noise}; give a temperature over 0 and a noise of 0 or more"
            )
        tokenizer = Tokenizer(models.BPE())  # over bytes: no text holds an unknown letter
        tokenizer.pre_tokenizer, tokenizer.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=True),
            decoders.ByteLevel(),
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(captions, trainer)
        longest = min(LONGEST, 1 + max(len(encoding.ids) for encoding in tokenizer.encode_batch(captions)))
        return cls(
            tokenizer,
            embeddings.cpu(),
            dict(
                format=FORMAT,
                text_sha256=text_sha256,
                vocab=tokenizer.get_vocab_size(),
                width=width,
                layers=layers,
                heads=heads,
                dropout=dropout,
                longest=longest,
                temperature=temperature,
                noise=noise,
            ),
        )

    def project(self, embeddings):
        """(B, Dt) -> (B, Dt) unit rows: the mean of the remembered embeddings, weighted by softmax(cosine /
        temperature)."""
        scores = F.normalize(embeddings, dim=-1) @ self.memory.T / self.config["temperature"]  # (B, M)
        return F.normalize(scores.softmax(-1) @ self.memory, dim=-1)

    def forward(self, projected, tokens):
        """Mean cross-entropy of tokens (B, T) int64 (-100: padding at the end), given what stands for their
        captions (B, Dt)."""
        read = torch.cat(
            [self.prefix(projected)[:, None], self.network.transformer.wte(tokens[:, :-1].clamp_min(0))], 1
        )  # (B, T, W)
        hidden = self.network.transformer(inputs_embeds=read, use_cache=False).last_hidden_state
        real = tokens >= 0
        return F.cross_entropy(self.network.lm_head(hidden[real]), tokens[real])

    def fit(self, captions, epochs=6, batch_size=64, lr=1.5e-3, weight_decay=0.1, least_steps=300):
        """Train on the captions it was built from, which stand in its memory in this order; a small
        collection is passed over until `least_steps` are done. Yields (steps in all, loss) after each step.
        Randomness comes from torch's global generator: on a CPU the same seed gives the same weights.
        ValueError when the loss is no longer finite."""
        device, count = self.memory.device, len(captions)
        if count != len(self.memory):
            raise ValueError(
                f"{count} captions, but this decoder was built from {len(self.memory)}; fit takes the same"
            )
        tokens = [
            torch.tensor((e.ids + [END])[: self.config["longest"]])
            for e in self.tokenizer.encode_batch(captions)
        ]
        centred = self.memory - self.memory.mean(0)
        per_epoch = math.ceil(count / batch_size)
        steps = max(epochs * per_epoch, least_steps)
        groups = [
            dict(params=[p for p in self.parameters() if p.dim() > 1], weight_decay=weight_decay),
            dict(params=[p for p in self.parameters() if p.dim() <= 1], weight_decay=0.0),
        ]
        optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
        self.train()
        for step in range(steps):
            if step % per_epoch == 0:
                batches = batches_by_length([len(t) for t in tokens], batch_size)
            batch = batches[step % per_epoch]
            for group in optimiser.param_groups:  # a short rise, then half a cosine down to 0
                group["lr"] = (
                    lr * min(1, (step + 1) / (0.05 * steps)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
                )
            target = nn.utils.rnn.pad_sequence(
                [tokens[i] for i in batch.tolist()], batch_first=True, padding_value=-100
            ).to(device)
            batch = batch.to(device)
            # A predictor errs towards other captions, not in any direction: the noise is a random mixture of
            # captions.
            others = centred[torch.randint(count, (256,), device=device)]
            mixture = (
                torch.randn(len(batch), 256, device=device) @ others / 16
            )  # (B, Dt), the captions' own covariance
            noise = self.config["noise"] * torch.rand(len(batch), 1, device=device) * mixture
            loss = self(self.project(self.memory[batch] + noise), target)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimiser.step()
            value = loss.item()
            if not math.isfinite(value):
                raise ValueError(
                    f"loss is {value} at step {step + 1} of {steps}; try a lower learning rate than {lr}"
                )
            yield steps, value
        self.eval()

    @torch.no_grad()
    def write(self, embeddings, beams=3):
        """(B, Dt) embeddings, predicted or true -> B captions, each the best of a beam search."""
        if embeddings.dim() != 2 or embeddings.shape[1] != self.memory.shape[1]:
            raise ValueError(
                f"embeddings of shape {tuple(embeddings.shape)}; this decoder reads (B, {self.memory.shape[1]})"
            )
        self.eval()
        captions = []
        for rows in embeddings.to(self.memory.device, torch.float32).split(64):
            prefix = self.prefix(self.project(rows))[:, None]  # (B, 1, W)
            tokens = self.network.generate(
                inputs_embeds=prefix,
                attention_mask=prefix.new_ones(prefix.shape[:2], dtype=torch.long),
                num_beams=beams,
                do_sample=False,
                max_new_tokens=self.config["longest"],
            )
            captions += [caption.strip() for caption in self.tokenizer.decode_batch(tokens.tolist())]
        return captions

    def save(self, folder):
        """Write config.json, model.safetensors and tokenizer.json. The folder is made beside its place and
        moved there whole."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        new, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("new", "old"))
        try:
            new.mkdir()
            state = self.state_dict() | dict(memory=self.memory.half())
            del state["network.lm_head.weight"]  # the token embeddings once more
            (new / "model.safetensors").write_bytes(save(state))
            self.tokenizer.save(str(new / "tokenizer.json"))
            config = self.config | dict(
                sha256={name: hashlib.sha256((new / name).read_bytes()).hexdigest() for name in FILES}
            )
            (new / "config.json").write_text(json.dumps(config, indent=1) + "\n")
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    @classmethod
    def load(cls, folder, device="cpu", text_sha256=None):
        """The decoder that `save` wrote. FileNotFoundError when there is none; ValueError when a file is
        damaged or foreign, or when it reads another text tower than the one of SHA-256 `text_sha256`."""
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder}: no decoder there; train one: python -m apps.decode train --run {folder.parent}"
            )
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except ValueError as error:
            raise ValueError(
                f"{folder / 'config.json'}: not JSON ({error}); train the decoder again"
            ) from None
        if (
            not isinstance(config, dict)
            or config.get("format") != FORMAT
            or any(key not in config for key in NEEDED)
        ):
            raise ValueError(
                f"{folder}: not a decoder of this project's apps.decode (no format {FORMAT!r} in its config.json)"
            )
        # Checked before anything is parsed: files of two savings don't mix, and a flipped bit does not become
        # a word.
        for name in FILES:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != config["sha256"].get(name):
                raise ValueError(
                    f"{folder / name}: damaged, its SHA-256 {found} is not that of config.json; train the decoder again"
                )
        if text_sha256 not in (None, config["text_sha256"]):
            raise ValueError(
                f"{folder}: reads embeddings of the text tower with SHA-256 {config['text_sha256']}, but this one has "
                f"{text_sha256}; train the decoder again"
            )
        state = load_file(folder / "model.safetensors")
        decoder = cls(Tokenizer.from_file(str(folder / "tokenizer.json")), state["memory"], config)
        decoder.load_state_dict(state | {"network.lm_head.weight": state["network.transformer.wte.weight"]})
        return decoder.to(device).eval()


def batches_by_length(lengths, batch_size):
    """One epoch's random batches (indices, int64) of items of alike length: each run of 50 batches is sorted,
    so little is padding."""
    order = torch.randperm(len(lengths))
    lengths = torch.tensor(lengths)
    runs = [run[lengths[run].argsort(stable=True)] for run in order.split(50 * batch_size)]
    batches = [batch for run in runs for batch in run.split(batch_size)]
    return [batches[i] for i in torch.randperm(len(batches)).tolist()]
