"""Data sets on S3: the server is moto's on this machine; client, network and copies are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.training.trainer import fit
from tests.support.small import small_config, write_small


def upload(bucket: Any, dataset: ArrowDataset, prefix: str) -> str:
    """Upload a data set and return its URI."""
    for file in dataset.path.iterdir():
        bucket.upload_file(str(file), "motion", f"{prefix}/{file.name}")
    return f"s3://motion/{prefix}"


def test_training_on_data_set_in_bucket(bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = write_small(tmp_path / "original", shard_bytes=6000)
    uri = upload(bucket, original, "sets/small")
    copy = ArrowDataset(uri)
    assert copy.digest == original.digest
    for row in range(len(original)):
        np.testing.assert_array_equal(copy.clip(row), original.clip(row))
    assert "copying s3://motion/sets/small" in capsys.readouterr().err
    (remote,) = fit(small_config(original, train__epochs=1).with_values({"data.dataset": uri}), device="cpu")
    (local,) = fit(small_config(original, train__epochs=1), device="cpu")
    assert remote.metrics["train/loss"] == local.metrics["train/loss"]
    assert capsys.readouterr().err == ""


def test_missing_and_damaged_objects_are_reported(bucket: Any, tmp_path: Path) -> None:
    for uri in ("s3://motion/nothing", "s3://no-such-bucket/x"):
        with pytest.raises(InputError, match=r"is not a data set|cannot be read"):
            ArrowDataset(uri)
    dataset = write_small(tmp_path / "dataset", shard_bytes=6000)
    uri = upload(bucket, dataset, "half")
    files = [file["name"] for file in json.loads((dataset.path / "dataset.json").read_text())["files"]]
    bucket.delete_object(Bucket="motion", Key=f"half/{files[1]}")
    with pytest.raises(InputError, match=f"{files[1]}: is missing"):
        ArrowDataset(uri)
    bucket.put_object(Bucket="motion", Key=f"half/{files[1]}", Body=b"something else")
    with pytest.raises(InputError, match=f"{files[1]}: does not match its entry"):
        ArrowDataset(uri)
    bucket.upload_file(str(dataset.path / files[1]), "motion", f"half/{files[1]}")
    assert len(ArrowDataset(uri)) == len(dataset)


def test_unreachable_object_store_is_reported(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match=r"s3://motion/x: cannot be read") as error:
        ArrowDataset("s3://motion/x")
    assert "\n" not in str(error.value)
    assert "a secret" not in str(error.value)
