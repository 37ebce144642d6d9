"""models/decoder.py against naive loops; one small decoder is trained once."""

import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.decoder import FILES, Decoder, batches_by_length

SHA256 = "5" * 64
TINY = dict(vocab=300, width=32, layers=1)
CAPTIONS = [
    f"{article} {colour} {animal} {place}"
    for animal in ("dog", "horse", "parrot", "whale")
    for colour in ("red", "white", "black")
    for place in ("on a beach", "in the snow")
    for article in ("a", "one")
]


@pytest.fixture(scope="module")
def embeddings(minilm):
    return minilm.encode(CAPTIONS).cpu()


@pytest.fixture(scope="module")
def decoder(embeddings):
    """Four animals in three colours at two places, learned in 200 steps."""
    torch.manual_seed(0)
    made = Decoder.build(CAPTIONS, embeddings, SHA256, noise=0.5, dropout=0.0, **TINY)
    for _ in made.fit(CAPTIONS, epochs=1, lr=5e-3, least_steps=200):
        pass
    return made


def small(captions=CAPTIONS, width=8, **options):
    """An untrained decoder of random embeddings."""
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(len(captions), width), dim=-1)
    return Decoder.build(captions, embeddings, SHA256, **(TINY | dict(dropout=0.0) | options))


def test_decoder_writes_what_a_new_embedding_means(decoder, minilm):
    """Catches a decoder that ignores the embedding, and one that repeats captions: none of these was in
    training."""
    asked = [
        f"a photo of the {colour} {animal} {place}"
        for animal in ("horse", "whale")
        for colour in ("red", "black")
        for place in ("on a beach", "in the snow")
    ]
    written = decoder.write(minilm.encode(asked))
    right = sum(
        sentence.split()[i] in text.split() for sentence, text in zip(asked, written) for i in (4, 5, -1)
    )
    assert right >= 20, written  # of 24 words
    assert decoder.write(minilm.encode(asked).flip(0)) == written[::-1]


def test_write_with_one_beam_is_the_naive_greedy_loop(decoder, embeddings):
    """Catches a prefix that is dropped or read twice, positions shifted by one, and a cache that
    disagrees."""
    for row, text in zip(embeddings[::7], decoder.write(embeddings[::7], beams=1)):
        read, tokens = decoder.prefix(decoder.project(row[None]))[:, None], []
        with torch.no_grad():
            while len(tokens) < decoder.config["longest"]:
                token = decoder.network(inputs_embeds=read).logits[0, -1].argmax()
                if token == 0:
                    break
                tokens.append(token.item())
                read = torch.cat([read, decoder.network.transformer.wte(token)[None, None]], 1)
        assert decoder.tokenizer.decode(tokens).strip() == text


@torch.no_grad()
def likelihood(decoder, embeddings, beams):
    losses = []
    for row, text in zip(embeddings, decoder.write(embeddings, beams)):
        tokens = torch.tensor([decoder.tokenizer.encode(text).ids + [0]])
        losses.append(decoder(decoder.project(row[None]), tokens).item())
    return -np.mean(losses)


def test_write_with_more_beams_finds_likelier_captions(decoder, embeddings):
    rows = embeddings[:12]
    assert likelihood(decoder, rows, 5) >= likelihood(decoder, rows, 1) - 1e-5


def test_write_gives_each_row_what_it_gives_it_alone(decoder, embeddings):
    """Catches rows that leak into each other, also across the chunks of 64."""
    together = decoder.write(embeddings.repeat(2, 1))
    assert together == decoder.write(embeddings) * 2
    assert together[:5] == [decoder.write(row[None])[0] for row in embeddings[:5]]


def test_write_weighs_likelihood_and_cosine_of_each_beam(decoder, embeddings):
    row, offered = embeddings[:1], []

    def only(number):
        """An encoder to which one of the beams is nearest, by far."""

        def encode(texts):
            offered[:] = texts
            return torch.stack([9 * row[0] if i == number else -row[0] for i in range(len(texts))])

        return encode

    for number in range(4):
        assert decoder.write(row, 4, only(number)) == [offered[number]]
    assert len(set(offered)) == 4
    assert decoder.write(row, 4, only(None)) == decoder.write(row, 4)  # equal cosines: the likeliest


def test_loss_is_the_naive_sum_without_padding():
    made = small().eval()
    rows, tokens = made.memory[:2], [[5, 9, 7, 0], [6, 0]]
    with torch.no_grad():
        loss = made(rows, torch.tensor([tokens[0], tokens[1] + [-100, -100]]))
        naive = []
        for row, caption in zip(rows, tokens):
            for i, token in enumerate(caption):
                before = made.network.transformer.wte(torch.tensor(caption[:i], dtype=torch.long))
                read = torch.cat([made.prefix(row)[None], before])
                naive.append(-made.network(inputs_embeds=read[None]).logits[0, -1].log_softmax(-1)[token])
    torch.testing.assert_close(loss, torch.stack(naive).mean())


def test_project_is_the_naive_weighted_mean():
    made = small(temperature=0.1)
    queries = torch.randn(3, 8)
    for query, got in zip(queries, made.project(queries)):
        weights = [np.exp(float(query @ m) / float(query.norm()) / 0.1) for m in made.memory]
        want = sum(w * m for w, m in zip(weights, made.memory))
        torch.testing.assert_close(got, want / want.norm(), rtol=1e-4, atol=1e-5)


def test_fit_gives_the_same_weights_for_the_same_seed():
    """Catches order, noise or dropout that the seed does not reach."""

    def fitted(seed):
        torch.manual_seed(seed)
        rows = F.normalize(torch.arange(1.0, 48 * 8 + 1).view(48, 8).sin(), dim=-1)
        made = Decoder.build(CAPTIONS, rows, SHA256, **TINY)
        steps = [loss for _, loss in made.fit(CAPTIONS, epochs=1, batch_size=16, least_steps=0)]
        assert len(steps) == 3 and not made.training
        return made.state_dict()

    first, again, other = fitted(1), fitted(1), fitted(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["prefix.weight"], other["prefix.weight"])


def test_wrong_captions_embeddings_or_options_are_refused():
    with pytest.raises(ValueError, match="47 captions, .* from 48"):
        next(small().fit(CAPTIONS[1:]))
    with pytest.raises(ValueError, match="2 captions and 3 embeddings"):
        Decoder.build(["a", "b"], torch.eye(3), SHA256)
    with pytest.raises(ValueError, match="temperature 0"):
        small(temperature=0)
    for rows in (torch.zeros(2, 9), torch.zeros(8)):
        with pytest.raises(ValueError, match=r"\(B, 8\)"):
            small().write(rows)


def test_batches_hold_every_item_once_with_little_padding():
    lengths = [random.Random(i).randint(3, 40) for i in range(1003)]
    torch.manual_seed(0)
    batches = batches_by_length(lengths, 16)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(1003))
    assert max(map(len, batches)) == 16
    padded = sum(len(b) * max(lengths[i] for i in b.tolist()) for b in batches)
    assert padded < 1.05 * sum(lengths)
    assert [b.tolist() for b in batches] != [b.tolist() for b in batches_by_length(lengths, 16)]


def test_tokenizer_keeps_any_text_and_long_captions_are_cut():
    captions = CAPTIONS[:-1] + ["word " * 200]
    made = small(captions)
    for text in ("ein Käfer auf 草 🐞", "a  b", "tab\there"):
        assert made.tokenizer.decode(made.tokenizer.encode(text).ids).strip() == text
    assert made.config["longest"] == 64
    assert np.isfinite([loss for _, loss in made.fit(captions, epochs=1, least_steps=0)]).all()
    assert len(made.write(made.memory[:1])) == 1


def test_load_gives_the_decoder_that_was_saved(decoder, embeddings, tmp_path):
    """The path is not ASCII and holds another decoder already."""
    folder = tmp_path / "läufe 草" / "decoder"
    small().save(folder)
    decoder.save(folder)
    loaded = Decoder.load(str(folder), "cpu", SHA256)
    assert not loaded.training and loaded.config["temperature"] == decoder.config["temperature"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in decoder.state_dict().items())
    assert loaded.write(embeddings) == decoder.write(embeddings)
    assert [path.name for path in folder.parent.iterdir()] == ["decoder"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", *FILES]


def test_save_that_fails_keeps_the_decoder_that_was_there(tmp_path):
    small().save(tmp_path / "decoder")
    before = {path.name: path.read_bytes() for path in (tmp_path / "decoder").iterdir()}
    made = small(CAPTIONS[1:])
    made.config["noise"] = {1, 2}  # not JSON: fails after the weights are written
    with pytest.raises(TypeError):
        made.save(tmp_path / "decoder")
    assert {path.name: path.read_bytes() for path in (tmp_path / "decoder").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["decoder"]


@pytest.mark.parametrize("name", FILES)
def test_load_refuses_a_damaged_or_missing_file(tmp_path, name):
    small().save(tmp_path / "decoder")
    path = tmp_path / "decoder" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        Decoder.load(path.parent)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Decoder.load(path.parent)


def test_load_refuses_another_text_tower_and_a_foreign_folder(tmp_path):
    small().save(tmp_path / "decoder")
    with pytest.raises(ValueError, match=SHA256):
        Decoder.load(tmp_path / "decoder", text_sha256="6" * 64)
    with pytest.raises(FileNotFoundError, match="nothing"):
        Decoder.load(tmp_path / "nothing")
    config = tmp_path / "decoder" / "config.json"
    for text in ("", "[]", "{}", json.dumps(dict(format="vl-jepa decoder 1")), '{"model_type": "gpt2"}'):
        config.write_text(text)
        with pytest.raises(ValueError, match="config.json"):
            Decoder.load(config.parent)
