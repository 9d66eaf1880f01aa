"""Data sets behind a URI: one checked copy on this machine, whoever asks, and however often it was interrupted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
def store(tmp_path: Path) -> Path:
    """A data set of several files, far away."""
    return Path(write_small(tmp_path / "far" / "small", shard_bytes=6000).path)


def copies(cache: Path) -> list[Path]:
    return sorted(entry for entry in cache.iterdir() if entry.is_dir())


@pytest.mark.parametrize(
    ("location", "remote"),
    [
        ("s3://bucket/a", True),
        ("gs://b", True),
        ("file:///x", True),
        ("datasets/x", False),
        ("/x:y", False),
        ("c:/x", False),
    ],
)
def test_a_uri_is_told_from_a_folder(location: str, remote: bool) -> None:
    assert is_remote(location) is remote


def test_a_data_set_is_copied_once_and_is_the_same(
    cache: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = ArrowDataset(store), ArrowDataset(store.as_uri())
    assert there.location == store.as_uri()
    assert there.path.parent == cache
    assert there.digest == here.digest
    for row in range(len(here)):
        np.testing.assert_array_equal(there.clip(row), here.clip(row))
    assert "copying" in capsys.readouterr().err
    shutil.move(store / "clips-00001.arrow", store.parent)  # what was copied is not asked for again
    assert ArrowDataset(store.as_uri()).path == there.path
    assert capsys.readouterr().err == ""


def test_a_trial_keeps_the_uri(cache: Path, store: Path) -> None:
    config = small_config(store, train__epochs=1).with_values({"data.dataset": store.as_uri()})
    (result,) = fit(config, device="cpu")
    (same,) = fit(small_config(store, train__epochs=1), device="cpu")
    assert result.metrics["train/loss"] == same.metrics["train/loss"]
    from fgst.config import resolve

    assert resolve(config, ArrowDataset(store.as_uri())).data.dataset == store.as_uri()


def test_a_data_set_that_changed_is_another_copy(cache: Path, store: Path) -> None:
    before = local_copy(store.as_uri())
    shutil.rmtree(store)
    write_small(store, motion_clips(seed=1))
    after = local_copy(store.as_uri())
    assert before != after
    assert ArrowDataset(after).digest != ArrowDataset(before).digest


def test_what_was_copied_before_a_kill_is_kept(cache: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fgst.data.cache as module

    monkeypatch.setattr(module, "_digest", lambda path: pytest.fail("there is nothing yet"))
    last = sorted(store.glob("clips-*.arrow"))[-1]
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(InputError, match=f"{last.name}: is missing"):
        local_copy(store.as_uri())
    last.write_bytes(content)
    for file in sorted(store.glob("clips-*.arrow"))[:-1]:
        file.write_bytes(b"gone")  # and must not be read again
    monkeypatch.undo()
    monkeypatch.setenv("FGST_CACHE", str(cache))
    ArrowDataset(local_copy(store.as_uri()))


@pytest.mark.parametrize("damage", ["altered", "truncated", "longer"])
def test_a_damaged_upload_is_named_and_not_kept(damage: str, cache: Path, store: Path) -> None:
    file = sorted(store.glob("clips-*.arrow"))[1]
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes({"altered": content, "truncated": content[:-9], "longer": bytes(content) + b"x" * 9}[damage])
    with pytest.raises(InputError, match=r"clips-00001\.arrow: is not the file that"):
        local_copy(store.as_uri())
    assert [entry.name.endswith(".partial") for entry in copies(cache)] == [True]


COPY = "import sys; from fgst.data.cache import local_copy; print(local_copy(sys.argv[1]))"


def test_processes_that_ask_at_once_share_a_copy(cache: Path, store: Path) -> None:
    command = [sys.executable, "-c", COPY, store.as_uri()]
    environment = os.environ | {"FGST_CACHE": str(cache)}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate() for process in processes]
    assert len({out for out, _ in outputs}) == 1
    assert sum("copying" in error for _, error in outputs) == 1
    assert len(copies(cache)) == 1


def test_the_limit_keeps_what_was_used_last(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(InputError, match=r"FGST_CACHE_LIMIT\) is 1.0 kB, but"):
        local_copy(uris[2])


@pytest.mark.parametrize(
    ("text", "size"), [("20G", 20 * 10**9), ("1.5 k", 1500), ("7", 7), ("3MB", 3 * 10**6), ("2TiB", 2 * 10**12)]
)
def test_sizes(text: str, size: int) -> None:
    assert read_size(text, "x") == size
    with pytest.raises(InputError, match="x is"):
        read_size(text + "?", "x")


@pytest.mark.parametrize(
    ("uri", "word"),
    [
        ("file:///nowhere/at/all", "is not a data set"),
        ("nonsense://x/y", "cannot be read"),
        ("s3://key:secret@bucket/x", "holds a secret"),
    ],
)
def test_what_cannot_be_is_one_message(uri: str, word: str, cache: Path) -> None:
    with pytest.raises(InputError, match=word) as error:
        ArrowDataset(uri)
    assert "secret@" not in str(error.value)


def test_a_file_name_that_leaves_the_folder_is_refused(cache: Path, store: Path) -> None:
    description = store / "dataset.json"
    description.write_text(description.read_text().replace("clips-00000.arrow", "../../evil"))
    with pytest.raises(InputError, match="leaves the data set's folder"):
        local_copy(store.as_uri())
