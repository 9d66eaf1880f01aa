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

from fgst.cli import data_nw_ucla as module
from fgst.cli.data_nw_ucla import CLASSES, main, prepare
from fgst.data import sources
from fgst.data.dataset import ArrowDataset

NAME = "a01_s01_e00_v01"
GOOD = ("a02_s02_e00_v01", "a12_s04_e01_v03")


def skeletons(frames: int = 3) -> list[Any]:
    return np.arange(frames * 60, dtype=float).reshape(frames, 20, 3).tolist()


def clip_json(name: str, **changes: Any) -> bytes:
    """The JSON of a clip as in the release; a change to ``...`` takes the key away."""
    labels = {"01": 1, "02": 2, "12": 10}
    fields = {"file_name": name, "skeletons": skeletons(), "label": labels.get(name[1:3], 1)} | changes
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode()


def fill(folder: Path, extra: dict[str, bytes] | None = None) -> Path:
    """A folder with two good clips and others."""
    for place, content in ({f"{name}.json": clip_json(name) for name in GOOD} | (extra or {})).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)
    return folder


def pack(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that occur twice
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def refusal(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line that the command prints on stderr before it exits with 2."""
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
    "broken JSON": ({f"{NAME}.json": clip_json(NAME)[:-9]}, "is not JSON"),
    "empty file": ({f"{NAME}.json": b""}, "is not JSON"),
    "not an object": ({f"{NAME}.json": b"[1, 2]"}, "holds no JSON object"),
    "null": ({f"{NAME}.json": b"null"}, "holds no JSON object"),
    "no skeletons": (edited(skeletons=...), "has no key 'skeletons'"),
    "skeletons is text": (edited(skeletons="many"), "skeletons is no list of frames"),
    "skeletons is null": (edited(skeletons=None), "skeletons is no list of frames"),
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
    "too big for a float32": (with_value("1e39"), "y of frame 2, joint 4 is 1e+39, too big a number"),
    "whole number of 400 digits": (with_value("9" * 400), "too big a number"),
    "whole number of 5000 digits": (with_value("9" * 5000), "is not JSON"),
    "no frame": (edited(skeletons=[]), "has no frame"),
    "another file's name": (edited(file_name="a01_s01_e00_v02"), "calls itself 'a01_s01_e00_v02'"),
    "file_name is a number": (edited(file_name=7), "calls itself 7"),
    "another label": (edited(label=2), "has label 2, but its name stands for label 1"),
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
    def test_counts_and_split_by_name(self, nw_ucla: ArrowDataset, nw_ucla_zip: Path) -> None:
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

    def test_every_clip_is_its_json(self, nw_ucla: ArrowDataset, nw_ucla_zip: Path) -> None:
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

    def test_command_reports(self, nw_ucla_zip: Path, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "data_prep.nw_ucla", str(nw_ucla_zip), "my data"]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # no progress bar unless a terminal shows it
        for line in ("1,484 clips", "1,020 train, 464 test", "1 to 201, median 31", "173  walk around"):
            assert line in done.stdout
        assert done.stdout.endswith("  python sweeps/focal_k.py --dataset 'my data'\n")
        assert "  python -m fgst.train --dataset 'my data'\n" in done.stdout
        assert len(ArrowDataset(tmp_path / "my data")) == 1484


class TestBadClips:
    @pytest.mark.parametrize("case", BAD)
    @pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
    def test_is_refused_in_one_line(
        self, case: str, packed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files, fault = BAD[case]
        source = fill(tmp_path / "in", files)
        if packed:
            members = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*.json")}
            source = pack(tmp_path / "in.zip", members)
        before = sorted(tmp_path.iterdir())
        line = refusal(capsys, source, tmp_path / "out")
        assert line.startswith(f"error: {source}: {list(files)[-1]}: ")
        assert fault in line
        assert "--skip-bad" in line
        assert sorted(tmp_path.iterdir()) == before  # neither OUT nor a temporary folder beside it

    @pytest.mark.parametrize("case", BAD)
    def test_is_left_out_and_listed(self, case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        files, fault = BAD[case]
        main([str(fill(tmp_path / "in", files)), str(tmp_path / "out"), "--skip-bad"])
        stdout, stderr = capsys.readouterr()
        assert stderr == ""
        kept = {*GOOD, NAME} if case == "twice" else {*GOOD}  # of equal copies one is kept
        dataset = ArrowDataset(tmp_path / "out")
        assert set(dataset.clip_ids) == kept
        listed = [line for line in stdout.splitlines() if fault in line]
        assert len(listed) == 1
        assert list(files)[-1] in listed[0]
        assert dataset.source["left_out"] == 1
        assert dataset.source["files"] == len(kept) + 1

    def test_different_copies_are_all_left_out(self, tmp_path: Path) -> None:
        copies = {f"x/{NAME}.json": clip_json(NAME), f"y/{NAME}.json": clip_json(NAME, skeletons=skeletons(5))}
        dataset, reading = prepare(fill(tmp_path / "in", copies), tmp_path / "out", skip_bad=True)
        assert dataset.clip_ids.tolist() == list(GOOD)
        assert [place for place, _ in reading.left_out] == list(copies)

    def test_first_fault_by_name_is_the_one_reported(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in", {"z/a01_s01_e00_v01.json": b"{}", "a/a03_s01_e00_v01.json": b"{}"})
        assert "z/a01_s01_e00_v01.json" in refusal(capsys, source, tmp_path / "out")

    def test_nothing_is_left(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / f"{NAME}.json").write_bytes(b"{}")
        line = refusal(capsys, tmp_path / "in", tmp_path / "out", "--skip-bad")
        assert "none of its 1 JSON files is a clip" in line
        assert f"{NAME}.json: has no key 'skeletons'" in line
        assert not (tmp_path / "out").exists()

    def test_existing_data_set_survives(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        good, bad = fill(tmp_path / "good"), fill(tmp_path / "bad", edited(skeletons=[]))
        prepare(good, tmp_path / "out")
        before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
        assert "--overwrite" in refusal(capsys, good, tmp_path / "out")
        assert NAME in refusal(capsys, bad, tmp_path / "out", "--overwrite")
        assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "good", "out"]
        main([str(bad), str(tmp_path / "out"), "--overwrite", "--skip-bad"])
        assert ArrowDataset(tmp_path / "out").source["left_out"] == 1

    def test_through_the_shell(self, tmp_path: Path) -> None:
        source = fill(tmp_path / "in", with_value("NaN"))
        command = [sys.executable, "-m", "data_prep.nw_ucla", str(source), str(tmp_path / "out")]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.count("\n") == 1
        assert f"{NAME}.json: y of frame 2, joint 4 is nan" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    def test_huge_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 1 << 20)
        huge = {f"{NAME}.json": b" " * (1 << 20) + clip_json(NAME)}
        for source in (fill(tmp_path / "in", huge), pack(tmp_path / "in.zip", huge)):
            line = refusal(capsys, source, tmp_path / "out")
            assert f"{NAME}.json: is larger than the 1 MiB that a clip may take" in line

    def test_pipe_and_broken_link(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        pipe = fill(tmp_path / "pipe") / f"{NAME}.json"
        os.mkfifo(pipe)
        assert f"{NAME}.json: is no regular file" in refusal(capsys, pipe.parent, tmp_path / "out")
        link = fill(tmp_path / "link") / f"{NAME}.json"
        link.symlink_to("nowhere")
        assert f"{NAME}.json: is no regular file" in refusal(capsys, link.parent, tmp_path / "out")

    def test_name_that_would_spoil_the_terminal(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = pack(tmp_path / "in.zip", {"a\x1b[31m\n01.json": b"{}"})
        assert r"a\x1b[31m\n01.json: is not named like a clip" in refusal(capsys, source, tmp_path / "out")


class TestBadZip:
    def members(self) -> dict[str, bytes]:
        return {f"all_sqe/{name}.json": clip_json(name) for name in GOOD}

    def test_not_a_zip(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "all_sqe.zip").write_bytes(b"<html>404</html>")
        line = refusal(capsys, tmp_path / "all_sqe.zip", tmp_path / "out")
        assert f"{tmp_path / 'all_sqe.zip'}: is no zip" in line
        assert "download it again" in line

    def test_truncated(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        whole = pack(tmp_path / "in.zip", self.members())
        whole.write_bytes(whole.read_bytes()[:-30])
        assert "in.zip: is no zip, or only a part of one" in refusal(capsys, whole, tmp_path / "out")

    def test_beginning_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        whole = pack(tmp_path / "in.zip", self.members())
        whole.write_bytes(whole.read_bytes()[40:])
        refusal(capsys, whole, tmp_path / "out")

    def test_damaged_member(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = pack(tmp_path / "in.zip", self.members(), zipfile.ZIP_STORED)
        path.write_bytes(path.read_bytes().replace(b"59.0", b"58.0", 1))
        line = refusal(capsys, path, tmp_path / "out")
        assert f"all_sqe/{GOOD[0]}.json: is damaged inside the zip (Bad CRC-32" in line

    def test_encrypted(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = pack(tmp_path / "in.zip", self.members())
        content = bytearray(path.read_bytes())
        at = content.find(b"PK\x01\x02")  # flag bits in the central directory
        content[at + 8] |= 1
        path.write_bytes(content)
        assert f"all_sqe/{GOOD[0]}.json: is encrypted" in refusal(capsys, path, tmp_path / "out")

    @pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_method_without_bounded_memory(
        self, method: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = pack(tmp_path / "in.zip", self.members(), method)
        assert f"is compressed by method {method}: unpack" in refusal(capsys, path, tmp_path / "out")

    @pytest.mark.parametrize("claim", [10, 2 * module.MAX_FILE_BYTES, 4_000_000_000])
    def test_size_in_the_header_is_not_believed(
        self, claim: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A huge member that says it is small, one that says what it is, and a small one that says it is huge."""
        name = f"{NAME}.json"
        content = clip_json(NAME) if claim == 4_000_000_000 else b" " * (2 * module.MAX_FILE_BYTES)
        path = pack(tmp_path / "in.zip", {name: content})
        whole = bytearray(path.read_bytes())
        struct.pack_into("<I", whole, whole.find(b"PK\x01\x02") + 24, claim)
        path.write_bytes(whole)
        reads: list[int] = []
        read = zipfile.ZipExtFile.read

        def watched(file: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
            got = read(file, n)
            reads.append(len(got))
            return got

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(zipfile.ZipExtFile, "read", watched)
            if claim == 4_000_000_000:
                prepare(path, tmp_path / "out")  # the content is a clip, whatever the header says
            else:
                fault = "is damaged inside the zip" if claim == 10 else "is larger than the 16 MiB"
                assert f"{name}: {fault}" in refusal(capsys, path, tmp_path / "out")
        assert sum(reads) <= module.MAX_FILE_BYTES + 1

    def test_nothing_is_unpacked(self, tmp_path: Path) -> None:
        prepare(pack(tmp_path / "in.zip", {"../../escape.txt": b"x", **self.members()}), tmp_path / "a" / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "in.zip"]
        assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]

    def test_same_member_twice(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "in.zip"
        with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(2):
                archive.writestr(f"{NAME}.json", clip_json(NAME))
        assert f"clip {NAME} occurs 2 times" in refusal(capsys, path, tmp_path / "out")


class TestSource:
    @pytest.mark.parametrize("argv", [[], ["only-one"], ["a", "b", "--no-such-option"]])
    def test_wrong_command_line(self, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert "see python -m data_prep.nw_ucla --help" in refusal(capsys, *argv)

    def test_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = refusal(capsys, tmp_path / "nowhere.zip", tmp_path / "out")
        assert f"{tmp_path / 'nowhere.zip'}: no such file or folder; name all_sqe.zip" in line

    def test_missing_through_the_shell(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "data_prep.nw_ucla", str(tmp_path / "nowhere.zip"), str(tmp_path / "out")]
        done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert "nowhere.zip: no such file or folder" in done.stderr

    def test_folder_and_zip_without_json(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "all_sqe.zip").write_bytes(b"")
        assert f"{tmp_path / 'in'}: holds no .json file" in refusal(capsys, tmp_path / "in", tmp_path / "out")
        packed = pack(tmp_path / "in.zip", {"readme.txt": b""})
        assert f"{packed}: holds no .json file" in refusal(capsys, packed, tmp_path / "out")

    def test_output_is_checked_before_any_clip_is_read(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("dear")
        line = refusal(capsys, tmp_path / "no such source", tmp_path / "out", "--overwrite")
        assert f"{tmp_path / 'out'}: is not empty and not a data set" in line
        assert (tmp_path / "out" / "thesis.tex").read_text() == "dear"

    def test_output_inside_the_source(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = fill(tmp_path / "in")
        assert "lies inside SOURCE" in refusal(capsys, source, source / "out")

    def test_foreign_files_are_passed_over_and_strays_counted(
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

    def test_optional_keys_byte_order_mark_and_upper_case_suffix(self, tmp_path: Path) -> None:
        extra = {f"{NAME}.JSON": b"\xef\xbb\xbf" + clip_json(NAME, label=..., file_name=..., more=[1])}
        dataset, _ = prepare(fill(tmp_path / "in", extra), tmp_path / "out")
        row = dataset.clip_ids.tolist().index(NAME)
        assert np.array_equal(dataset.clip(row), np.array(skeletons(), np.float32)[None])
        assert dataset.columns["label"].tolist() == [0, 1, 9]

    def test_recorded_digest_follows_the_content(self, tmp_path: Path) -> None:
        one = prepare(fill(tmp_path / "1"), tmp_path / "out1")[0]
        other = prepare(fill(tmp_path / "2", {f"{GOOD[0]}.json": clip_json(GOOD[0]) + b" "}), tmp_path / "out2")[0]
        assert one.digest == other.digest  # the same clips ...
        assert one.source["sha256"] != other.source["sha256"]  # ... from another download
        assert str(tmp_path) not in (one.path / "dataset.json").read_text()

    def test_unwritable_disk_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(module, "write_dataset", full)
        line = refusal(capsys, fill(tmp_path / "in"), tmp_path / "out")
        assert f"{tmp_path / 'out'}: cannot be written (No space left on device)" in line


def test_a_file_is_read_up_to_its_bound_only(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    path.write_bytes(b" " * 1000)
    with sources.open_source(tmp_path, suffix=".json", max_bytes=1000, hint="") as found:
        assert len(found.files[0].read()) == 1000
        os.truncate(path, 1001)
        with pytest.raises(sources.ClipError, match="larger"):
            found.files[0].read()
        os.truncate(path, 1 << 40)  # more than fits into memory; takes no room on the disk
        with pytest.raises(sources.ClipError, match="larger"):
            found.files[0].read()
