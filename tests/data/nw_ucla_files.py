"""Files in the format of Northwestern-UCLA for the tests of its preparation."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.cli import data_nw_ucla
from fgst.cli.command import run_command

NAME = "a01_s01_e00_v01"  # of the clip that a test modifies
VALID_NAMES = ("a02_s02_e00_v01", "a12_s04_e01_v03")


def main(argv: list[str]) -> None:
    """Run the command as its entry point does."""
    run_command(lambda: data_nw_ucla.main(argv))


def make_skeletons(frames: int = 3) -> list[Any]:
    """Return nested lists of coordinates, ``[frame][joint][axis]``."""
    return np.arange(frames * 60, dtype=float).reshape(frames, 20, 3).tolist()


def clip_json(name: str, **changes: Any) -> bytes:
    """Return the JSON of a clip as in the release; a change to ``...`` removes the key."""
    labels = {"01": 1, "02": 2, "12": 10}
    fields = {"file_name": name, "skeletons": make_skeletons(), "label": labels.get(name[1:3], 1)} | changes
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


def fill(folder: Path, extra: dict[str, bytes] | None = None) -> Path:
    """Fill a folder with two valid clips and extra files, and return it."""
    for path, content in ({f"{name}.json": clip_json(name) for name in VALID_NAMES} | (extra or {})).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Write a zip and return its path."""
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about repeated names
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def error_line(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run the command, which must fail with a single line on stderr, and return the line."""
    with pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in argv])
    assert raised.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    return stderr


def edited(**changes: Any) -> dict[str, bytes]:
    """Return the files of a clip with changed entries."""
    return {f"{NAME}.json": clip_json(NAME, **changes)}


def with_value(text: str) -> dict[str, bytes]:
    """Return the files of a clip with ``text`` in place of the y of joint 4 in frame 2."""
    frames = make_skeletons()
    frames[2][4][1] = "PLACEHOLDER"
    return {f"{NAME}.json": clip_json(NAME, skeletons=frames).replace(b'"PLACEHOLDER"', text.encode())}
