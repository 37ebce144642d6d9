"""The text tower: against plain sentence-transformers, and against texts, folders and names that are not what
they seem."""

import json
import shutil
import time

import pytest
import torch
import torch.nn.functional as F

from models.text import TEXT_ENCODERS, TextEncoder

TEXTS = [
    "A man riding a horse on the beach.",
    "NA",
    "",
    "two dogs",
    "a " * 400 + "cat",
    "Ünïcode — 日本語 🐕",
    "two  dogs",
    "word",
]


@pytest.fixture(scope="session")
def rows(minilm):
    return minilm.encode(TEXTS)


def test_encode_gives_unit_float32_rows(minilm, rows):
    assert rows.shape == (len(TEXTS), 384) and rows.dtype == torch.float32 and minilm.dim == 384
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(TEXTS)), atol=1e-6)


def test_encode_equals_plain_sentence_transformers(minilm, rows):
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(str(minilm.path), device="cpu", local_files_only=True)
    reference = torch.stack(
        [plain.encode(text, convert_to_tensor=True, normalize_embeddings=True).cpu() for text in TEXTS]
    )
    assert (rows - reference).abs().max() < 1e-5


def test_tokens_are_the_states_that_a_row_is_the_mean_of(minilm, rows):
    states = minilm.encode_tokens(TEXTS)
    means = torch.stack([tokens.mean(0) for tokens in states])
    assert (F.normalize(means, dim=1) - rows).abs().max() < 1e-6
    assert len(states[3]) == 4 and states[3].dtype == torch.float32  # two dogs, and a token at either end
    assert minilm.encode_tokens([]) == []
    assert len(minilm.encode_tokens(["dog " * 300])[0]) == 256


def test_encode_knows_what_sentences_mean(minilm):
    horse, ride, soup = minilm.encode(
        ["a man rides a horse", "somebody on horseback", "a bowl of tomato soup"]
    )
    assert horse @ ride > 0.5 > 0.2 > horse @ soup


def test_encode_does_not_depend_on_order_or_batch(minilm, rows):
    order = torch.tensor([3, 0, 7, 4, 1, 6, 2, 5])
    assert (minilm.encode([TEXTS[i] for i in order]) - rows[order]).abs().max() < 1e-5
    assert (minilm.encode(TEXTS[3:4]) - rows[3:4]).abs().max() < 1e-5


def test_encode_takes_an_empty_text(minilm):
    row = minilm.encode([""])
    assert torch.isfinite(row).all() and abs(row.norm() - 1) < 1e-6


def test_encode_of_nothing_keeps_the_width(minilm):
    assert minilm.encode([]).shape == (0, 384) and minilm.encode([]).dtype == torch.float32


@pytest.mark.parametrize("wrong", [None, float("nan"), 3, b"bytes", ["nested"]], ids=repr)
def test_encode_refuses_what_is_not_text(minilm, wrong):
    with pytest.raises(TypeError, match="texts must be str"):
        minilm.encode(["fine", wrong])


def test_encode_refuses_a_single_string(minilm):
    with pytest.raises(TypeError):
        minilm.encode("a dog")


def test_encode_cuts_long_texts_at_256_tokens(minilm):
    long = "dog " * 300
    a, b, c = minilm.encode([long, long + "cat", "cat " + long])
    assert (a - b).abs().max() < 1e-5 < 1e-3 < (a - c).abs().max()


def test_encode_rows_can_enter_training(minilm):
    rows = minilm.encode(["two dogs"])
    assert not rows.requires_grad and not rows.is_inference()
    head = torch.nn.Linear(384, 2)
    head(rows).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_local_folder_gives_the_same_rows_and_key(minilm, rows, tmp_path):
    copy = tmp_path / "my model"
    shutil.copytree(minilm.path, copy)
    tower = TextEncoder("cpu", str(copy))
    assert (tower.sha256, tower.key) == (minilm.sha256, minilm.key)
    assert type(tower.network) is not type(minilm.network) and tower.dim == minilm.dim
    assert (tower.encode(TEXTS) - rows).abs().max() < 1e-6
    for own, other in zip(tower.encode_tokens(TEXTS), minilm.encode_tokens(TEXTS)):
        assert own.shape == other.shape and (own - other).abs().max() < 1e-5
    for left in (".DS_Store", "1_Pooling/._config.json", ".git/FETCH_HEAD", "Thumbs.db"):
        (copy / left).parent.mkdir(exist_ok=True)
        (copy / left).write_text("left by Finder, Git or Explorer")
    assert TextEncoder("cpu", str(copy)).key == minilm.key
    tokenizer = copy / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    # Settings count: other embeddings must not be taken from the cache.
    assert TextEncoder("cpu", str(copy)).key != minilm.key


def test_tokens_leave_out_the_padding_wherever_it_stands(minilm, tmp_path):
    copy = tmp_path / "left"
    shutil.copytree(minilm.path, copy)
    config = copy / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(padding_side="left")))
    tower = TextEncoder("cpu", str(copy))
    long, short = tower.encode_tokens(["a dog that runs on the beach", "two dogs"])
    assert len(short) == 4 and len(long) == 9
    (alone,) = tower.encode_tokens(["two dogs"])
    assert alone.shape == short.shape


def test_tower_without_a_transformer_has_no_tokens(minilm, tmp_path):
    """A static model, such as potion, looks its words up and pools them at once."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm.path / "tokenizer.json"))
    static = StaticEmbedding(tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    tower = TextEncoder("cpu", str(tmp_path / "static"))
    assert tower.encode(["two dogs"]).shape == (1, 8)
    with pytest.raises(ValueError, match="static: .* transformer"):
        tower.encode_tokens(["two dogs"])


def test_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        TextEncoder("cpu", str(tmp_path))


def test_package_with_another_hash_is_refused(minilm, tmp_path, monkeypatch):
    package = tmp_path / "flipped_minilm"
    shutil.copytree(minilm.path, package / "model")
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    with open(package / "model" / "model.safetensors", "r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        TEXT_ENCODERS, "flipped", TEXT_ENCODERS["all-MiniLM-L6-v2"] | dict(package="flipped_minilm/model")
    )
    with pytest.raises(
        ValueError, match="model.safetensors: SHA-256 [0-9a-f]{64} is not that of flipped .*53aa51172d14"
    ):
        TextEncoder("cpu", "flipped")


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "not a name!", "/no/such/folder"])
def test_unknown_name_without_a_hub_fails_fast_and_says_what_to_do(no_hub, name):
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=f"text tower {name}.*local folder"):
        TextEncoder("cpu", name)
    assert time.perf_counter() - start < 5


def test_packaged_tower_needs_no_hub_and_builds_nothing_until_asked(no_hub):
    tower = TextEncoder("cpu")
    assert (
        "network" not in vars(tower)
        and tower.sha256 == TEXT_ENCODERS["all-MiniLM-L6-v2"]["sha256"]["model.safetensors"]
    )


def test_folder_that_is_no_model_is_not_read_through(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="not a model's folder"):
        TextEncoder("cpu", str(tmp_path))


def test_only_the_weights_that_are_read_are_hashed(minilm, tmp_path, monkeypatch):
    model = tmp_path / "forged_minilm" / "model"
    shutil.copytree(minilm.path, model)
    shutil.copy(model / "model.safetensors", model / "1_Pooling" / "model.safetensors")
    with open(model / "model.safetensors", "r+b") as file:
        file.seek(50_000_000)
        file.write(bytes(1000))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        TEXT_ENCODERS, "forged", TEXT_ENCODERS["all-MiniLM-L6-v2"] | dict(package="forged_minilm/model")
    )
    (tmp_path / "forged_minilm" / "__init__.py").write_text("")
    with pytest.raises(ValueError, match="model/model.safetensors: SHA-256"):
        TextEncoder("cpu", "forged")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_tokenizer_of_other_content_is_refused_by_name(damage, minilm, tmp_path, monkeypatch):
    """The package is a third party's: its tokenizer is checked as its weights are."""
    model = tmp_path / "damaged_minilm" / "model"
    shutil.copytree(minilm.path, model)
    (model.parent / "__init__.py").write_text("")
    tokenizer = model / "tokenizer.json"
    tokenizer.unlink() if damage == "missing" else tokenizer.write_bytes(tokenizer.read_bytes()[:1000])
    monkeypatch.syspath_prepend(tmp_path)
    spec = TEXT_ENCODERS["all-MiniLM-L6-v2"] | dict(package="damaged_minilm/model")
    monkeypatch.setitem(TEXT_ENCODERS, "damaged", spec)
    with pytest.raises(ValueError, match=str(tokenizer)):
        TextEncoder("cpu", "damaged")


def test_text_tower_is_not_fetched_without_being_asked_for(no_hub):
    with pytest.raises(FileNotFoundError, match="somebody/model.*not fetched"):
        TextEncoder("cpu", "somebody/model", download=False)


def test_encode_refuses_half_a_character(minilm):
    with pytest.raises(ValueError, match="half a character"):
        minilm.encode(["fine", "caf\udce9"])


def test_rows_are_the_same_elsewhere(minilm, rows, monkeypatch):
    assert torch.equal(TextEncoder("cpu:0").encode(TEXTS), rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(minilm.encode(TEXTS), rows)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert (TextEncoder("cpu").encode(TEXTS) - rows).abs().max() < 1e-6
