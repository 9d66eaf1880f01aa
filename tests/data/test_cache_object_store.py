"""A data set on S3, as moto's server speaks it on loopback: the client, the wire and the copies are real."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.training.trainer import fit
from tests.support.small import small_config, write_small


def upload(store: object, dataset: ArrowDataset, prefix: str) -> str:
    for file in dataset.path.iterdir():
        store.upload_file(str(file), "motion", f"{prefix}/{file.name}")  # type: ignore[attr-defined]
    return f"s3://motion/{prefix}"


def test_a_trial_on_a_data_set_in_a_bucket(bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = write_small(tmp_path / "here", shard_bytes=6000)
    uri = upload(bucket, here, "sets/small")
    there = ArrowDataset(uri)
    assert there.digest == here.digest
    for row in range(len(here)):
        np.testing.assert_array_equal(there.clip(row), here.clip(row))
    assert "copying s3://motion/sets/small" in capsys.readouterr().err
    (result,) = fit(small_config(here, train__epochs=1).with_values({"data.dataset": uri}), device="cpu")
    (same,) = fit(small_config(here, train__epochs=1), device="cpu")
    assert result.metrics["train/loss"] == same.metrics["train/loss"]
    assert capsys.readouterr().err == ""


def test_what_is_wrong_in_a_bucket_is_one_message(bucket, tmp_path: Path) -> None:
    for uri in ("s3://motion/nothing", "s3://nobody-has-this/x"):
        with pytest.raises(InputError, match=r"is not a data set|cannot be read"):
            ArrowDataset(uri)
    here = write_small(tmp_path / "here", shard_bytes=6000)
    uri = upload(bucket, here, "half")
    files = [file["name"] for file in json.loads((here.path / "dataset.json").read_text())["files"]]
    bucket.delete_object(Bucket="motion", Key=f"half/{files[1]}")
    with pytest.raises(InputError, match=f"{files[1]}: is missing"):
        ArrowDataset(uri)
    bucket.put_object(Bucket="motion", Key=f"half/{files[1]}", Body=b"something else")
    with pytest.raises(InputError, match=f"{files[1]}: is not the file"):
        ArrowDataset(uri)
    bucket.upload_file(str(here.path / files[1]), "motion", f"half/{files[1]}")
    assert len(ArrowDataset(uri)) == len(here)


def test_a_store_that_does_not_answer_is_one_message(bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(InputError, match=r"s3://motion/x: cannot be read") as error:
        ArrowDataset("s3://motion/x")
    assert "\n" not in str(error.value)
    assert "a secret" not in str(error.value)
