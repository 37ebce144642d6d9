"""A run folder, which is also a model folder.

    model.safetensors   the predictor of the best epoch; in its header the record: epoch, history, results
    config.json         what all epochs share: towers, the predictor's sizes, public flags, digest of the data
    log.jsonl           one line per epoch
    curves.png
    private/            last.safetensors: all that --resume needs, local paths, names of the training images

The first two are what `VLJEPA.from_pretrained` reads and `save_pretrained` writes. Whatever changes with the
weights is in one file with them, so a killed run never mixes two epochs. Every file is written whole or not
at all, and nothing in one is executed."""

import json
import os
import zlib
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.files import clear_leftovers, packed, replacing, unchanged, unpacked, why_passed_over

FORMAT = "vl-jepa 2"
WEIGHTS, CONFIG, LOG = "model.safetensors", "config.json", "log.jsonl"
LAST = Path("private", "last.safetensors")
OLD = ("best.pt", "last.pt")  # of the format before this one
# Flags that an older run lacks.
NEWER = dict(questions="", text_head="none", views=0, caption_lists=False, follow_links=False)
NEWER |= dict(tensorboard=False)
NEEDED = dict(predictor=dict, towers=dict, recipe=dict, data=str, images=int, captions=int)  # of config.json
# Flags of train.py that say where or how fast, not what: they stay out of the public files.
LOCAL = ("cache", "run", "images", "device", "workers", "encode_batch", "quiet", "resume", "shard_features")
LOCAL += ("follow_links", "tensorboard")

# Flags that --resume lets change; the others are those of the run.
FREE = {"resume", "epochs", "run", "csv", "questions", "images", "shards", "shard_features", "cache"}
FREE |= {"device", "workers", "encode_batch", "quiet", "bf16", "compile", "follow_links", "tensorboard"}


@contextmanager
def hold(run):
    """Hold the run folder for this process, and clear what a killed one left half written there. OSError
    names the process that holds it already. The operating system releases the lock when its process ends,
    however it ends."""
    from filelock import FileLock, Timeout

    run = Path(run).resolve()
    run.parent.mkdir(parents=True, exist_ok=True)
    path = run.parent / f".{run.name}.lock"  # beside the folder, which may be moved
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = path.read_bytes()[1:].decode(errors="replace").strip() if os.name == "posix" else "unknown"
        raise OSError(
            f"{run}: process {holder} is training there; wait for it, or give another --run"
        ) from None
    try:
        with open(path, "r+b", buffering=0) as file:
            file.seek(1)  # Windows locks the first byte
            file.write(f"{os.getpid():>20}\n".encode())
        for folder in (run, run / LAST.parent):
            clear_leftovers(folder)
        yield
    finally:
        with suppress(PermissionError):  # Windows deletes no open file
            path.unlink()
        lock.release()


def check_folder(run):
    """ValueError when the folder holds files and is no run of train.py: they may be the only copies."""
    run = Path(run)
    files = [path for path in run.iterdir() if not why_passed_over(path.name)] if run.exists() else []
    if files and not (run / LOG).exists():
        raise ValueError(f"{run} holds files and no {LOG}, so it is no run of train.py; name another --run")


def set_aside(run):
    """Move an earlier run to RUN.1, RUN.2, ... (the first that is free) and return that folder; None when
    there is nothing to keep. No run is ever deleted. Raises as `check_folder` does."""
    check_folder(run)
    run = Path(run)
    if not any((run / name).exists() for name in (LAST, WEIGHTS, *OLD)):  # nothing was saved
        return None
    number = 1
    while (kept := run.with_name(f"{run.name}.{number}")).exists():
        number += 1
    os.replace(run, kept)
    return kept


def save_config(run, config):
    """Write config.json."""
    with replacing(Path(run, CONFIG)) as new:
        new.write_text(json.dumps(dict(format=FORMAT) | config, indent=1) + "\n", encoding="utf-8")


def save_model(run, predictor, record):
    """Write model.safetensors: the predictor's state_dict, and `record` (a dict of plain values) in its
    header."""
    _write(Path(run, WEIGHTS), predictor, dict(format="pt", record=json.dumps(record)))


def load_model(folder):
    """(predictor's state_dict, config, record) of a model folder. FileNotFoundError when nothing was trained
    there; ValueError for a damaged or foreign file, non-finite parameters, and a folder of the old format."""
    folder = Path(folder)
    config = load_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{folder}: no {WEIGHTS} in it yet; train first (python train.py --run {folder})"
        )
    tensors, header = _read(folder / WEIGHTS)
    bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(
            f"{folder / WEIGHTS}: the parameters {', '.join(bad)} are not finite; take an earlier run"
        )
    try:
        return tensors, config, json.loads(header["record"])
    except (LookupError, ValueError) as error:
        raise ValueError(f"{folder / WEIGHTS}: no record of train.py in its header ({error})") from None


def load_config(folder):
    """config.json as a dict. Raises as `load_model` does."""
    path = Path(folder, CONFIG)
    if not path.is_file():
        if any(Path(folder, name).is_file() for name in OLD):
            raise ValueError(_old(folder))
        advice = f"train first (python train.py --run {folder}), or name a run with --run"
        raise FileNotFoundError(f"{folder}: no model there; {advice}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None
    found = config.get("format") if isinstance(config, dict) else type(config).__name__
    if found != FORMAT:
        raise ValueError(f"{path}: not a model of this project (its format is {found!r}, not {FORMAT!r})")
    for key, kind in NEEDED.items():
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{path}: its {key!r} is not a {kind.__name__}; train.py writes no such file")
    if not isinstance(config.get("answers", {}), dict):  # of a run with questions
        raise ValueError(f"{path}: its 'answers' is not a dict; train.py writes no such file")
    for kind in ("vision", "text"):
        tower = config["towers"].get(kind)
        if not isinstance(tower, dict) or not all(
            isinstance(tower.get(key), str) for key in ("name", "sha256")
        ):
            raise ValueError(
                f"{path}: its {kind} tower has no name and SHA-256; train.py writes no such file"
            )
    return config


def save_last(run, tensors, facts):
    """Write private/last.safetensors: `tensors` {name: tensor}, and `facts` (a dict of plain values) in its
    header."""
    _write(Path(run, LAST), tensors, dict(format=FORMAT, facts=json.dumps(facts)))


def load_last(run):
    """(tensors, facts) that `save_last` wrote, or None when there is no such file. ValueError when it is
    damaged."""
    path = _last_path(run)
    if path is None:
        return None
    tensors, header = _read(path)
    return tensors, _facts(path, header)


def load_private(run):
    """(recipe, names of the training images) of private/, without reading the parameters there; None for a
    shared model."""
    path = _last_path(run)
    if path is None:
        return None
    tensors, header = _read(path, only=("trained_on",))
    return _facts(path, header)["recipe"], unpacked(tensors["trained_on"])


def _last_path(run):
    path = Path(run, LAST)
    if path.is_file():
        return path
    if any(Path(run, name).is_file() for name in OLD):
        raise ValueError(_old(run))
    return None


def _facts(path, header):
    try:
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']!r}")
        return json.loads(header["facts"])
    except (LookupError, ValueError) as error:
        raise ValueError(f"{path}: not a file of train.py ({error}); start another --run") from None


def public_recipe(recipe):
    """The flags of train.py that others may read: without local paths, and files as bare names."""
    public = {name: value for name, value in recipe.items() if name not in LOCAL}
    for name in {"csv", "questions", "shards"} & public.keys():
        public[name] = os.path.basename(public[name].rstrip("/"))
    return public


def _write(path, tensors, header):
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as new:
        try:
            save_file(tensors, new, header | dict(crc32=_checksum(tensors)))
        except SafetensorError as error:  # a full disk
            raise OSError(str(error)) from None


def _read(path, only=None):
    """(tensors, header) of a safetensors file; `only` reads the tensors of these names, unchecked."""
    return unchanged(path, lambda: _read_once(path, only))  # safetensors opens a file twice


def _read_once(path, only):
    open(path, "rb").close()  # PermissionError, which safetensors takes for a missing file
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in only or file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: damaged, or not a safetensors file ({error})") from None
    if not only and header.get("crc32") != _checksum(tensors):
        raise ValueError(f"{path}: damaged, or not a file of train.py (its checksum does not match)")
    return tensors, header


def _checksum(tensors):
    """CRC-32 of all values, 8 hex digits: safetensors itself does not notice a changed byte."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), found)
    return f"{found:08x}"


def _old(run):
    found = "a run of an older version (best.pt, last.pt), which this one does not read"
    return f"{run}: {found}; train again with another --run, or use the version that made it (commit 24a77c6)"


@dataclass
class Training:
    """All tensors that training changes."""

    predictor: torch.nn.Module
    optimiser: torch.optim.Optimizer  # AdamW
    log_scale: torch.Tensor  # scalar: log(1 / temperature) of the loss
    bias: torch.Tensor  # scalar of the sigmoid loss
    rng: torch.Tensor | None = None  # the generator's state inside an epoch that is resumed

    def tensors(self):
        """{name: tensor}, for `save_last`."""
        tensors = {f"predictor.{name}": value for name, value in self.predictor.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{number}.{name}": value for name, value in moments.items()}
        return tensors | dict(log_scale=self.log_scale, bias=self.bias, rng=torch.get_rng_state())

    def restore(self, tensors):
        """Take over what `tensors` gave. LookupError, RuntimeError or ValueError when it does not fit."""
        start = "predictor."
        state = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        self.predictor.load_state_dict(state)
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        moments = {}
        for number, parameter in enumerate(parameters):
            if f"optimiser.{number}.step" in tensors:  # the cosine loss never uses log_scale and bias
                moments[number] = _moments(tensors, number, parameter)
        self.optimiser.load_state_dict(self.optimiser.state_dict() | dict(state=moments))
        with torch.no_grad():
            self.log_scale.copy_(tensors["log_scale"])
            self.bias.copy_(tensors["bias"])
        torch.Generator().set_state(tensors["rng"])  # raises for what is no state
        self.rng = tensors["rng"]


def _moments(tensors, number, parameter):
    """AdamW's state of one parameter. ValueError for another shape: the fused AdamW reads past the end of a
    moment that is too small."""
    shapes = dict(step=(), exp_avg=parameter.shape, exp_avg_sq=parameter.shape)
    moments = {name: tensors[f"optimiser.{number}.{name}"] for name in shapes}
    for name, value in moments.items():
        if value.dtype != torch.float32 or value.shape != shapes[name]:
            found = f"{value.dtype} {tuple(value.shape)}"
            raise ValueError(f"optimiser.{number}.{name} is {found}, not float32 {tuple(shapes[name])}")
    return moments


@dataclass
class Progress:
    """How far training has come: plain values, in the header of what is saved."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch after that
    loss_sums: dict = field(default_factory=dict)  # {kind: sum over the captions or questions of those steps}
    history: list = field(default_factory=list)  # one dict per epoch
    best: dict | None = None  # epoch and score of the best one

    def add(self, entry):
        """Append an epoch's entry to the history; return whether it is the best so far: by mean held-out
        recall and accuracy, then by held-out loss, and without held-out images the last."""
        recalls = [value for key, value in entry.items() if "recall" in key]
        means = [sum(recalls) / len(recalls)] if recalls else []
        means += [entry["accuracy"]] if "accuracy" in entry else []
        score = [sum(means) / len(means), -entry.get("val_loss", 0.0)] if means else [entry["epoch"]]
        self.epoch, self.step, self.loss_sums = entry["epoch"], 0, {}
        self.history.append(entry)
        if self.best is not None and score <= self.best["score"]:
            return False
        self.best = dict(epoch=entry["epoch"], score=score)
        return True


def begin(run, config, history, resumed):
    """Start a run, or continue it. Returns the folder that an earlier run was moved to, or None."""
    kept = None if resumed else set_aside(run)
    with replacing(Path(run, LOG)) as new:  # a killed run may have logged what it did not save
        new.write_text("".join(json.dumps(entry) + "\n" for entry in history))
    if not resumed:  # after the log, by which `set_aside` knows a run
        save_config(run, config)
    return kept


def log(run, entry):
    """Append an epoch's entry to log.jsonl."""
    path = Path(run, LOG)
    try:
        with open(path, "a") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:  # a full disk names no file
        raise OSError(f"{path}: cannot be written ({error.strerror})") from None


def save_progress(run, training, progress, recipe, digest, names):
    """Write private/last.safetensors: all that --resume needs, the flags, and the names of the training
    images."""
    facts = asdict(progress) | dict(recipe=recipe, data=digest)
    save_last(run, training.tensors() | dict(trained_on=packed(sorted(names))), facts)


def restore(run, saved, training, progress, digest, towers):
    """Continue where `saved`, of `load_last`, stopped. ValueError when the captions or a tower have changed
    since."""
    tensors, facts = saved
    pairs = (("captions", facts["data"], digest), ("towers", load_config(run)["towers"], towers))
    for what, old, new in pairs:
        if old != new:
            raise ValueError(f"{run}: the {what} have changed since it was saved; start another --run")
    try:
        training.restore(tensors)
        for name in asdict(progress):
            setattr(progress, name, facts[name])
        epochs = [entry["epoch"] for entry in progress.history]
        if epochs != list(range(1, progress.epoch + 1)) or progress.step < 0:
            raise ValueError("its history does not end at its epoch")
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{Path(run, LAST)}: not what train.py saves ({error}); start another --run"
        ) from None


def resumed_flags(run, flags, typed, recipe):
    """The flags to resume with, a dict: those of the run (`recipe`), and of `flags` those that were `typed`
    and may change. ValueError for a typed flag that may not."""
    recipe = {name: value for name, value in NEWER.items() if name in flags} | recipe
    if isinstance(recipe.get("caption_column"), str):
        recipe["caption_column"] = [recipe["caption_column"]]  # an older run had one
    if wrong := [name for name in flags if type(recipe.get(name)) is not type(flags[name])]:
        raise ValueError(
            f"{Path(run, LAST)}: its {', '.join(wrong)} are not flags of train.py; start another --run"
        )
    changed = [name for name in sorted(typed - FREE) if flags[name] != recipe[name]]
    if changed:
        shown = {k: " ".join(value) if isinstance(value, list) else value for k, value in recipe.items()}
        was = ", ".join(f"--{name.replace('_', '-')} {shown[name]}" for name in changed)
        raise ValueError(
            f"{run} was trained with {was}; resume without changing that, or start another --run"
        )
    sizes = load_config(run)["predictor"]
    if [recipe["hidden"], recipe["members"]] != [sizes.get("hidden_dim"), sizes.get("members")]:
        raise ValueError(
            f"{Path(run, LAST)}: its flags do not fit the sizes in {CONFIG}; start another --run"
        )
    free = {name: flags[name] for name in (typed & FREE) | {"resume", "run"}}
    return flags | recipe | free
