"""Digests of checkpoints: adapted to changed files, as an attacker would, or removed, as in earlier versions."""

from __future__ import annotations

import json
from pathlib import Path

from fgst.data.layout import file_digest
from fgst.integrity import with_digest


def adapt_digests(checkpoint: Path) -> None:
    """Make the digests of a checkpoint correct for its files, which were changed."""
    card = json.loads((checkpoint / "config.json").read_bytes())
    del card["sha256"]
    card["files"] = {name: file_digest(checkpoint / name) for name in card["files"] if (checkpoint / name).exists()}
    (checkpoint / "config.json").write_text(json.dumps(with_digest(card)))


def remove_digests(checkpoint: Path) -> None:
    """Turn a checkpoint into one of an earlier version."""
    card = json.loads((checkpoint / "config.json").read_bytes())
    del card["sha256"], card["files"]
    (checkpoint / "config.json").write_text(json.dumps(card))
