"""Preparation of Northwestern-UCLA: the real recordings, invalid clips, damaged zips, and sources of all kinds."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.cli import data_nw_ucla
from fgst.cli.command import run_command
from fgst.data import sources
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import nw_ucla as nw_ucla_format
from fgst.data.formats.nw_ucla import CLASSES, prepare

NAME = "a01_s01_e00_v01"
GOOD = ("a02_s02_e00_v01", "a12_s04_e01_v03")


def main(argv: list[str]) -> None:
    """Run the command as its entry point does."""
    run_command(lambda: data_nw_ucla.main(argv))


def skeletons(frames: int = 3) -> list[Any]:
    return np.arange(frames * 60, dtype=float).reshape(frames, 20, 3).tolist()


def clip_json(name: str, **changes: Any) -> bytes:
    """The JSON of a clip as in the release; a change to ``...`` removes the key."""
    labels = {"01": 1, "02": 2, "12": 10}
    fields = {"file_name": name, "skeletons": skeletons(), "label": labels.get(name[1:3], 1)} | changes
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


def fill(folder: Path, extra: dict[str, bytes] | None = None) -> Path:
    """Fill a folder with two valid clips and extra files, and return it."""
    for path, content in ({f"{name}.json": clip_json(name) for name in GOOD} | (extra or {})).items():
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
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in argv])
    assert exit_.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    return stderr


def edited(**changes: Any) -> dict[str, bytes]:
    return {f"{NAME}.json": clip_json(NAME, **changes)}


def with_value(text: str) -> dict[str, bytes]:
    """The clip with ``text`` in place of the y of joint 4 in frame 2."""
    frames = skeletons()
    frames[2][4][1] = "HERE"
    return {f"{NAME}.json": clip_json(NAME, skeletons=frames).replace(b'"HERE"', text.encode())}


def renamed(name: str) -> dict[str, bytes]:
    return {f"{name}.json": clip_json(name, file_name=..., label=...)}


def with_frame(frame: Any) -> dict[str, bytes]:
    return edited(skeletons=[*skeletons(2), frame])


BAD = {
    "broken JSON": ({f"{NAME}.json": clip_json(NAME)[:-9]}, "is not valid JSON"),
    "empty file": ({f"{NAME}.json": b""}, "is not valid JSON"),
    "not an object": ({f"{NAME}.json": b"[1, 2]"}, "is not a JSON object"),
    "null": ({f"{NAME}.json": b"null"}, "is not a JSON object"),
    "no skeletons": (edited(skeletons=...), "has no key 'skeletons'"),
    "skeletons is text": (edited(skeletons="many"), "skeletons is not a list of frames"),
    "skeletons is null": (edited(skeletons=None), "skeletons is not a list of frames"),
    "19 joints": (with_frame(skeletons(1)[0][:19]), "frame 2 is 19 joints instead of 20"),
    "21 joints": (with_frame(skeletons(1)[0] + [[0, 0, 0]]), "frame 2 is 21 joints instead of 20"),
    "ragged": (with_frame([*skeletons(1)[0][:19], [1.0, 2.0]]), "frame 2, joint 19 is 2 numbers instead of 3"),
    "one level too few": (edited(skeletons=skeletons()[0]), "frame 0 is 3 joints instead of 20"),
    "one level too many": (edited(skeletons=[skeletons()] * 20), "frame 0 is 3 joints"),
    "joint is null": (with_frame([*skeletons(1)[0][:19], None]), "frame 2, joint 19 is null instead of 3"),
    "value is a list": (with_value("[1.0]"), "y of frame 2, joint 4 is a list, not a number"),
    "value is text": (with_value('"1.5"'), "y of frame 2, joint 4 is '1.5', not a number"),
    "value is a boolean": (with_value("true"), "y of frame 2, joint 4 is true, not a number"),
    "value is null": (with_value("null"), "y of frame 2, joint 4 is null, not a number"),
    "NaN": (with_value("NaN"), "y of frame 2, joint 4 is nan, not a finite number"),
    "infinity": (with_value("-Infinity"), "y of frame 2, joint 4 is -inf, not a finite number"),
    "too big for a float64": (with_value("1e999"), "y of frame 2, joint 4 is inf, not a finite number"),
    "too big for a float32": (with_value("1e39"), "y of frame 2, joint 4 is 1e+39, which is too large"),
    "whole number of 400 digits": (with_value("9" * 400), "a coordinate is too large"),
    "whole number of 5000 digits": (with_value("9" * 5000), "is not valid JSON"),
    "no frame": (edited(skeletons=[]), "has no frame"),
    "another file's name": (edited(file_name="a01_s01_e00_v02"), "has file_name 'a01_s01_e00_v02'"),
    "file_name is a number": (edited(file_name=7), "has file_name 7"),
    "another label": (edited(label=2), "has label 2, but its name implies label 1"),
    "label is text": (edited(label="1"), "has label '1'"),
    "label is a boolean": (edited(label=True), "has label true"),
    "deeply nested": ({f"{NAME}.json": b"[" * 200_000}, "is nested too deeply"),
    "not UTF-8": ({f"{NAME}.json": clip_json(NAME).replace(b"a01", b"a\xff1")}, "is not UTF-8"),
    "UTF-16": ({f"{NAME}.json": clip_json(NAME).decode().encode("utf-16")}, "is not UTF-8"),
    "name without a view": (renamed("a01_s01_e00"), "a01_s01_e00.json: is not named like a clip"),
    "name with more": (renamed(NAME + "_copy"), "is not named like a clip"),
    "Arabic digits": (renamed("a٠١_s01_e00_v01"), "is not named like a clip"),
    "unknown action": (renamed("a07_s01_e00_v01"), "a07_s01_e00_v01.json: is named after action 07"),
    "unknown subject": (renamed("a01_s11_e00_v01"), "is named after subject 11"),
    "unknown view": (renamed("a01_s01_e00_v04"), "is named after view 04"),
    "view 0": (renamed("a01_s01_e00_v00"), "is named after view 00"),
    "twice": ({f"{part}/{NAME}.json": clip_json(NAME) for part in "xy"}, f"occurs 2 times, also as x/{NAME}.json"),
}  # fmt: skip


class TestRealRecordings:
    def test_counts_and_splits(self, nw_ucla: ArrowDataset, nw_ucla_zip: Path) -> None:
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

    def test_clips_equal_the_json(self, nw_ucla: ArrowDataset, nw_ucla_zip: Path) -> None:
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

    def test_description(self, nw_ucla: ArrowDataset) -> None:
        assert (nw_ucla.name, nw_ucla.recipe, nw_ucla.skeleton.name) == ("nw-ucla", "nw-ucla", "nw-ucla-20")
        assert nw_ucla.classes == CLASSES
        assert set(nw_ucla.columns["label"].tolist()) == set(range(10))
        frames = nw_ucla.columns["num_frames"]
        assert (frames.min(), np.median(frames), frames.max()) == (1, 31, 201)
        assert nw_ucla.source["kept"] == nw_ucla.source["files"] == 1484
        assert len(nw_ucla.source["sha256"]) == 64

    def test_zip_and_folder_give_the_same_bytes(self, nw_ucla: ArrowDataset, nw_ucla_zip: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(nw_ucla_zip) as archive:
            archive.extractall(tmp_path / "unpacked")
        dataset, _ = prepare(tmp_path / "unpacked" / "all_sqe", tmp_path / "out")
        assert dataset.digest == nw_ucla.digest
        for file in sorted(nw_ucla.path.iterdir()):
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name

    def test_command_prints_a_summary(self, nw_ucla_zip: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "data_prep.nw_ucla", str(nw_ucla_zip), "my data"]
        root = Path(__file__).parents[2]
        result = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""  # no progress bar unless a terminal shows it
        for line in ("1,484 clips", "1,020 train, 464 test", "1 to 201, median 31", "173  walk around"):
            assert line in result.stdout
        assert result.stdout.endswith("  python sweeps/focal_k.py --dataset 'my data'\n")
        assert "  python -m fgst.train --dataset 'my data'\n" in result.stdout
        assert len(ArrowDataset(tmp_path / "my data")) == 1484


class TestInvalidClips:
    @pytest.mark.parametrize("case", BAD)
    @pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
    def test_invalid_clip_is_reported_in_one_line(
        self, case: str, packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files, fault = BAD[case]
        source = fill(tmp_path / "in", files)
        if packed:
            members = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*.json")}
            source = pack(tmp_path / "in.zip", members)
        before = sorted(tmp_path.iterdir())
        line = error_line(capsys, source, tmp_path / "out")
        assert line.startswith(f"error: {source}: {list(files)[-1]}: ")
        assert fault in line
        assert "--skip-bad" in line
        assert sorted(tmp_path.iterdir()) == before  # neither OUT nor a temporary folder

    @pytest.mark.parametrize("case", BAD)
    def test_invalid_clip_is_skipped_and_listed_with_skip_bad(
        self, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files, fault = BAD[case]
        main([str(fill(tmp_path / "in", files)), str(tmp_path / "out"), "--skip-bad"])
        stdout, stderr = capsys.readouterr()
        assert stderr == ""
        expected = {*GOOD, NAME} if case == "twice" else {*GOOD}  # the first of equal copies is used
        dataset = ArrowDataset(tmp_path / "out")
        assert set(dataset.clip_ids) == expected
        listed = [line for line in stdout.splitlines() if fault in line]
        assert len(listed) == 1
        assert list(files)[-1] in listed[0]
        assert dataset.source["left_out"] == 1
        assert dataset.source["files"] == len(expected) + 1

    def test_contradictory_copies_are_all_skipped(self, tmp_path: Path) -> None:
        copies = {f"x/{NAME}.json": clip_json(NAME), f"y/{NAME}.json": clip_json(NAME, skeletons=skeletons(5))}
        dataset, report = prepare(fill(tmp_path / "in", copies), tmp_path / "out", skip_bad=True)
        assert dataset.clip_ids.tolist() == list(GOOD)
        assert [path for path, _ in report.rejected] == list(copies)

    def test_first_fault_by_name_is_reported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in", {"z/a01_s01_e00_v01.json": b"{}", "a/a03_s01_e00_v01.json": b"{}"})
        assert "z/a01_s01_e00_v01.json" in error_line(capsys, source, tmp_path / "out")

    def test_source_without_a_valid_clip_is_rejected(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / f"{NAME}.json").write_bytes(b"{}")
        line = error_line(capsys, tmp_path / "in", tmp_path / "out", "--skip-bad")
        assert "none of its 1 JSON files is a clip" in line
        assert f"{NAME}.json: has no key 'skeletons'" in line
        assert not (tmp_path / "out").exists()

    def test_existing_data_set_survives_failures(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        good, bad = fill(tmp_path / "good"), fill(tmp_path / "bad", edited(skeletons=[]))
        prepare(good, tmp_path / "out")
        before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
        assert "--overwrite" in error_line(capsys, good, tmp_path / "out")
        assert NAME in error_line(capsys, bad, tmp_path / "out", "--overwrite")
        assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good", "out"]
        main([str(bad), str(tmp_path / "out"), "--overwrite", "--skip-bad"])
        assert ArrowDataset(tmp_path / "out").source["left_out"] == 1

    def test_invalid_clip_in_a_shell(self, tmp_path: Path) -> None:
        source = fill(tmp_path / "in", with_value("NaN"))
        command = [sys.executable, "-m", "data_prep.nw_ucla", str(source), str(tmp_path / "out")]
        result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr.count("\n") == 1
        assert f"{NAME}.json: y of frame 2, joint 4 is nan" in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_huge_file_is_rejected(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(nw_ucla_format, "MAX_FILE_BYTES", 1 << 20)
        huge = {f"{NAME}.json": b" " * (1 << 20) + clip_json(NAME)}
        for source in (fill(tmp_path / "in", huge), pack(tmp_path / "in.zip", huge)):
            line = error_line(capsys, source, tmp_path / "out")
            assert f"{NAME}.json: is larger than 1 MiB, the limit for a clip" in line

    def test_pipe_and_broken_link_are_rejected(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pipe = fill(tmp_path / "pipe") / f"{NAME}.json"
        os.mkfifo(pipe)
        assert f"{NAME}.json: is not a regular file" in error_line(capsys, pipe.parent, tmp_path / "out")
        link = fill(tmp_path / "link") / f"{NAME}.json"
        link.symlink_to("nowhere")
        assert f"{NAME}.json: is not a regular file" in error_line(capsys, link.parent, tmp_path / "out")

    def test_control_characters_in_names_are_escaped(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = pack(tmp_path / "in.zip", {"a\x1b[31m\n01.json": b"{}"})
        assert r"a\x1b[31m\n01.json: is not named like a clip" in error_line(capsys, source, tmp_path / "out")


class TestDamagedZip:
    def members(self) -> dict[str, bytes]:
        return {f"all_sqe/{name}.json": clip_json(name) for name in GOOD}

    def test_not_a_zip(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "all_sqe.zip").write_bytes(b"<html>404</html>")
        line = error_line(capsys, tmp_path / "all_sqe.zip", tmp_path / "out")
        assert f"{tmp_path / 'all_sqe.zip'}: is not a zip" in line
        assert "download it again" in line

    def test_truncated(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        whole = pack(tmp_path / "in.zip", self.members())
        whole.write_bytes(whole.read_bytes()[:-30])
        assert "in.zip: is not a zip, or is incomplete" in error_line(capsys, whole, tmp_path / "out")

    def test_beginning_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        whole = pack(tmp_path / "in.zip", self.members())
        whole.write_bytes(whole.read_bytes()[40:])
        error_line(capsys, whole, tmp_path / "out")

    def test_damaged_member(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = pack(tmp_path / "in.zip", self.members(), zipfile.ZIP_STORED)
        path.write_bytes(path.read_bytes().replace(b"59.0", b"58.0", 1))
        line = error_line(capsys, path, tmp_path / "out")
        assert f"all_sqe/{GOOD[0]}.json: is damaged inside the zip (Bad CRC-32" in line

    def test_encrypted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = pack(tmp_path / "in.zip", self.members())
        content = bytearray(path.read_bytes())
        at = content.find(b"PK\x01\x02")  # flag bits in the central directory
        content[at + 8] |= 1
        path.write_bytes(content)
        assert f"all_sqe/{GOOD[0]}.json: is encrypted" in error_line(capsys, path, tmp_path / "out")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_method_without_bounded_memory(
        self, method: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = pack(tmp_path / "in.zip", self.members(), method)
        assert f"is compressed by method {method}: unpack" in error_line(capsys, path, tmp_path / "out")

    @pytest.mark.parametrize("claim", [10, 2 * sources.MAX_FILE_BYTES, 4_000_000_000])
    def test_size_in_the_header_is_not_trusted(
        self, claim: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A huge member with a small size in its header, one with its real size, and a small one with a huge size."""
        name = f"{NAME}.json"
        content = clip_json(NAME) if claim == 4_000_000_000 else b" " * (2 * sources.MAX_FILE_BYTES)
        path = pack(tmp_path / "in.zip", {name: content})
        whole = bytearray(path.read_bytes())
        struct.pack_into("<I", whole, whole.find(b"PK\x01\x02") + 24, claim)
        path.write_bytes(whole)
        reads: list[int] = []
        read = zipfile.ZipExtFile.read

        def recording_read(file: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
            content = read(file, n)
            reads.append(len(content))
            return content

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zipfile.ZipExtFile, "read", recording_read)
            if claim == 4_000_000_000:
                prepare(path, tmp_path / "out")  # the content is a valid clip
            else:
                fault = "is damaged inside the zip" if claim == 10 else "is larger than 16 MiB"
                assert f"{name}: {fault}" in error_line(capsys, path, tmp_path / "out")
        assert sum(reads) <= sources.MAX_FILE_BYTES + 1

    def test_zip_is_not_unpacked(self, tmp_path: Path) -> None:
        prepare(pack(tmp_path / "in.zip", {"../../escape.txt": b"x", **self.members()}), tmp_path / "a" / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "in.zip"]
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]

    def test_repeated_member_is_rejected(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                archive.writestr(f"{NAME}.json", clip_json(NAME))
        assert f"clip {NAME} occurs 2 times" in error_line(capsys, path, tmp_path / "out")


class TestSource:
    @pytest.mark.parametrize("argv", [[], ["only-one"], ["a", "b", "--no-such-option"]])
    def test_invalid_command_line(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert "see python -m data_prep.nw_ucla --help" in error_line(capsys, *argv)

    def test_missing_source(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = error_line(capsys, tmp_path / "nowhere.zip", tmp_path / "out")
        assert f"{tmp_path / 'nowhere.zip'}: no such file or folder; give all_sqe.zip" in line

    def test_missing_source_in_a_shell(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "data_prep.nw_ucla", str(tmp_path / "nowhere.zip"), str(tmp_path / "out")]
        result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert "nowhere.zip: no such file or folder" in result.stderr

    def test_folder_and_zip_without_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "all_sqe.zip").write_bytes(b"")
        assert f"{tmp_path / 'in'}: contains no .json file" in error_line(capsys, tmp_path / "in", tmp_path / "out")
        packed = pack(tmp_path / "in.zip", {"readme.txt": b""})
        assert f"{packed}: contains no .json file" in error_line(capsys, packed, tmp_path / "out")

    def test_output_is_checked_before_any_clip_is_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("dear")
        line = error_line(capsys, tmp_path / "no such source", tmp_path / "out", "--overwrite")
        assert f"{tmp_path / 'out'}: is not empty and not a data set" in line
        assert (tmp_path / "out" / "thesis.tex").read_text() == "dear"

    def test_output_inside_the_source_is_rejected(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in")
        assert "is inside SOURCE" in error_line(capsys, source, source / "out")

    def test_system_files_are_skipped_and_other_files_counted(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
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
        for number, given in enumerate((source, pack(tmp_path / "in.zip", members))):
            main([str(given), str(tmp_path / f"out{number}")])
            assert ArrowDataset(tmp_path / f"out{number}").clip_ids.tolist() == list(GOOD)
            assert "3 files that are not JSON" in capsys.readouterr().out

    def test_missing_labels_byte_order_mark_and_upper_case_suffix_are_accepted(self, tmp_path: Path) -> None:
        extra = {f"{NAME}.JSON": b"\xef\xbb\xbf" + clip_json(NAME, label=..., file_name=..., more=[1])}
        dataset, _ = prepare(fill(tmp_path / "in", extra), tmp_path / "out")
        row = dataset.clip_ids.tolist().index(NAME)
        assert np.array_equal(dataset.clip(row), np.array(skeletons(), np.float32)[None])
        assert dataset.columns["label"].tolist() == [0, 1, 9]

    def test_recorded_digest_follows_the_content(self, tmp_path: Path) -> None:
        first = prepare(fill(tmp_path / "1"), tmp_path / "out1")[0]
        second = prepare(fill(tmp_path / "2", {f"{GOOD[0]}.json": clip_json(GOOD[0]) + b" "}), tmp_path / "out2")[0]
        assert first.digest == second.digest  # the same clips ...
        assert first.source["sha256"] != second.source["sha256"]  # ... from different files
        assert str(tmp_path) not in (first.path / "dataset.json").read_text()

    def test_full_disk_is_reported_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full_disk(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(nw_ucla_format, "write_dataset", full_disk)
        line = error_line(capsys, fill(tmp_path / "in"), tmp_path / "out")
        assert f"{tmp_path / 'out'}: cannot be written (No space left on device)" in line


def test_files_are_read_up_to_the_size_limit(tmp_path: Path) -> None:
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
