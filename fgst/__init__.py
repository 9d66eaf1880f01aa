"""Hyperparameter sweeps for the FG-STFormer, a network for skeleton-based action recognition.

The public API is loaded on first use, so that ``import fgst`` is fast:

    >>> import fgst
    >>> config = fgst.PRESETS["tiny"].with_values({"data.dataset": "datasets/nw-ucla", "train.epochs": 4})
    >>> for result in fgst.fit(config):
    ...     print(result.epoch, result.metrics["val/top1"])
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgst.config import PRESETS, TrialConfig
    from fgst.data.dataset import ArrowDataset
    from fgst.data.skeleton import Skeleton
    from fgst.model import FGSTFormer
    from fgst.training import fit

    __version__: str

__all__ = ["PRESETS", "ArrowDataset", "FGSTFormer", "Skeleton", "TrialConfig", "__version__", "fit"]

# Idle OpenMP threads must sleep. By default they spin, and several trainings on one machine then slow each other down,
# measured at 3 to 16 times. OpenMP reads these variables when torch is imported, hence here; values that are already
# set take precedence.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

_MODULES = {
    "PRESETS": "fgst.config",
    "TrialConfig": "fgst.config",
    "ArrowDataset": "fgst.data.dataset",
    "Skeleton": "fgst.data.skeleton",
    "FGSTFormer": "fgst.model",
    "fit": "fgst.training",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "__version__":
        return _version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _require_command() -> None:
    """Exit with a message under ``python -m MODULE`` if it is no command; Python would exit with 0 in silence."""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
    file = Path(__file__).parents[1] / f"{module.replace('.', '/')}.py"
    if module.startswith("fgst.") and file.is_file() and 'if __name__ == "__main__":' not in file.read_text("utf-8"):
        print(f"error: python -m {module}: is not a command; python -m fgst lists the commands", file=sys.stderr)
        sys.exit(2)


def _version() -> str:
    """Return the version of the installed distribution."""
    from importlib import metadata

    try:
        return metadata.version("fgst")
    except metadata.PackageNotFoundError:  # imported from a source tree that is not installed
        return "0+unknown"


if sys.argv[:1] == ["-m"]:  # while Python looks up the module of `python -m`
    _require_command()
