"""Preparation of Northwestern-UCLA: the real recordings, sources of all kinds, and the output folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fgst.data.dataset import ArrowDataset
from fgst.data.formats.nw_ucla import CLASSES, prepare
from tests.data.nw_ucla_files import NAME, VALID_NAMES, clip_json, error_line, fill, main, make_skeletons, pack

# Real recordings


def test_real_clips_and_splits_are_complete(nw_ucla: ArrowDataset, nw_ucla_zip: Path) -> None:
    with zipfile.ZipFile(nw_ucla_zip) as archive:
        names = sorted(Path(name).stem for name in archive.namelist() if name.endswith(".json"))
    assert nw_ucla.clip_ids.tolist() == names
    splits = nw_ucla.splits("x-view", validation=0)
    assert (len(nw_ucla), len(splits.train), len(splits.test)) == (1484, 1020, 464)
    assert nw_ucla.clip_ids[splits.train].tolist() == [name for name in names if name[-3:] in ("v01", "v02")]
    assert nw_ucla.clip_ids[splits.test].tolist() == [name for name in names if name.endswith("v03")]
    assert nw_ucla.benchmarks[0].name == "x-view"
    by_subject = nw_ucla.splits("x-sub", validation=0)
    assert {name[4:7] for name in nw_ucla.clip_ids[by_subject.train]} == {"s01", "s03", "s05", "s07", "s09"}
    assert len(by_subject.train) + len(by_subject.test) == 1484


def test_real_clips_equal_json(nw_ucla: ArrowDataset, nw_ucla_zip: Path) -> None:
    with zipfile.ZipFile(nw_ucla_zip) as archive:
        for row in range(0, len(nw_ucla), 37):
            name = nw_ucla.clip_ids[row]
            fields = json.loads(archive.read(f"all_sqe/{name}.json"))
            expected = np.array(fields["skeletons"], dtype=np.float32)[None]
            assert np.array_equal(nw_ucla.clip(row), expected), name
            columns = {key: int(values[row]) for key, values in nw_ucla.columns.items()}
            assert columns == {
                "label": fields["label"] - 1,
                "subject": int(name[5:7]),
                "camera": int(name[13:15]),
                "setup": 0,
                "replication": int(name[9:11]),
                "num_persons": 1,
                "num_frames": len(fields["skeletons"]),
            }


def test_description_of_real_data_set(nw_ucla: ArrowDataset) -> None:
    assert (nw_ucla.name, nw_ucla.recipe, nw_ucla.skeleton.name) == ("nw-ucla", "nw-ucla", "nw-ucla-20")
    assert nw_ucla.classes == CLASSES
    assert set(nw_ucla.columns["label"].tolist()) == set(range(10))
    frames = nw_ucla.columns["num_frames"]
    assert (frames.min(), np.median(frames), frames.max()) == (1, 31, 201)
    assert nw_ucla.source["kept"] == nw_ucla.source["files"] == 1484
    assert len(nw_ucla.source["sha256"]) == 64


def test_zip_and_folder_give_same_bytes(nw_ucla: ArrowDataset, nw_ucla_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(nw_ucla_zip) as archive:
        archive.extractall(tmp_path / "unpacked")
    dataset, _ = prepare(tmp_path / "unpacked" / "all_sqe", tmp_path / "out")
    assert dataset.digest == nw_ucla.digest
    for file in sorted(nw_ucla.path.iterdir()):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name


def test_command_prints_summary_of_real_data_set(nw_ucla_zip: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.nw_ucla", str(nw_ucla_zip), "my data"]
    root = Path(__file__).parents[2]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # progress bars are shown on terminals only
    for line in ("1,484 clips", "1,020 train, 464 test", "1 to 201, median 31", "173  walk around"):
        assert line in result.stdout
    assert result.stdout.endswith("  python sweeps/focal_k.py --dataset 'my data'\n")
    assert "  python -m fgst.train --dataset 'my data'\n" in result.stdout
    assert len(ArrowDataset(tmp_path / "my data")) == 1484


# Sources and output


@pytest.mark.parametrize("argv", [[], ["only-one"], ["a", "b", "--no-such-option"]])
def test_invalid_command_line_is_rejected(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "see python -m data_prep.nw_ucla --help" in error_line(capsys, *argv)


def test_missing_source_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = error_line(capsys, tmp_path / "nowhere.zip", tmp_path / "out")
    assert f"{tmp_path / 'nowhere.zip'}: no such file or folder; give all_sqe.zip" in line


def test_missing_source_sets_exit_code_of_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.nw_ucla", str(tmp_path / "nowhere.zip"), str(tmp_path / "out")]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "nowhere.zip: no such file or folder" in result.stderr


def test_source_without_json_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "all_sqe.zip").write_bytes(b"")
    assert f"{tmp_path / 'in'}: contains no .json file" in error_line(capsys, tmp_path / "in", tmp_path / "out")
    packed = pack(tmp_path / "in.zip", {"readme.txt": b""})
    assert f"{packed}: contains no .json file" in error_line(capsys, packed, tmp_path / "out")


def test_output_is_checked_before_source_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("text")
    line = error_line(capsys, tmp_path / "no such source", tmp_path / "out", "--overwrite")
    assert f"{tmp_path / 'out'}: is not empty and not a data set" in line
    assert (tmp_path / "out" / "thesis.tex").read_text() == "text"


def test_output_inside_source_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = fill(tmp_path / "in")
    assert "is inside SOURCE" in error_line(capsys, source, source / "out")


def test_system_files_are_skipped_and_other_files_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {
        f"__MACOSX/all_sqe/._{NAME}.json": b"\x00\x05",
        f"__MACOSX/all_sqe/{NAME}.json": b"\x00\x05",
        "sub/.DS_Store": b"",
        f"sub/._{NAME}.json": b"\x00\x05",
        ".hidden/other.json": b"",
        "Thumbs.db": b"",
        "readme.txt": b"stray",
        "sub/view.m": b"stray",
        "sub/A01_S01.JSON.bak": b"stray",
    }
    source = fill(tmp_path / "in", extra)
    members = {f"./{path.relative_to(source)}": path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for number, each_source in enumerate((source, pack(tmp_path / "in.zip", members))):
        main([str(each_source), str(tmp_path / f"out{number}")])
        assert ArrowDataset(tmp_path / f"out{number}").clip_ids.tolist() == list(VALID_NAMES)
        assert "3 files that are not JSON" in capsys.readouterr().out


def test_optional_labels_byte_order_mark_and_upper_case_suffix_are_accepted(tmp_path: Path) -> None:
    extra = {f"{NAME}.JSON": b"\xef\xbb\xbf" + clip_json(NAME, label=..., file_name=..., more=[1])}
    dataset, _ = prepare(fill(tmp_path / "in", extra), tmp_path / "out")
    row = dataset.clip_ids.tolist().index(NAME)
    assert np.array_equal(dataset.clip(row), np.array(make_skeletons(), np.float32)[None])
    assert dataset.columns["label"].tolist() == [0, 1, 9]


def test_recorded_digest_depends_on_source_files(tmp_path: Path) -> None:
    first = prepare(fill(tmp_path / "1"), tmp_path / "out1")[0]
    second = prepare(
        fill(tmp_path / "2", {f"{VALID_NAMES[0]}.json": clip_json(VALID_NAMES[0]) + b" "}), tmp_path / "out2"
    )[0]
    assert first.digest == second.digest  # the clips are the same
    assert first.source["sha256"] != second.source["sha256"]  # the files differ
    assert str(tmp_path) not in (first.path / "dataset.json").read_text()


def test_full_disk_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.ipc.new_file", full_disk)
    line = error_line(capsys, fill(tmp_path / "in"), tmp_path / "out")
    assert f"{tmp_path / 'out'}: cannot be written (No space left on device)" in line
