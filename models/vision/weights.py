"""Reading a weights file. Nothing in it is executed."""

import pickle
import zipfile
from pathlib import Path

import torch


def read_weights(path, prefix=""):
    """{name: tensor} of the tensors whose names start with `prefix`, without it.

    The file is mapped: tensors that are never read take no memory, and writing into one leaves the file as it
    is. Raises ValueError naming the file when it is neither a safetensors file nor a plain state dict."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]
                return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
        mapped = zipfile.is_zipfile(path)  # torch's older format cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        state = state.get("state_dict", state)
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
        AttributeError,
        TypeError,
        SafetensorError,
    ) as error:
        raise ValueError(
            f"{path}: not a safetensors file or plain state dict ({type(error).__name__}); a TorchScript "
            "archive, such as OpenAI's own ViT-B-16.pt, has to be saved as safetensors first"
        ) from error


def reader(path, prefix):
    """A function part -> {name: tensor} of the tensors whose names start with prefix + part, without both.

    A safetensors file is mapped again at each call, so that what is dropped leaves memory. Any other file is
    read once."""
    if Path(path).suffix == ".safetensors":
        return lambda part: read_weights(path, prefix + part)
    whole = read_weights(path, prefix)
    return lambda part: {name.removeprefix(part): w for name, w in whole.items() if name.startswith(part)}


def local_file(name, path):
    """`path` as a Path; FileNotFoundError naming the tower where there is no such file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"image tower {name}: {path}: no such file")
    return Path(path)
