"""Where to compute.

    choose("auto")       # "cuda" where there is one, else "mps", else "cpu"; any other name is returned as it is
"""

import torch


def choose(name="auto"):
    """The name of a torch device, for `--device`. Neither CUDA nor MPS was ever there to run this on."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
