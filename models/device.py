"""Where to compute.

choose("auto")       # "cuda" where there is one, else "mps", else "cpu"; any other name is returned as it is
"""

import torch


def choose(name="auto"):
    """The name of a torch device, for `--device`; ValueError for one that is not usable here. Neither CUDA nor MPS was ever there to run
    this on."""
    if name != "auto":
        try:
            torch.zeros(1, device=name).item()
        except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
            raise ValueError(
                f"--device {name}: not usable here ({str(error).splitlines()[0]}); take auto or cpu"
            ) from None
        return name
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
