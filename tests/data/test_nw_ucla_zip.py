"""Preparation of Northwestern-UCLA: damaged, encrypted and malicious zips."""

from __future__ import annotations

import struct
import warnings
import zipfile
from pathlib import Path

import pytest

from fgst.data import sources
from fgst.data.formats.nw_ucla import prepare
from tests.data.nw_ucla_files import NAME, VALID_NAMES, clip_json, error_line, pack


def members() -> dict[str, bytes]:
    """Return the members of a valid zip."""
    return {f"all_sqe/{name}.json": clip_json(name) for name in VALID_NAMES}


def test_file_that_is_not_a_zip_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all_sqe.zip").write_bytes(b"<html>404</html>")
    line = error_line(capsys, tmp_path / "all_sqe.zip", tmp_path / "out")
    assert f"{tmp_path / 'all_sqe.zip'}: is not a zip" in line
    assert "download it again" in line


def test_truncated_zip_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = pack(tmp_path / "in.zip", members())
    archive.write_bytes(archive.read_bytes()[:-30])
    assert "in.zip: is not a zip, or is incomplete" in error_line(capsys, archive, tmp_path / "out")


def test_zip_without_beginning_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = pack(tmp_path / "in.zip", members())
    archive.write_bytes(archive.read_bytes()[40:])
    error_line(capsys, archive, tmp_path / "out")


def test_damaged_member_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pack(tmp_path / "in.zip", members(), zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"59.0", b"58.0", 1))
    line = error_line(capsys, path, tmp_path / "out")
    assert f"all_sqe/{VALID_NAMES[0]}.json: is damaged inside the zip (Bad CRC-32" in line


def test_encrypted_member_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = pack(tmp_path / "in.zip", members())
    content = bytearray(path.read_bytes())
    position = content.find(b"PK\x01\x02")  # the central directory, which contains the flags
    content[position + 8] |= 1
    path.write_bytes(content)
    assert f"all_sqe/{VALID_NAMES[0]}.json: is encrypted" in error_line(capsys, path, tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_method_without_bounded_memory_is_rejected(
    method: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pack(tmp_path / "in.zip", members(), method)
    assert f"is compressed by method {method}: unpack" in error_line(capsys, path, tmp_path / "out")


@pytest.mark.parametrize("claimed_size", [10, 2 * sources.MAX_FILE_BYTES, 4_000_000_000])
def test_size_in_header_is_not_trusted(claimed_size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A huge member with a small size in its header, a huge one with its size, and a small one with a huge size."""
    name = f"{NAME}.json"
    content = clip_json(NAME) if claimed_size == 4_000_000_000 else b" " * (2 * sources.MAX_FILE_BYTES)
    path = pack(tmp_path / "in.zip", {name: content})
    archive = bytearray(path.read_bytes())
    struct.pack_into("<I", archive, archive.find(b"PK\x01\x02") + 24, claimed_size)
    path.write_bytes(archive)
    reads: list[int] = []
    read = zipfile.ZipExtFile.read

    def recording_read(file: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        content = read(file, n)
        reads.append(len(content))
        return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipExtFile, "read", recording_read)
        if claimed_size == 4_000_000_000:
            prepare(path, tmp_path / "out")  # the content is a valid clip
        else:
            fault = "is damaged inside the zip" if claimed_size == 10 else "is larger than 16 MiB"
            assert f"{name}: {fault}" in error_line(capsys, path, tmp_path / "out")
    assert sum(reads) <= sources.MAX_FILE_BYTES + 1


def test_zip_is_not_unpacked(tmp_path: Path) -> None:
    prepare(pack(tmp_path / "in.zip", {"../../escape.txt": b"x", **members()}), tmp_path / "a" / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "in.zip"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


def test_repeated_member_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr(f"{NAME}.json", clip_json(NAME))
    assert f"clip {NAME} occurs 2 times" in error_line(capsys, path, tmp_path / "out")
