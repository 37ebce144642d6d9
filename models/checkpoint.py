"""A trained predictor on disk: plain tensors and values, written whole or not at all.

    save(dict(format=FORMAT, predictor=..., ...), "runs/default/last.pt")
    state = load("runs/default/last.pt")
"""

import os
import pickle
import zipfile
from pathlib import Path

import torch

FORMAT = "vl-jepa 1"
NEEDED = ("predictor", "config", "towers", "recipe", "epoch")


def save(state, path):
    """Write a dict of tensors and plain values. A reader sees the old file or the new one, never a part: the bytes go to a
    temporary file beside it, are flushed to the disk, and take its name in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT} | state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path, device="cpu"):
    """The dict that `save` wrote. Nothing in the file is executed (`weights_only=True`); FileNotFoundError when there is
    none, ValueError when it is damaged, foreign, or holds non-finite parameters."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no checkpoint there; train first (python train.py --run {path.parent}), or name a run with --run")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare the checksums torch.save wrote
            if damaged := archive.testzip():
                raise ValueError(f"checksum of {damaged} is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError,
            TypeError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ValueError(f"{path}: damaged, or not a checkpoint of train.py ({type(error).__name__}: {reason})") from None
    return checked(state, path)


def checked(state, path):
    """`state` as it is when it is a predictor of this project with finite parameters; ValueError naming `path` when not."""
    if not isinstance(state, dict) or state.get("format") != FORMAT or any(key not in state for key in NEEDED):
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path}: not a checkpoint of this project's train.py (its format is {found!r}, not {FORMAT!r})")
    bad = [name for name, value in state["predictor"].items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"{path}: the parameters {', '.join(bad)} hold non-finite numbers; take an earlier checkpoint")
    return state
