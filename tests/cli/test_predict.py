"""The command ``fgst predict``: output, standard input and exit codes."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import torch

from fgst.cli.predict import main
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.tracking.store import TrackingStore
from tests.evaluation.helpers import npy_bytes
from tests.support import small


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def run_id(dataset: ArrowDataset, tracking_uri: str, tmp_path: Path) -> str:
    """A trial with a checkpoint."""
    checkpoint = small.save_untrained_network(dataset, tmp_path / "network")
    store = TrackingStore(tracking_uri)
    run = store.start(store.experiment("small x-sub"), "key", "a trial", {"fgst.kind": "trial"})
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / "checkpoint" / name).write_bytes((checkpoint / name).read_bytes())
    run.log_artifacts(tmp_path / "run")
    return run.run_id


def test_predictions_are_printed_as_json_and_table(
    run_id: str, tracking_uri: str, dataset: ArrowDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.npy").write_bytes(npy_bytes(dataset.clip(0)))
    main(["--run-id", run_id, str(tmp_path / "one.npy"), "--json", "--tracking-uri", tracking_uri])
    report = json.loads(capsys.readouterr().out)
    assert report["run_id"] == run_id
    [row] = report["files"]
    assert sum(entry["probability"] for entry in row["top"]) == pytest.approx(1, rel=1e-12)
    main(["--run-id", run_id, str(tmp_path / "one.npy"), "--top", "1", "--tracking-uri", tracking_uri])
    assert row["top"][0]["class"] in capsys.readouterr().out


def test_dash_means_standard_input(
    run_id: str,
    tracking_uri: str,
    dataset: ArrowDataset,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(npy_bytes(dataset.clip(0)))))
    main(["--run-id", run_id, "-", "--json", "--tracking-uri", tracking_uri])
    assert json.loads(capsys.readouterr().out)["files"][0]["file"] == "stdin"


def test_invalid_files_set_exit_code(
    run_id: str, tracking_uri: str, dataset: ArrowDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.npy").write_bytes(npy_bytes(dataset.clip(0)))
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    arguments = ["--run-id", run_id, "--tracking-uri", tracking_uri, str(tmp_path / "bad.npy")]
    with pytest.raises(SystemExit) as raised:
        main([*arguments, str(tmp_path / "one.npy")])
    assert raised.value.code == 1
    assert "not a clip:" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(InputError, match="none of the 1 files is a valid clip"):
        main(arguments)
    with pytest.raises(InputError, match="none of the 2 files is a valid clip"):
        main([*arguments, str(tmp_path / "nowhere.npy")])


def test_bad_files_do_not_keep_good_ones_from_being_classified(
    run_id: str, tracking_uri: str, dataset: ArrowDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    good = npy_bytes(dataset.clip(0))
    for name in ("a.npy", "m.npy", "z.npy"):
        (folder / name).write_bytes(good)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 6, 3)}\n"
    (folder / "terabytes.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (folder / "token.npy").write_bytes(b"\x93NUMPY\x01\x00\x09\x00{'descr'(")
    (folder / "cut.npy").write_bytes(good[:-1])
    os.mkfifo(folder / "pipe.npy")
    (folder / "link.npy").symlink_to("nowhere")
    (folder / "new\nline.npy").write_bytes(b"")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04")
    bad = ["cut.npy", "link.npy", r"new\nline.npy", "pipe.npy", "terabytes.npy", "token.npy"]
    others = [str(tmp_path / "cut.zip"), "missing.npy", "x" * 300 + ".npy", "a\0b.npy", "\ud800.npy"]
    with pytest.raises(SystemExit) as raised:
        main(["--run-id", run_id, "--tracking-uri", tracking_uri, "--json", str(folder), *others])
    assert raised.value.code == 1
    rows = {row["file"]: row for row in json.loads(capsys.readouterr().out)["files"]}
    for name in ("a.npy", "m.npy", "z.npy"):
        assert len(rows[f"{folder}/{name}"]["top"]) == 3
    for name in bad:
        assert rows[f"{folder}/{name}"]["fault"].isprintable()
    assert len(rows) == 3 + len(bad) + len(others)
    assert all(name.isprintable() for name in rows)


def test_unknown_model_is_rejected(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--model champion: .*registered: none"):
        main(["--model", "champion", str(tmp_path / "one.npy"), "--tracking-uri", tracking_uri])
