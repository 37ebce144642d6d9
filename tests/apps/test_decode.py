"""models/decoder.py and apps/decode.py: the decoder against naive loops, the scores against pycocoevalcap's own, and the commands
on a tiny run."""

import json
import random
import shutil
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from apps import decode
from models.dataset import read_captions
from models.decoder import FILES, Decoder, batches_by_length

ROOT = decode.Path(__file__).parents[2]
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
    """Four animals in three colours at two places, learnt in 300 steps."""
    torch.manual_seed(0)
    made = Decoder.build(CAPTIONS, embeddings, SHA256, noise=0.5, dropout=0.0, **TINY)
    for _ in made.fit(CAPTIONS, epochs=1, lr=5e-3, least_steps=300):
        pass
    return made


def small(captions=CAPTIONS, width=8, **options):
    """An untrained decoder of random embeddings."""
    torch.manual_seed(0)
    return Decoder.build(
        captions,
        F.normalize(torch.randn(len(captions), width), dim=-1),
        SHA256,
        **(TINY | dict(dropout=0.0) | options),
    )


def test_decoder_writes_what_an_embedding_says(decoder, minilm):
    """Catches a decoder that reads no embedding (its captions would be one fluent sentence for all), and one that can only
    repeat: none of these sentences was in training."""
    asked = [
        f"a photo of the {colour} {animal} {place}"
        for animal in ("horse", "whale")
        for colour in ("red", "black")
        for place in ("on a beach", "in the snow")
    ]
    written = decoder.write(minilm.encode(asked))
    right = [
        sum(word in text.split() for word in (sentence.split()[4], sentence.split()[5], sentence.split()[-1]))
        for sentence, text in zip(asked, written)
    ]
    assert sum(right) >= 20, written  # of 24 words
    wrong = decoder.write(minilm.encode(asked).flip(0))
    assert wrong == written[::-1]


def test_write_with_one_beam_is_the_naive_greedy_loop(decoder, embeddings):
    """Catches a prefix that generate drops or sees twice, positions that are shifted by one, and a cache that disagrees."""
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


def test_more_beams_never_write_a_less_likely_caption_on_average(decoder, embeddings):
    """Catches beams that are ignored, or searched for the worst."""

    def likelihood(beams):
        texts = decoder.write(embeddings[:12], beams)
        losses = [
            decoder(
                decoder.project(row[None]), torch.tensor([decoder.tokenizer.encode(text).ids + [0]])
            ).item()
            for row, text in zip(embeddings, texts)
        ]
        return -np.mean(losses)

    with torch.no_grad():
        assert likelihood(5) >= likelihood(1) - 1e-5


def test_captions_of_a_batch_are_those_of_each_row_alone(decoder, embeddings):
    """Catches rows that leak into each other, also across the chunks of 64."""
    rows = embeddings.repeat(2, 1)
    together = decoder.write(rows)
    assert together == decoder.write(embeddings) * 2
    assert together[:5] == [decoder.write(row[None])[0] for row in rows[:5]]


def test_loss_is_the_naive_sum_and_padding_counts_for_nothing():
    """Catches targets shifted by one, and a loss that also learns the padding."""
    made = small().eval()
    rows, tokens = made.memory[:2], [[5, 9, 7, 0], [6, 0]]
    with torch.no_grad():
        loss = made(rows, torch.tensor([tokens[0], tokens[1] + [-100, -100]]))
        naive = []
        for row, caption in zip(rows, tokens):
            for i, token in enumerate(caption):
                read = torch.cat(
                    [
                        made.prefix(row)[None],
                        made.network.transformer.wte(torch.tensor(caption[:i], dtype=torch.long)),
                    ]
                )
                naive.append(-made.network(inputs_embeds=read[None]).logits[0, -1].log_softmax(-1)[token])
    torch.testing.assert_close(loss, torch.stack(naive).mean())


def test_project_is_the_naive_weighted_mean():
    """Catches a softmax over the wrong axis, a temperature that multiplies, and rows that are no longer unit."""
    made = small(temperature=0.1)
    queries = torch.randn(3, 8)
    for query, got in zip(queries, made.project(queries)):
        weights = [np.exp(float(query @ m) / float(query.norm()) / 0.1) for m in made.memory]
        want = sum(w * m for w, m in zip(weights, made.memory))
        torch.testing.assert_close(got, want / want.norm(), rtol=1e-4, atol=1e-5)


def test_project_brings_a_stray_embedding_back_to_the_captions(decoder, embeddings):
    """Catches the gap it is there to bridge: what points away from all captions must be read as something among them."""
    stray = F.normalize(
        embeddings
        + 2 * torch.randn(1, embeddings.shape[1], generator=torch.Generator().manual_seed(0)) / 384**0.5,
        dim=-1,
    )
    assert (decoder.project(stray) @ embeddings.T).max(1).values.mean() > (stray @ embeddings.T).max(
        1
    ).values.mean() + 0.2


def test_fit_gives_the_same_weights_for_the_same_seed():
    """Catches order, noise or dropout drawn from somewhere that the seed does not reach."""

    def fitted(seed):
        torch.manual_seed(seed)
        made = Decoder.build(
            CAPTIONS, F.normalize(torch.arange(1.0, 48 * 8 + 1).view(48, 8).sin(), dim=-1), SHA256, **TINY
        )
        steps = [loss for _, loss in made.fit(CAPTIONS, epochs=1, batch_size=16, least_steps=0)]
        assert len(steps) == 3 and not made.training
        return made.state_dict()

    first, again, other = fitted(1), fitted(1), fitted(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["prefix.weight"], other["prefix.weight"])


def test_fit_takes_only_the_captions_it_was_built_from():
    """Catches captions paired with the embeddings of others."""
    with pytest.raises(ValueError, match="47 captions, but this decoder was built from 48"):
        next(small().fit(CAPTIONS[1:]))
    with pytest.raises(ValueError, match="2 captions and 3 embeddings"):
        Decoder.build(["a", "b"], torch.eye(3), SHA256)


def test_batches_hold_every_item_once_and_alike_lengths():
    """Catches items lost at the end of a run, and batches that are mostly padding."""
    lengths = [random.Random(i).randint(3, 40) for i in range(1003)]
    torch.manual_seed(0)
    batches = batches_by_length(lengths, 16)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(1003))
    assert max(map(len, batches)) == 16
    padded = sum(len(b) * max(lengths[i] for i in b.tolist()) for b in batches)
    assert padded < 1.05 * sum(lengths)
    assert [b.tolist() for b in batches] != [b.tolist() for b in batches_by_length(lengths, 16)]


def test_any_text_survives_the_tokenizer_and_long_captions_are_cut():
    """Catches letters the vocabulary has never seen, and a caption longer than the positions there are."""
    made = small(CAPTIONS[:-1] + ["word " * 200])
    for text in ("ein Käfer auf 草 🐞", "a  b", "tab\there"):
        assert made.tokenizer.decode(made.tokenizer.encode(text).ids).strip() == text
    assert made.config["longest"] == 64
    losses = [loss for _, loss in made.fit(CAPTIONS[:-1] + ["word " * 200], epochs=1, least_steps=0)]
    assert np.isfinite(losses).all()
    assert len(made.write(made.memory[:1])) == 1


def test_write_refuses_embeddings_of_another_width():
    """Catches a tower of another width that ends in a matrix error, or a single row without its batch."""
    for rows in (torch.zeros(2, 9), torch.zeros(8)):
        with pytest.raises(ValueError, match=r"reads \(B, 8\)"):
            small().write(rows)


def test_save_and_load_give_the_same_decoder(decoder, embeddings, tmp_path):
    """Catches anything that is not kept: weights, memory, vocabulary, temperature. The folder has no space, letters of no
    alphabet in common, and a decoder in it already."""
    folder = tmp_path / "läufe 草" / "decoder"
    small().save(folder)
    decoder.save(folder)
    loaded = Decoder.load(str(folder), "cpu", SHA256)
    assert not loaded.training and loaded.config["temperature"] == decoder.config["temperature"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in decoder.state_dict().items())
    assert loaded.write(embeddings) == decoder.write(embeddings)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["decoder"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", *FILES]


def test_load_refuses_what_it_should_not_read(tmp_path):
    """Catches embeddings of two towers mixed (no error, only wrong words), a flipped bit, half a folder, and a foreign one."""
    small().save(tmp_path / "decoder")
    with pytest.raises(ValueError, match="text tower with SHA-256 555"):
        Decoder.load(tmp_path / "decoder", text_sha256="6" * 64)
    with pytest.raises(FileNotFoundError, match="apps.decode train --run"):
        Decoder.load(tmp_path / "nothing")
    for name in FILES:
        shutil.copytree(tmp_path / "decoder", tmp_path / f"bad {name}")
        path = tmp_path / f"bad {name}" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: damaged"):
            Decoder.load(path.parent)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=name):
            Decoder.load(path.parent)
    for text in ("", "[]", "{}", json.dumps(dict(format="vl-jepa decoder 1")), '{"model_type": "gpt2"}'):
        (tmp_path / "decoder" / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json"):
            Decoder.load(tmp_path / "decoder")


def test_words_are_lower_case_without_punctuation():
    """Catches a rule that another side of the comparison does not share: case, marks, apostrophes, letters beyond ASCII."""
    assert (
        decode.words(' A man\'s dog , "Rex" , runs!  Two-legged Käfer, 3 of_them .')
        == "a man's dog rex runs two legged käfer 3 of them"
    )
    assert decode.words("...") == ""


@pytest.fixture(scope="module")
def people():
    """(references, one caption) of the drawn archive's first 60 images: what one person wrote, and what the others did."""
    texts = {}
    for row in read_captions(ROOT / "caption.csv"):
        texts.setdefault(row.image_name, []).append(row.caption)
    texts = list(texts.values())[:60]
    return [t[1:] for t in texts], [t[0] for t in texts]


def test_scores_are_those_of_pycocoevalcap(people):
    """Catches sums that are not BLEU's (clipping, closest length, brevity), over all images and over a resample of them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    references, written = people
    rows, cider = decode.counts(written, references)
    for chosen in (range(60), random.Random(0).choices(range(60), k=60)):
        gts = {n: [decode.words(t) for t in references[i]] for n, i in enumerate(chosen)}
        res = {n: [decode.words(written[i])] for n, i in enumerate(chosen)}
        assert decode.bleu4(rows[list(chosen)].sum(0)) == pytest.approx(
            Bleu(4).compute_score(gts, res, verbose=0)[0][3], abs=1e-6
        )
    gts, res = (
        dict(enumerate([[decode.words(t) for t in r] for r in references])),
        {i: [decode.words(t)] for i, t in enumerate(written)},
    )
    assert cider.mean() == pytest.approx(Cider().compute_score(gts, res)[0])


def test_scores_order_copies_people_and_nonsense(people):
    """Catches a metric read upside down, and a broken writer that looks good: one caption for every image, or none at all."""
    references, written = people
    written_by = dict(
        copy=[r[0] for r in references],
        person=written,
        one=[written[0]] * 60,
        shuffled=written[1:] + written[:1],
        none=[""] * 60,
    )
    score = {
        name: [value for value, _, _ in decode.intervals(*decode.counts(texts, references))]
        for name, texts in written_by.items()
    }
    assert score["copy"][0] == pytest.approx(100)
    for bleu_or_cider in (0, 1):
        order = [score[name][bleu_or_cider] for name in ("copy", "person", "shuffled", "none")]
        assert order == sorted(order, reverse=True) and order[-1] == pytest.approx(0, abs=1e-6)
    assert score["one"][1] < 0.2 * score["person"][1]


def test_intervals_hold_the_value_and_narrow_with_more_images(people):
    """Catches quantiles of the wrong axis, and weights that do not add up to all images."""
    rows, cider = decode.counts(people[1], people[0])
    few, many = decode.intervals(rows, cider), decode.intervals(np.tile(rows, (9, 1)), np.tile(cider, 9))
    for (value, low, high), (same, closer, lower) in zip(few, many):
        assert low < value < high and value == pytest.approx(same)
        assert (lower - closer) == pytest.approx((high - low) / 3, rel=0.2)
    assert decode.intervals(rows, cider, seed=1) != few and decode.intervals(rows, cider) == few


def test_score_of_a_single_image_is_refused():
    """Catches CIDEr's silent zero for one image, whose words all stand for every image there is."""
    with pytest.raises(ValueError, match="1 images"):
        decode.counts(["a dog"], [["a dog", "the dog"]])


def test_consensus_is_the_naive_loop_and_passes_over_an_odd_one():
    """Catches an average over the wrong axis, and neighbours that are numbered within themselves."""
    g = torch.Generator().manual_seed(0)
    memory, predicted = (
        F.normalize(torch.randn(50, 6, generator=g), dim=-1),
        F.normalize(torch.randn(7, 6, generator=g), dim=-1),
    )
    for row, got in zip(predicted, decode.consensus(predicted, memory, 5)):
        near = sorted(range(50), key=lambda i: -float(row @ memory[i]))[:5]
        assert got == max(
            near, key=lambda i: float(row @ memory[i]) + sum(float(memory[i] @ memory[j]) for j in near) / 5
        )
    crowd = F.normalize(
        torch.tensor([[1.0, 0.1, 0.5], [1.0, 0.0, 0.5], [1.0, 0.2, 0.5], [1.0, 0.0, -0.3]]), dim=-1
    )
    assert (torch.tensor([[1.0, 0.0, 0.0]]) @ crowd.T).argmax() == 3
    assert decode.consensus(torch.tensor([[1.0, 0.0, 0.0]]), crowd) == 1


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder trained on a dozen images of the drawn archive, and a decoder in it; beside it images and captions."""
    root = tmp_path_factory.mktemp("decode")
    rows = read_captions(ROOT / "caption.csv")
    names = sorted({row.image_name for row in rows})[:12]
    (root / "images").mkdir()
    for name in names:
        shutil.copy(ROOT / "my_image_archive" / name, root / "images" / name)
    lines = [f'{row.image_name},"{row.caption}"' for row in rows if row.image_name in names]
    (root / "captions.csv").write_text("image_name,comment\n" + "\n".join(lines) + "\n", encoding="utf-8")
    flags = [
        "--csv",
        root / "captions.csv",
        "--images",
        root / "images",
        "--cache",
        root / "cache.sqlite",
        "--run",
        root / "run",
        "--vision",
        "efficientnet-lite0",
        "--hidden",
        "16",
        "--epochs",
        "2",
        "--val-fraction",
        "0.3",
        "--device",
        "cpu",
        "--quiet",
    ]
    assert train.main(list(map(str, flags))) == 0
    assert (
        call(
            root / "run",
            "train",
            "--epochs",
            "0",
            "--width",
            "16",
            "--layers",
            "1",
            "--vocab",
            "257",
            "--quiet",
        )
        == 0
    )
    return root / "run"


def call(run, command, *flags):
    return decode.main(
        [
            command,
            *map(str, flags),
            "--run",
            str(run),
            "--cache",
            str(run.parent / "cache.sqlite"),
            "--device",
            "cpu",
        ]
    )


def test_caption_tells_files_and_folders_in_every_way(run, tmp_path, capsys):
    """Catches answers that stand beside the wrong image, names that are no ASCII, and the folder that is no image."""
    names = sorted(path.name for path in (run.parent / "images").iterdir())
    (tmp_path / "草 ü").mkdir()
    shutil.copy(run.parent / "images" / names[3], tmp_path / "草 ü" / "b é.jpg")
    shutil.copy(run.parent / "images" / names[1], tmp_path / "草 ü" / "a.jpg")
    assert call(run, "caption", run.parent / "images" / names[3], tmp_path / "草 ü", "--nearest", "2") == 0
    first, second, third = capsys.readouterr().out.strip().split(f"{tmp_path / '草 ü'}")
    assert [line.split()[0] for line in first.splitlines()[1:]][:2] == ["written", "consensus"]
    assert len(first.splitlines()) == 5 and second.startswith("/a.jpg\n") and third.startswith("/b é.jpg\n")
    assert first.splitlines()[1:] == third.splitlines()[1:] != second.splitlines()[1:]


def test_caption_without_a_decoder_says_so_and_still_finds(run, tmp_path, capsys):
    """Catches a quiet fall-back, and an app that is of no use before `train`."""
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("decoder"))
    flags = ["--run", str(tmp_path / "run"), "--cache", str(run.parent / "cache.sqlite")]
    assert decode.main(["caption", str(run.parent / "images"), *flags]) == 0
    out, err = capsys.readouterr()
    assert "apps.decode train --run" in err and "written" not in out and out.count("consensus") == 12


def test_score_prints_floor_decoder_and_ceiling(run, capsys):
    """Catches images trained on that are scored as new, and a row that is missing."""
    csv = run.parent / "captions.csv"
    assert call(run, "score", "--csv", csv, "--held-out", "--quiet") == 0
    table = capsys.readouterr().out
    for row in (
        "a random training caption",
        "nearest training caption",
        "consensus of the 40",
        "decoder  ",
        "a person (4 ",
        "DeCap 2023",
    ):
        assert row in table
    assert "which flatters" not in table
    images = int(table.split(": ")[1].split()[0])
    assert 2 <= images < 12
    assert call(run, "score", "--csv", csv, "--quiet") == 0
    assert f"note: {12 - images} of these 12 images" in capsys.readouterr().out


def test_wrong_input_is_told_in_one_line(run, tmp_path, capsys):
    """Catches tracebacks, and a failure that ends with 0."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.jpg").write_text("no image")
    for flags, told in (
        ((run, "caption", tmp_path / "none.jpg"), "none.jpg"),
        ((run, "caption", tmp_path / "no.jpg"), "no.jpg"),
        ((run, "caption", tmp_path / "empty"), "no files"),
        ((run, "caption", tmp_path / "no.jpg", "--beams", "0"), "--beams is 0"),
        ((run, "score", "--csv", tmp_path / "none.csv"), "none.csv"),
        ((run, "train", "--temperature", "0"), "temperature 0"),
        ((run, "train", "--width", "10"), "10"),
        ((tmp_path / "empty", "train"), "train first"),
    ):
        assert call(*flags) == 1
        err = capsys.readouterr().err
        assert err.startswith("decode: ") and told in err and "Traceback" not in err
    with pytest.raises(SystemExit, match="2"):
        decode.main(["caption"])


class Interrupts:
    """A terminal on which Ctrl-C is pressed when the progress bar shows up; after that it takes what is printed."""

    def __init__(self):
        self.pressed, self.text = False, ""

    def write(self, text):
        self.text += text
        if "step/s" in text and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt

    def flush(self):
        pass


def test_ctrl_c_in_training_keeps_the_decoder_that_was_there(run, monkeypatch):
    """Catches a half-trained decoder in the place of a good one, and a traceback as an answer to Ctrl-C."""
    before = {path.name: path.read_bytes() for path in (run / "decoder").iterdir()}
    terminal = Interrupts()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert call(run, "train") == 130
    assert terminal.pressed and terminal.text.endswith("interrupted; the decoder that was there is kept\n")
    assert {path.name: path.read_bytes() for path in (run / "decoder").iterdir()} == before
    assert not list(run.glob(".decoder*"))


@pytest.fixture
def llm(tmp_path):
    """A folder with a tiny causal language model of random weights and a tokenizer of bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=small().tokenizer, eos_token="<end>")
    tokenizer.save_pretrained(tmp_path / "llm")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


@pytest.mark.parametrize(
    "template", [None, "<{{ messages[0]['content'] }}>{% if add_generation_prompt %}:{% endif %}"]
)
def test_llm_is_given_the_captions_in_its_own_form(llm, template):
    """Catches a chat model that gets a bare prompt, captions that never arrive, and an answer with the prompt still in it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(llm)
    prompt = (
        f"<{decode.INSTRUCTION}\n\n- a dog\n- two dogs>:"
        if template
        else f"{decode.EXAMPLES}Captions: a dog | two dogs\nOne caption:"
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    network = AutoModelForCausalLM.from_pretrained(llm)
    tokens = network.generate(**inputs, max_new_tokens=60, do_sample=False, pad_token_id=0)[
        0, inputs["input_ids"].shape[1] :
    ]
    answer = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert decode.load_llm(str(llm), "cpu")(["a dog", "two dogs"]) == (answer.splitlines() or [""])[0].strip()


def test_caption_shows_what_the_llm_made(run, llm, capsys):
    """Catches a flag that is read and not used, and a name that does not exist told by a traceback."""
    image = next((run.parent / "images").iterdir())
    assert call(run, "caption", image, "--llm", llm) == 0
    assert "\n  rewritten  " in capsys.readouterr().out
    assert call(run, "caption", image, "--llm", llm / "nothing") == 1
    assert "nothing" in capsys.readouterr().err


def test_llm_runs_no_code_and_reads_no_pickle(llm, tmp_path):
    """Catches a stranger's folder that executes what it likes when it is loaded."""
    network = next(llm.glob("*.safetensors"))
    marker = tmp_path / "executed"
    (llm / "strange.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((llm / "config.json").read_text())
    strange = dict(AutoConfig="strange.Config", AutoModelForCausalLM="strange.Model")
    (llm / "config.json").write_text(json.dumps(config | dict(model_type="strange", auto_map=strange)))
    with pytest.raises(ValueError, match="trust_remote_code|strange"):
        decode.load_llm(str(llm), "cpu")
    assert not marker.exists()
    (llm / "config.json").write_text(json.dumps(config))
    network.unlink()
    torch.save({}, llm / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        decode.load_llm(str(llm), "cpu")
