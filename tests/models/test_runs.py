"""models/checkpoint.py: what was saved comes back, and nothing else is taken for it."""

import os
import pickle
import threading
from pathlib import Path

import pytest
import torch

from models import runs as checkpoint


def state():
    generator = torch.Generator().manual_seed(0)
    predictor = {
        "hidden.weight": torch.randn(30, 20, generator=generator),
        "hidden.bias": torch.randn(30, generator=generator),
    }
    return dict(
        predictor=predictor,
        config=dict(hidden_dim=30, dropout=0.5, gated=False),
        towers=dict(vision=dict(name="v", sha256="ab")),
        recipe=dict(lr=1e-3, csv="a.csv", vision=None),
        epoch=3,
        rng=torch.get_rng_state(),
        history=[dict(epoch=1, train_loss=0.5)],
        optimiser=dict(
            state={0: dict(step=torch.tensor(4.0))}, param_groups=[dict(lr=0.1, betas=(0.9, 0.999))]
        ),
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(state(), tmp_path / "run" / "last.pt")
    return tmp_path / "run" / "last.pt"


def refuses(path, *words):
    """load raises a ValueError that names the path and says each word."""
    with pytest.raises(ValueError) as error:
        checkpoint.load(path)
    for word in (str(path), *words):
        assert word in str(error.value)


class Bomb:
    """Unpickled without care, this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_checkpoint_round_trip_is_exact(saved):
    """Catches a type or number that comes back changed: resuming has to go on bit for bit."""
    loaded = checkpoint.load(saved)
    assert loaded.pop("format") == checkpoint.FORMAT
    assert same(loaded, state())


def test_checkpoint_loads_under_weights_only(saved):
    """Catches a Namespace, Path or numpy scalar in the file, which a safe loader refuses."""
    assert torch.load(saved, weights_only=True)["epoch"] == 3


@pytest.mark.parametrize("unpicklable", [lambda: 1, threading.Lock()], ids=["lambda", "lock"])
def test_failed_save_leaves_the_old_checkpoint_and_no_temporary(saved, unpicklable):
    """Catches a checkpoint that is opened for writing before its successor is whole."""
    before = saved.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        checkpoint.save(state() | dict(recipe=unpicklable), saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == ["last.pt"]


def test_save_replaces_the_old_checkpoint(saved):
    """Catches a temporary file that stays behind after a save that worked."""
    checkpoint.save(state() | dict(epoch=4), saved)
    assert checkpoint.load(saved)["epoch"] == 4
    assert os.listdir(saved.parent) == ["last.pt"]


def test_reader_never_sees_a_part_of_a_checkpoint(saved):
    """Catches writing in place: a file that was opened before a save still reads as the old whole."""
    before = saved.read_bytes()
    with open(saved, "rb") as reader:
        checkpoint.save(state() | dict(epoch=4), saved)
        assert reader.read() == before


def test_missing_checkpoint_says_how_to_get_one(tmp_path):
    """Catches a bare 'No such file': the way out is to train first."""
    with pytest.raises(FileNotFoundError) as error:
        checkpoint.load(tmp_path / "run" / "best.pt")
    assert str(tmp_path / "run" / "best.pt") in str(error.value) and "train.py" in str(error.value)


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999])
def test_truncated_checkpoint_is_refused_by_name(saved, share):
    """Catches bare EOFError, OSError and RuntimeError of torch's reader, which name no file (a full disk, a broken copy)."""
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    refuses(saved, "damaged")


def test_checkpoint_one_byte_short_is_refused_by_name(saved):
    """Catches the same at the very end of the file."""
    saved.write_bytes(saved.read_bytes()[:-1])
    refuses(saved)


def test_flipped_bit_in_the_parameters_is_refused(saved):
    """Catches a parameter that changed on the disk and loads without a word: torch's reader does not compare the check sums it writes."""
    whole = bytearray(saved.read_bytes())
    where = whole.find(state()["predictor"]["hidden.weight"].numpy().tobytes())
    assert where > 0
    whole[where + 40] ^= 1
    saved.write_bytes(whole)
    refuses(saved, "damaged")


GARBAGE = dict(
    text=b"hello, this is no checkpoint\n" * 50,
    zeros=bytes(5000),
    zip=b"PK\x03\x04" + bytes(range(256)) * 20,
    pickle=b"\x80\x02}q\x00.",
    one_byte=b"\x80",
)
FOREIGN = {
    "state dict": {"hidden.weight": torch.ones(2)},
    "later format": state() | {"format": "vl-jepa 99"},
    "list": [1, 2],
    "tensor": torch.ones(3),
    "no parts": {"format": checkpoint.FORMAT},
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_by_name(saved, content):
    """Catches an exception of the unpickler that gets through, or a dict that is taken for a checkpoint."""
    saved.write_bytes(content)
    refuses(saved)


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN)
def test_foreign_file_is_refused_by_name(saved, foreign):
    """Catches another program's weights, or a later version's checkpoint, that would fail far from here."""
    torch.save(foreign, saved)
    refuses(saved, "not a checkpoint")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_parameters_are_refused_by_name(saved, value):
    """Catches a diverged checkpoint that answers every question with NaN."""
    broken = state()
    broken["predictor"]["hidden.bias"][7] = value
    checkpoint.save(broken, saved)
    refuses(saved, "hidden.bias", "non-finite")


@pytest.mark.parametrize("wrapped", ["torch", "legacy", "pickle"])
def test_pickle_bomb_is_refused_and_not_run(saved, tmp_path, wrapped):
    """Catches torch.load without weights_only, which runs whatever a downloaded file says."""
    bomb = Bomb(tmp_path / "boom")
    if wrapped == "pickle":
        saved.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(
            state() | dict(format=checkpoint.FORMAT, recipe=bomb),
            saved,
            _use_new_zipfile_serialization=wrapped == "torch",
        )
    refuses(saved)
    assert not bomb.path.exists()
    torch.load(saved, weights_only=False) if wrapped != "pickle" else pickle.loads(saved.read_bytes())
    assert bomb.path.exists(), "the bomb of this test is a dud, so it proves nothing"


def test_folder_in_place_of_a_checkpoint_is_refused(tmp_path):
    """Catches IsADirectoryError from deep inside torch."""
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load(tmp_path)
