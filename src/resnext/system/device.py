"""Where a network runs."""

from __future__ import annotations

import torch

from resnext.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" takes a GPU where there is one.

    Raises:
        InputError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # the meta device has no values
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"device {name!r} cannot be used: {reason.rstrip('.')}. Take auto, cpu, or cuda:0."
        ) from error
    return device
