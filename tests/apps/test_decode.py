"""apps/decode: scores against pycocoevalcap, the consensus against a naive loop, and the commands on the tiny
run."""

import json
import random
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tqdm import tqdm

from apps.decode import __main__ as decode
from apps.decode import llm as language
from apps.decode.scores import bleu4, counts, intervals, words
from models.dataset import read_rows

ROOT = Path(__file__).parents[2]


def test_words_are_lower_case_without_punctuation():
    text = ' A man\'s dog , "Rex" , runs!  Two-legged Käfer, 3 of_them .'
    assert words(text) == "a man's dog rex runs two legged käfer 3 of them"
    assert words("...") == ""


@pytest.fixture(scope="module")
def people():
    """(one caption, references) of the drawn archive's first 60 images: one person's caption, and the
    others'."""
    texts = {}
    for row in read_rows(ROOT / "caption.csv"):
        texts.setdefault(row.image_name, []).append(row.text)
    texts = list(texts.values())[:60]
    return [t[0] for t in texts], [t[1:] for t in texts]


def test_scores_are_those_of_pycocoevalcap(people):
    """Clipping, closest length and brevity, over all images and over a resample of them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    written, references = people
    rows, cider = counts(written, references)
    for chosen in (list(range(60)), random.Random(0).choices(range(60), k=60)):
        gts = {n: [words(text) for text in references[i]] for n, i in enumerate(chosen)}
        res = {n: [words(written[i])] for n, i in enumerate(chosen)}
        peer = Bleu(4).compute_score(gts, res, verbose=0)[0][3]
        assert bleu4(rows[chosen].sum(0)).item() == pytest.approx(peer, abs=1e-6)
        if chosen == sorted(chosen):
            assert cider.mean().item() == pytest.approx(Cider().compute_score(gts, res)[0])


def test_scores_order_copies_people_and_nonsense(people):
    """Catches a metric read upside down, and a broken writer that scores well: one caption for all images, or
    none."""
    written, references = people
    writers = dict(
        copy=[texts[0] for texts in references],
        person=written,
        shuffled=written[1:] + written[:1],
        none=[""] * 60,
        one=[written[0]] * 60,
    )
    score = {name: [found[0] for found in intervals(*counts(w, references))] for name, w in writers.items()}
    assert score["copy"][0] == pytest.approx(100)
    for metric in (0, 1):
        order = [score[name][metric] for name in ("copy", "person", "shuffled", "none")]
        assert order == sorted(order, reverse=True) and order[-1] == pytest.approx(0, abs=1e-6)
    assert score["one"][1] < 0.2 * score["person"][1]


def test_intervals_hold_the_value_and_narrow_with_more_images(people):
    rows, cider = counts(*people)
    few, many = intervals(rows, cider), intervals(rows.repeat(9, 1), cider.repeat(9))
    for (value, low, high), (same, nearer_low, nearer_high) in zip(few, many):
        assert low < value < high and value == pytest.approx(same)
        assert nearer_high - nearer_low == pytest.approx((high - low) / 3, rel=0.2)
    assert intervals(rows, cider, seed=1) != few == intervals(rows, cider)


def test_score_of_a_single_image_is_refused():
    """Catches CIDEr's silent zero."""
    with pytest.raises(ValueError, match="1 images"):
        counts(["a dog"], [["a dog", "the dog"]])


def test_consensus_is_the_naive_loop_and_passes_over_an_odd_caption():
    generator = torch.Generator().manual_seed(0)
    memory, predicted = (F.normalize(torch.randn(n, 6, generator=generator), dim=-1) for n in (50, 7))
    for row, got in zip(predicted, decode.consensus(predicted, memory, 5)):
        near = sorted(range(50), key=lambda i: -float(row @ memory[i]))[:5]
        agreement = {i: sum(float(memory[i] @ memory[j]) for j in near) / 5 for i in near}
        assert got == max(near, key=lambda i: float(row @ memory[i]) + agreement[i])
    crowd = torch.tensor([[1.0, 0.1, 0.5], [1.0, 0.0, 0.5], [1.0, 0.2, 0.5], [1.0, 0.0, -0.3]])
    crowd, query = F.normalize(crowd, dim=-1), torch.tensor([[1.0, 0.0, 0.0]])
    assert (query @ crowd.T).argmax() == 3
    assert decode.consensus(query, crowd) == 1


# The commands


def call(run, command, *flags):
    where = ("--run", run.folder, "--cache", run.cache, "--device", "cpu")
    return decode.main([command, *map(str, flags), *map(str, where)])


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run with a decoder in it."""
    folder = tmp_path_factory.mktemp("decode") / "run"
    shutil.copytree(tiny_run.folder, folder)
    run = tiny_run._replace(folder=folder)
    smallest = ("--epochs", 0, "--width", 16, "--layers", 1, "--vocab", 257, "--quiet")
    assert call(run, "train", *smallest) == 0
    return run


def test_caption_answers_files_and_folders_in_every_way(run, tmp_path, capsys):
    """Catches answers beside the wrong image, and names that are not ASCII."""
    folder = tmp_path / "草 ü"
    folder.mkdir()
    first, second = run.images / run.names[1], run.images / run.names[3]
    shutil.copy(second, folder / "b é.jpg")
    shutil.copy(first, folder / "a.jpg")
    assert call(run, "caption", second, folder, "--nearest", 2) == 0
    blocks = capsys.readouterr().out.strip().split(f"{folder}/")
    lines = [block.splitlines() for block in blocks]
    assert [line.split()[0] for line in lines[0][1:3]] == ["written", "consensus"] and len(lines[0]) == 5
    assert [block[0] for block in lines] == [str(second), "a.jpg", "b é.jpg"]
    assert lines[0][1:] == lines[2][1:] != lines[1][1:]


def test_one_bad_image_does_not_lose_the_other_captions(tiny_run, tmp_path, capsys):
    for name in ("a.jpg", "c.jpg"):
        shutil.copy(tiny_run.images / tiny_run.names[0], tmp_path / name)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    (tmp_path / "Thumbs.db").touch()
    assert call(tiny_run, "caption", tmp_path) == 1
    out, err = capsys.readouterr()
    assert "a.jpg" in out and "c.jpg" in out and "b.jpg: " in err and "Thumbs.db" not in out


def test_caption_without_a_decoder_warns_and_still_finds(tiny_run, capsys):
    assert call(tiny_run, "caption", tiny_run.images) == 0
    out, err = capsys.readouterr()
    assert "apps.decode train --run" in err and "written" not in out
    assert out.count("consensus") == len(tiny_run.names)


def test_score_prints_every_row_and_leaves_training_images_out(run, capsys):
    assert call(run, "score", "--csv", run.csv, "--held-out", "--quiet") == 0
    table = capsys.readouterr().out
    rows = ("a random training caption", "nearest training", "consensus of the 40", "decoder  ", "a person (")
    assert all(row in table for row in rows) and "flatters" not in table
    held_out = len(run.names) - len(run.trained_on)
    assert f": {held_out} images" in table
    assert call(run, "score", "--csv", run.csv, "--quiet") == 0
    assert f"note: {len(run.trained_on)} of these {len(run.names)} images" in capsys.readouterr().out


def test_wrong_input_is_one_line(run, tmp_path, capsys):
    empty, no_image, nothing = tmp_path / "empty", tmp_path / "no.jpg", tmp_path / "none"
    empty.mkdir()
    no_image.write_text("no image")
    elsewhere = run._replace(folder=nothing)
    for run_, flags, named in (
        (run, ("caption", nothing), nothing),
        (run, ("caption", no_image), no_image),
        (run, ("caption", empty), empty),
        (run, ("caption", no_image, "--beams", 0), "--beams"),
        (run, ("caption", run.images, "--llm", nothing), nothing),
        (run, ("score", "--csv", nothing), nothing),
        (run, ("train", "--temperature", 0), "temperature 0"),
        (run, ("train", "--width", 10), "10"),
        (elsewhere, ("train",), nothing),
    ):
        assert call(run_, *flags) == 1, flags
        err = capsys.readouterr().err
        assert err.startswith("decode: ") and str(named) in err and "Traceback" not in err
    with pytest.raises(SystemExit, match="2"):
        decode.main(["caption"])


class Interrupts:
    """A terminal on which Ctrl-C is pressed when the progress bar appears; later text is kept."""

    def __init__(self):
        self.pressed, self.text = False, ""

    def write(self, text):
        self.text += text
        if "step/s" in text and not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt

    def flush(self):
        pass


def test_interrupt_in_training_keeps_the_earlier_decoder(run, monkeypatch):
    before = {path.name: path.read_bytes() for path in (run.folder / "decoder").iterdir()}
    terminal = Interrupts()
    monkeypatch.setattr(sys, "stderr", terminal)
    # tqdm is interrupted while it draws, and keeps its lock: not the one that later tests need.
    monkeypatch.setattr(tqdm, "_lock", threading.RLock(), raising=False)
    assert call(run, "train") == 130
    assert terminal.pressed and terminal.text.endswith("the earlier decoder is kept\n")
    assert {path.name: path.read_bytes() for path in (run.folder / "decoder").iterdir()} == before
    assert not list(run.folder.glob(".decoder*"))


# A language model


@pytest.fixture
def llm(run, tmp_path):
    """A folder with a tiny causal language model of random weights and a tokenizer of bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(run.folder / "decoder" / "tokenizer.json"), eos_token="<end>"
    )
    tokenizer.save_pretrained(tmp_path / "llm")
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = LlamaConfig(
        vocab_size=300, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


CHAT = "<{{ messages[0]['content'] }}>{% if add_generation_prompt %}:{% endif %}"


@pytest.mark.parametrize(
    "template, prompt",
    [
        (None, f"{language.EXAMPLES}Captions: a dog | two dogs\nOne caption:"),
        (CHAT, f"<{language.INSTRUCTION}\n\n- a dog\n- two dogs>:"),
    ],
    ids=["plain", "chat"],
)
def test_llm_reads_the_captions_in_its_own_form(llm, template, prompt):
    """Catches a chat model with a bare prompt, captions that never arrive, and an answer that repeats the
    prompt."""
    model = language.LanguageModel(str(llm), "cpu")
    model.tokenizer.chat_template = template
    inputs = model.tokenizer(prompt, return_tensors="pt")
    tokens = model.network.generate(**inputs, max_new_tokens=60, do_sample=False, pad_token_id=0)
    answer = model.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert model.summarise(["a dog", "two dogs"]) == (answer.strip().splitlines() or [""])[0].strip()


def test_caption_prints_what_the_llm_writes(run, llm, capsys):
    assert call(run, "caption", run.images / run.names[0], "--llm", llm) == 0
    assert "\n  rewritten  " in capsys.readouterr().out


def test_llm_runs_no_code_and_reads_no_pickle(llm, tmp_path):
    marker = tmp_path / "executed"
    (llm / "strange.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((llm / "config.json").read_text())
    strange = dict(AutoConfig="strange.Config", AutoModelForCausalLM="strange.Model")
    (llm / "config.json").write_text(json.dumps(config | dict(model_type="strange", auto_map=strange)))
    with pytest.raises(ValueError, match="trust_remote_code|strange"):
        language.LanguageModel(str(llm), "cpu")
    assert not marker.exists()
    (llm / "config.json").write_text(json.dumps(config))
    next(llm.glob("*.safetensors")).unlink()
    torch.save({}, llm / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        language.LanguageModel(str(llm), "cpu")
