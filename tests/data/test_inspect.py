"""``python -m data_prep.inspect``: its summary and pictures, and error messages for damaged data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgst.cli import data_inspect
from fgst.cli.command import run_command
from tests.support.small import write_small


def main(argv: list[str]) -> None:
    """Run the command as its entry point does."""
    run_command(lambda: data_inspect.main(argv))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(write_small(tmp_path / "small").path)


def test_summary_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    out = capsys.readouterr().out
    for text in ("all files are intact", "clips     36", "stick-6, 6 joints", "x-sub     24 train, 12 test"):
        assert text in out


def test_description_without_digest_is_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    assert "has no digest" not in capsys.readouterr().out
    description = json.loads((folder / "dataset.json").read_text())
    del description["sha256"]
    (folder / "dataset.json").write_text(json.dumps(description))
    main([str(folder)])
    assert "dataset.json has no digest" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--out", "clip.png"], ["--animate", "--out", "clip.gif"]])
def test_clip_is_drawn(
    arguments: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main([str(folder), "--clip", "clip-004", *arguments])
    out = capsys.readouterr().out
    assert "num_persons 2" in out
    with Image.open(tmp_path / arguments[-1]) as picture:
        frames = int(out.split("num_frames")[1].split()[0])
        assert getattr(picture, "n_frames", 1) == (frames if "--animate" in arguments else 1)
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).astype(int)
    blue, orange = (0, 114, 178), (213, 94, 0)  # two persons
    for expected in (blue, orange):
        assert np.abs(colours - expected).max(axis=1).min() < 12


def test_damage_and_invalid_options_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit) as raised:
            main([str(folder), *arguments])
        assert raised.value.code == 2
        return capsys.readouterr().err

    assert "similar names are clip-0" in error("--clip", "clip-4")
    assert "--clip" in error("--animate")
    assert "ends in .png" in error("--clip", "clip-004", "--out", "clip.xyz")
    (file,) = folder.glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "was modified" in error()
