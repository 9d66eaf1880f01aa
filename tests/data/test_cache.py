"""The local cache of data sets given by URI: verified copies, shared by processes, resumed after interruptions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fgst.config import resolve
from fgst.data.cache import is_remote, local_copy, read_size
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.training.trainer import fit
from tests.support.small import motion_clips, small_config, write_small


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FGST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FGST_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A data set of several files, outside the cache."""
    return Path(write_small(tmp_path / "remote" / "small", shard_bytes=6000).path)


def copies(cache: Path) -> list[Path]:
    """Return the folders in the cache."""
    return sorted(entry for entry in cache.iterdir() if entry.is_dir())


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/a", True),
        ("gs://b", True),
        ("file:///x", True),
        ("datasets/x", False),
        ("/x:y", False),
        ("c:/x", False),
    ],
)
def test_is_remote(location: str, expected: bool) -> None:
    assert is_remote(location) is expected


def test_data_set_is_downloaded_once_and_equals_original(
    cache: Path, remote: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, copy = ArrowDataset(remote), ArrowDataset(remote.as_uri())
    assert copy.location == remote.as_uri()
    assert copy.path.parent == cache
    assert copy.digest == original.digest
    for row in range(len(original)):
        np.testing.assert_array_equal(copy.clip(row), original.clip(row))
    assert "copying" in capsys.readouterr().err
    shutil.move(remote / "clips-00001.arrow", remote.parent)  # a cached file is not requested a second time
    assert ArrowDataset(remote.as_uri()).path == copy.path
    assert capsys.readouterr().err == ""


def test_resolved_configuration_contains_uri(cache: Path, remote: Path) -> None:
    config = small_config(remote, train__epochs=1).with_values({"data.dataset": remote.as_uri()})
    (from_uri,) = fit(config, device="cpu")
    (from_folder,) = fit(small_config(remote, train__epochs=1), device="cpu")
    assert from_uri.metrics["train/loss"] == from_folder.metrics["train/loss"]
    assert resolve(config, ArrowDataset(remote.as_uri())).data.dataset == remote.as_uri()


def test_modified_data_set_gets_new_copy(cache: Path, remote: Path) -> None:
    first = local_copy(remote.as_uri())
    shutil.rmtree(remote)
    write_small(remote, motion_clips(seed=1))
    second = local_copy(remote.as_uri())
    assert first != second
    assert ArrowDataset(second).digest != ArrowDataset(first).digest


def test_interrupted_download_reuses_complete_files(cache: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fgst.data.cache.file_digest", lambda path: pytest.fail("an incomplete file was verified"))
        last = sorted(remote.glob("clips-*.arrow"))[-1]
        content = last.read_bytes()
        last.unlink()
        with pytest.raises(InputError, match=f"{last.name}: is missing"):
            local_copy(remote.as_uri())
    last.write_bytes(content)
    for file in sorted(remote.glob("clips-*.arrow"))[:-1]:
        file.write_bytes(b"modified")  # must not be read a second time
    ArrowDataset(local_copy(remote.as_uri()))


@pytest.mark.parametrize("damage", ["altered", "truncated", "longer"])
def test_damaged_upload_is_reported_and_not_cached(damage: str, cache: Path, remote: Path) -> None:
    file = sorted(remote.glob("clips-*.arrow"))[1]
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(bytes({"altered": content, "truncated": content[:-9], "longer": content + b"x" * 9}[damage]))
    with pytest.raises(InputError, match=r"clips-00001\.arrow: does not match its entry in dataset"):
        local_copy(remote.as_uri())
    assert [entry.name.endswith(".partial") for entry in copies(cache)] == [True]


COPY = "import sys; from fgst.data.cache import local_copy; print(local_copy(sys.argv[1]))"


def test_concurrent_processes_share_one_download(cache: Path, remote: Path) -> None:
    command = [sys.executable, "-c", COPY, remote.as_uri()]
    environment = os.environ | {"FGST_CACHE": str(cache)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate() for process in processes]
    assert len({out for out, _ in outputs}) == 1
    assert sum("copying" in error for _, error in outputs) == 1
    assert len(copies(cache)) == 1


def test_cache_limit_evicts_least_recently_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [
        Path(write_small(tmp_path / name, motion_clips(seed=seed)).path).as_uri() for seed, name in enumerate("abc")
    ]
    first, second = map(local_copy, uris[:2])
    size = sum(file.stat().st_size for file in first.iterdir())
    os.utime(first, (2e9, 2e9))
    os.utime(second, (1e9, 1e9))
    monkeypatch.setenv("FGST_CACHE_LIMIT", str(int(2.5 * size)))
    third = local_copy(uris[2])
    assert [path.is_dir() for path in (first, second, third)] == [True, False, True]
    monkeypatch.setenv("FGST_CACHE_LIMIT", "1k")
    shutil.rmtree(third)
    with pytest.raises(InputError, match=r"FGST_CACHE_LIMIT\) of 1.0 kB"):
        local_copy(uris[2])


@pytest.mark.parametrize(
    ("text", "size"), [("20G", 20 * 10**9), ("1.5 k", 1500), ("7", 7), ("3MB", 3 * 10**6), ("2TiB", 2 * 10**12)]
)
def test_read_size(text: str, size: int) -> None:
    assert read_size(text, "x") == size
    with pytest.raises(InputError, match="x is"):
        read_size(text + "?", "x")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("file:///nowhere/at/all", "is not a data set"),
        ("nonsense://x/y", "cannot be read"),
        ("s3://key:secret@bucket/x", "contains a password"),
    ],
)
def test_invalid_uris_are_reported(uri: str, message: str, cache: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        ArrowDataset(uri)
    assert "secret@" not in str(error.value)


def test_file_names_outside_folder_are_rejected(cache: Path, remote: Path) -> None:
    description = remote / "dataset.json"
    description.write_text(description.read_text().replace("clips-00000.arrow", "../../evil"))
    with pytest.raises(InputError, match="points outside the data set's directory"):
        local_copy(remote.as_uri())
