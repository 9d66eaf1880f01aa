"""Preparation of Northwestern-UCLA: invalid clips are reported, or skipped with ``--skip-bad``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fgst.data import sources
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import nw_ucla as nw_ucla_format
from fgst.data.formats.nw_ucla import prepare
from tests.data.nw_ucla_files import (
    NAME,
    VALID_NAMES,
    clip_json,
    edited,
    error_line,
    fill,
    main,
    make_skeletons,
    pack,
    with_value,
)


def renamed(name: str) -> dict[str, bytes]:
    """Return the files of a valid clip with another name."""
    return {f"{name}.json": clip_json(name, file_name=..., label=...)}


def with_frame(frame: Any) -> dict[str, bytes]:
    """Return the files of a clip whose third frame is ``frame``."""
    return edited(skeletons=[*make_skeletons(2), frame])


INVALID_CLIPS: dict[str, tuple[dict[str, bytes], str]] = {
    "broken JSON": ({f"{NAME}.json": clip_json(NAME)[:-9]}, "is not valid JSON"),
    "empty file": ({f"{NAME}.json": b""}, "is not valid JSON"),
    "not an object": ({f"{NAME}.json": b"[1, 2]"}, "expected object, got array"),
    "null": ({f"{NAME}.json": b"null"}, "expected object, got null"),
    "no skeletons": (edited(skeletons=...), "object missing required field skeletons"),
    "skeletons is text": (edited(skeletons="many"), "skeletons: expected array, got str"),
    "skeletons is null": (edited(skeletons=None), "skeletons: expected array, got null"),
    "19 joints": (with_frame(make_skeletons(1)[0][:19]), "skeletons[2]: expected array of length >= 20"),
    "21 joints": (with_frame(make_skeletons(1)[0] + [[0, 0, 0]]), "skeletons[2]: expected array of length <= 20"),
    "ragged": (with_frame([*make_skeletons(1)[0][:19], [1.0, 2.0]]), "skeletons[2][19]: expected array of length 3"),
    "one level too few": (edited(skeletons=make_skeletons()[0]), "skeletons[0][0]: expected array, got float"),
    "one level too many": (edited(skeletons=[make_skeletons()] * 20), "skeletons[0]"),
    "joint is null": (with_frame([*make_skeletons(1)[0][:19], None]), "skeletons[2][19]: expected array, got null"),
    "value is a list": (with_value("[1.0]"), "skeletons[2][4][1]: expected float, got array"),
    "value is text": (with_value('"1.5"'), "skeletons[2][4][1]: expected float, got str"),
    "value is a boolean": (with_value("true"), "skeletons[2][4][1]: expected float, got bool"),
    "value is null": (with_value("null"), "skeletons[2][4][1]: expected float, got null"),
    "NaN": (with_value("NaN"), "is not valid JSON (invalid character (byte"),
    "infinity": (with_value("-Infinity"), "is not valid JSON (invalid"),
    "too big for a float64": (with_value("1e999"), "skeletons[2][4][1]: number out of range"),
    "too big for a float32": (with_value("1e39"), "skeletons[2][4][1]: expected float <= 3.4028"),
    "whole number of 400 digits": (with_value("9" * 400), "skeletons[2][4][1]: number out of range"),
    "whole number of 5000 digits": (with_value("9" * 5000), "skeletons[2][4][1]: number out of range"),
    "no frame": (edited(skeletons=[]), "skeletons: expected array of length >= 1"),
    "name of another file": (edited(file_name="a01_s01_e00_v02"), "has file_name 'a01_s01_e00_v02'"),
    "file_name is a number": (edited(file_name=7), "file_name: expected str | null, got int"),
    "another label": (edited(label=2), "has label 2, but its name implies label 1"),
    "label is text": (edited(label="1"), "label: expected int | null, got str"),
    "label is a boolean": (edited(label=True), "label: expected int | null, got bool"),
    "deeply nested": ({f"{NAME}.json": b"[" * 200_000}, "expected object, got array"),
    "not UTF-8": ({f"{NAME}.json": clip_json(NAME).replace(b"a01", b"a\xff1")}, "is not UTF-8"),
    "UTF-16": ({f"{NAME}.json": clip_json(NAME).decode().encode("utf-16")}, "is not valid JSON"),
    "name without a view": (renamed("a01_s01_e00"), "a01_s01_e00.json: is not named like a clip"),
    "name with suffix": (renamed(NAME + "_copy"), "is not named like a clip"),
    "Arabic digits": (renamed("a٠١_s01_e00_v01"), "is not named like a clip"),
    "unknown action": (renamed("a07_s01_e00_v01"), "a07_s01_e00_v01.json: is named after action 07"),
    "unknown subject": (renamed("a01_s11_e00_v01"), "is named after subject 11"),
    "unknown view": (renamed("a01_s01_e00_v04"), "is named after view 04"),
    "view 0": (renamed("a01_s01_e00_v00"), "is named after view 00"),
    "twice": ({f"{part}/{NAME}.json": clip_json(NAME) for part in "xy"}, f"occurs 2 times, also as x/{NAME}.json"),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID_CLIPS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_invalid_clip_is_reported_in_one_line(
    case: str, packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, fault = INVALID_CLIPS[case]
    source = fill(tmp_path / "in", files)
    if packed:
        members = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*.json")}
        source = pack(tmp_path / "in.zip", members)
    inputs = sorted(tmp_path.iterdir())
    line = error_line(capsys, source, tmp_path / "out")
    assert line.startswith(f"error: {source}: {list(files)[-1]}: ")
    assert fault in line
    assert "--skip-bad" in line
    assert sorted(tmp_path.iterdir()) == inputs  # no output and no temporary folder


@pytest.mark.parametrize("case", INVALID_CLIPS)
def test_skip_bad_skips_and_lists_invalid_clip(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, fault = INVALID_CLIPS[case]
    main([str(fill(tmp_path / "in", files)), str(tmp_path / "out"), "--skip-bad"])
    stdout, stderr = capsys.readouterr()
    assert stderr == ""
    expected = {*VALID_NAMES, NAME} if case == "twice" else {*VALID_NAMES}  # the first of equal copies is used
    dataset = ArrowDataset(tmp_path / "out")
    assert set(dataset.clip_ids) == expected
    listed = [line for line in stdout.splitlines() if fault in line]
    assert len(listed) == 1
    assert list(files)[-1] in listed[0]
    assert dataset.source["left_out"] == 1
    assert dataset.source["files"] == len(expected) + 1


def test_contradictory_copies_are_all_skipped(tmp_path: Path) -> None:
    copies = {f"x/{NAME}.json": clip_json(NAME), f"y/{NAME}.json": clip_json(NAME, skeletons=make_skeletons(5))}
    dataset, report = prepare(fill(tmp_path / "in", copies), tmp_path / "out", skip_bad=True)
    assert dataset.clip_ids.tolist() == list(VALID_NAMES)
    assert [path for path, _ in report.rejected] == list(copies)


def test_first_invalid_clip_by_name_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(tmp_path / "in", {"z/a01_s01_e00_v01.json": b"{}", "a/a03_s01_e00_v01.json": b"{}"})
    assert "z/a01_s01_e00_v01.json" in error_line(capsys, source, tmp_path / "out")


def test_source_without_valid_clip_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{NAME}.json").write_bytes(b"{}")
    line = error_line(capsys, tmp_path / "in", tmp_path / "out", "--skip-bad")
    assert "none of its 1 JSON files is a clip" in line
    assert f"{NAME}.json: is not a clip (object missing required field skeletons)" in line
    assert not (tmp_path / "out").exists()


def test_failed_preparation_preserves_existing_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    valid, invalid = fill(tmp_path / "valid"), fill(tmp_path / "invalid", edited(skeletons=[]))
    prepare(valid, tmp_path / "out")
    original = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert "--overwrite" in error_line(capsys, valid, tmp_path / "out")
    assert NAME in error_line(capsys, invalid, tmp_path / "out", "--overwrite")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == original
    assert sorted(path.name for path in tmp_path.iterdir()) == ["invalid", "out", "valid"]
    main([str(invalid), str(tmp_path / "out"), "--overwrite", "--skip-bad"])
    assert ArrowDataset(tmp_path / "out").source["left_out"] == 1


def test_invalid_clip_sets_exit_code_of_process(tmp_path: Path) -> None:
    source = fill(tmp_path / "in", with_value("NaN"))
    command = [sys.executable, "-m", "data_prep.nw_ucla", str(source), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert f"{NAME}.json: is not a clip (is not valid JSON" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_huge_file_is_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nw_ucla_format, "MAX_FILE_BYTES", 1 << 20)
    huge = {f"{NAME}.json": b" " * (1 << 20) + clip_json(NAME)}
    for source in (fill(tmp_path / "in", huge), pack(tmp_path / "in.zip", huge)):
        line = error_line(capsys, source, tmp_path / "out")
        assert f"{NAME}.json: is larger than 1 MiB, the limit for such a file" in line


def test_pipe_and_broken_link_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = fill(tmp_path / "pipe") / f"{NAME}.json"
    os.mkfifo(pipe)
    assert f"{NAME}.json: is not a regular file" in error_line(capsys, pipe.parent, tmp_path / "out")
    link = fill(tmp_path / "link") / f"{NAME}.json"
    link.symlink_to("nowhere")
    assert f"{NAME}.json: cannot be read (No such file" in error_line(capsys, link.parent, tmp_path / "out")


def test_control_characters_in_names_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pack(tmp_path / "in.zip", {"a\x1b[31m\n01.json": b"{}"})
    assert r"a\x1b[31m\n01.json: is not named like a clip" in error_line(capsys, source, tmp_path / "out")


def test_files_are_read_up_to_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_bytes(b" " * 1000)
    with sources.open_source(tmp_path, suffix=".json", max_bytes=1000, hint="") as listing:
        assert len(listing.files[0].read()) == 1000
        os.truncate(path, 1001)
        with pytest.raises(sources.ClipError, match="larger"):
            listing.files[0].read()
        os.truncate(path, 1 << 40)  # larger than memory; a sparse file takes no disk space
        with pytest.raises(sources.ClipError, match="larger"):
            listing.files[0].read()
