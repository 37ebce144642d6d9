"""A trained predictor on disk: plain tensors and values, written whole or not at all, and a run folder for one process alone.

with alone("runs/default"):
    save(dict(predictor=..., ...), "runs/default/last.pt")
state = load("runs/default/last.pt")
"""

import math
import os
import pickle
import shutil
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

FORMAT = "vl-jepa 1"
NEEDED = dict(predictor=dict, config=dict, towers=dict, recipe=dict, epoch=int)


@contextmanager
def alone(run):
    """Hold the run folder for this process, and clear what a killed one left half written there. OSError names the process
    that holds it already. The operating system lets go of the lock when its process ends, however it ends."""
    from filelock import FileLock, Timeout

    run = Path(run).resolve()
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f".{run.name}.lock"  # beside the folder, which may be moved aside
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = path.read_bytes()[1:].decode(errors="replace").strip() if os.name == "posix" else "unknown"
        raise OSError(
            f"{run}: another train.py is at work on it (process {holder}); wait for it, or give another --run"
        ) from None
    try:
        with open(path, "r+b", buffering=0) as file:
            file.seek(1)  # Windows locks the first byte
            file.write(f"{os.getpid():>20}\n".encode())
        for leftover in run.glob(".*.pt.*.tmp"):
            leftover.unlink()
        yield
    finally:
        with suppress(PermissionError):  # Windows deletes no open file
            path.unlink()
        lock.release()


def save(state, path):
    """Write a dict of tensors and plain values. A reader sees the old file or the new one, never a part: the bytes go to a
    temporary file beside it, are flushed to the disk, and take its name in one step. OSError names the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT} | state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: what torch's writer makes of a full disk
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise OSError(f"{path}: can't be saved ({reason}); what stood there before is whole") from None
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(run):
    """Move a finished or stopped run to RUN.previous, where it takes the place of the one before. ValueError when either folder is
    no run of train.py: what stands there may be the only copy."""
    run, previous = Path(run), Path(f"{run}.previous")
    for folder in (run, previous):
        if folder.exists() and any(folder.iterdir()) and not (folder / "log.jsonl").exists():
            raise ValueError(
                f"{folder} holds files and no log.jsonl, so it is no run of train.py; name another folder with --run"
            )
    if not (
        run / "last.pt"
    ).exists():  # stopped before it saved anything: what stands in .previous is worth more
        return
    if previous.exists():
        for path in sorted(
            previous.iterdir(), key=lambda path: path.name == "log.jsonl"
        ):  # last: killed here, it still is a run
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        previous.rmdir()
    os.replace(run, previous)
    print(f"{run} held an earlier run: moved to {previous} (--resume would have gone on with it)")


def load(path, device="cpu", whole=False):
    """The dict that `save` wrote. Nothing in the file is executed (`weights_only=True`) and nothing larger than the file is
    made of it. `whole` asks for all that resuming needs. FileNotFoundError when there is none, ValueError when it is damaged,
    foreign, or holds non-finite parameters."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no checkpoint there; train first (python train.py --run {path.parent}), or name a run with --run"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            if (
                any(part.compress_type != zipfile.ZIP_STORED for part in parts)
                or sum(p.file_size for p in parts) > path.stat().st_size
            ):
                raise ValueError("its parts are compressed or overlap, which torch.save never does")
            if (
                damaged := archive.testzip()
            ):  # torch.load itself does not compare the checksums torch.save wrote
                raise ValueError(f"checksum of {damaged} is wrong")
        state = torch.load(path, map_location=device, weights_only=True)
    except PermissionError:  # says which file, and is no damage
        raise
    except (
        zipfile.BadZipFile,
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ValueError(
            f"{path}: damaged, or not a checkpoint of train.py ({type(error).__name__}: {reason})"
        ) from None
    state = checked(state, path, path.stat().st_size)
    if whole and "optimiser" not in state:
        raise ValueError(
            f"{path}: holds a predictor alone, as best.pt does; --resume needs a last.pt of train.py"
        )
    if whole and (wrong := _wrong_on_resume(state)):
        raise ValueError(f"{path}: {wrong}; train.py writes no such checkpoint")
    return state


def checked(state, path, size=math.inf):
    """`state` as it is when it is a predictor of this project with finite parameters, in a file of `size` bytes; ValueError
    naming `path` when not."""
    if (
        not isinstance(state, dict)
        or state.get("format") != FORMAT
        or any(key not in state for key in NEEDED)
    ):
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{path}: not a checkpoint of this project's train.py (its format is {found!r}, not {FORMAT!r})"
        )
    if wrong := _wrong(state, size):
        raise ValueError(f"{path}: {wrong}; train.py writes no such checkpoint")
    bad = [name for name, value in state["predictor"].items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(
            f"{path}: the parameters {', '.join(bad)} hold non-finite numbers; take an earlier checkpoint"
        )
    return state


def _wrong(state, size):
    """What is not as `train.py` writes it, or None. A stranger's file may claim anything, such as a tensor of one stored
    number and 10^12 rows, and all who read the state rely on this."""
    for key, kind in NEEDED.items():
        if not isinstance(state[key], kind):
            return f"its {key} is a {type(state[key]).__name__}, not a {kind.__name__}"
    for name, value in state["predictor"].items():
        if not (
            isinstance(value, torch.Tensor)
            and value.dtype == torch.float32
            and value.layout == torch.strided
            and value.is_contiguous()
            and not value.is_meta
        ):
            return f"its parameter {name!r} is not a whole float32 tensor"
    numbers = sum(value.numel() for value in state["predictor"].values())
    if 4 * numbers > size:
        return f"its parameters claim to be {numbers} numbers, which is more than the file holds"
    sizes = {name: value for name, value in state["config"].items() if type(value) is int}
    vision, text, hidden, members = (
        sizes.get(name, 1) for name in ("vision_dim", "text_dim", "hidden_dim", "members")
    )
    if (
        min(sizes.values(), default=1) < 1
        or members > len(state["predictor"])
        or members * hidden * (vision + text) > numbers
    ):
        return f"its configuration {str(state['config'])[:200]} asks for more than its {numbers} parameters"
    for kind, tower in state["towers"].items():
        if not (
            isinstance(tower, dict)
            and isinstance(tower.get("name"), str)
            and isinstance(tower.get("sha256"), str)
        ):
            return f"its {kind} tower has no name and SHA-256"


def _wrong_on_resume(state):
    """The same of what --resume needs besides. The fused AdamW reads past the end of a moment that is too small."""
    parameters = [value for name, value in state["predictor"].items() if name not in ("mean", "std")]
    shapes = (
        sorted((value.shape for value in parameters), key=lambda shape: len(shape) < 2) + [torch.Size()] * 2
    )  # scale and bias
    try:
        for i, moments in state["optimiser"]["state"].items():
            for value, shape in (
                (moments["step"], ()),
                (moments["exp_avg"], shapes[i]),
                (moments["exp_avg_sq"], shapes[i]),
            ):
                if value.shape != shape or value.dtype != torch.float32 or not value.is_contiguous():
                    return f"its optimiser's moments of parameter {i} have another shape"
        torch.Generator().set_state(state["rng"])
        if [entry["epoch"] for entry in state["history"]] != [*range(1, state["epoch"] + 1)] or state[
            "step"
        ] < 0:
            return "its history does not end at its epoch"
        if not math.isfinite(state["loss_sum"] + state["log_scale"] + state["bias"]) or not isinstance(
            state["data"], str
        ):
            return "its loss is not a number"
        if state["best"] is not None and not state["best"]["score"] > [-math.inf]:
            return "its best epoch has no score"
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        return f"what --resume needs is not in it ({type(error).__name__}: {error})"
