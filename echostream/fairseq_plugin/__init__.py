"""Training with fairseq: task ``echostream``, criterion ``echostream`` and architectures.

    fairseq-train DATA --user-dir echostream/fairseq_plugin --task echostream --arch echostream ...

``--user-dir`` imports this folder as a top-level module; only then does anything register with
fairseq. Imported as part of the package it does nothing, so that what needs no fairseq
(:mod:`~echostream.fairseq_plugin.export` above all) works without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path


def _register_for_user_dir() -> None:
    """Make the package importable under its own name and register everything."""
    package_dir = Path(__file__).resolve().parent.parent
    # --user-dir put the package's inside on the path, where its modules would hide others.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != package_dir]
    if importlib.util.find_spec("echostream") is None:
        sys.path.insert(0, str(package_dir.parent))
    importlib.import_module("echostream.fairseq_plugin.register")


if "." not in __name__ and __name__ != "__main__":
    _register_for_user_dir()
