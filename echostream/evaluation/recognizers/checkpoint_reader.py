"""Reading pickled checkpoints of other toolkits without executing anything in them."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

# Checkpoints name these classes only to hold settings; an inert stand-in holds them as well.
_STAND_IN_PACKAGES = ("fairseq", "omegaconf", "hydra", "examples")
# torch words it differently for a class it does not know and for a module it blocks.
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module \S+ is blocked)")
_MAX_STAND_INS = 200


def _stand_in(name: str) -> type:
    """A class that takes whatever a pickle gives it and does nothing."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        self.arguments = args

    def __setstate__(self: Any, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    module, _, qualified = name.rpartition(".")
    return type(
        qualified,
        (),
        {"__module__": module, "__init__": __init__, "__setstate__": __setstate__},
    )


def load_tensors_and_containers(path: Path) -> Any:
    """Load a checkpoint with PyTorch's restricted unpickler.

    Tensors, plain containers and ``argparse.Namespace`` come back as they are. Classes of fairseq,
    omegaconf and hydra come back as inert stand-ins. Anything else is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no checkpoint, or names a class or function that is refused.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    allowed: list[Any] = [Namespace]
    known: set[str] = set()
    while True:
        try:
            with torch.serialization.safe_globals(allowed):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            match = _REFUSED.search(str(error))
            name = match[1] if match else ""
            acceptable = name.split(".")[0] in _STAND_IN_PACKAGES and name not in known
            if not acceptable or len(known) >= _MAX_STAND_INS:
                reason = f"it names {name!r}" if name else str(error).splitlines()[0]
                raise ValueError(
                    f"{path} is refused: {reason}; only tensors, plain containers, "
                    "argparse.Namespace and settings of fairseq, omegaconf or hydra are read"
                ) from error
            known.add(name)
            allowed.append(_stand_in(name))
        except (RuntimeError, EOFError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not a PyTorch checkpoint: {error}") from error
