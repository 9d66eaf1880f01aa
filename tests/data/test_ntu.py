"""Preparation of NTU RGB+D: irregular files give the expected clips and the expected report."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fgst.cli import data_ntu
from fgst.cli.command import run_command
from fgst.config import PRESETS
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import ntu, ntu_plan
from fgst.data.formats.ntu import prepare
from fgst.data.formats.ntu_plan import read_exclude_list
from fgst.errors import InputError
from fgst.sweep.backends.ray_session import ray_map
from fgst.training.trainer import fit
from tests.data.ntu_rules import clip_of
from tests.support.ntu_corpus import Case, corpus, write_folder, write_zip
from tests.support.process import kill_on_line, start_python

COUNT = 320  # ten files of each kind, which need more than one shard


def main(argv: list[str]) -> None:
    """Run the command as its entry point does."""
    run_command(lambda: data_ntu.main(argv))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return corpus(COUNT)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, cases: list[Case]) -> Path:
    return write_zip(tmp_path_factory.mktemp("ntu") / "skeletons.zip", cases)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """The data set of all files."""
    out = tmp_path_factory.mktemp("sets") / "ntu-60"
    prepare([archive], out, edition="60")
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of all files by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_clips_match_generated_files(prepared: Path, cases: list[Case]) -> None:
    dataset = ArrowDataset(prepared)
    rows = {clip: row for row, clip in enumerate(dataset.clip_ids)}
    good = {case.name: case for case in cases if not case.fault}
    assert set(rows) == set(good)
    assert list(dataset.clip_ids) == sorted(good)
    for name, case in good.items():
        joints = dataset.clip(rows[name])
        assert joints.shape == (case.persons, case.frames, 25, 3), name
        assert not joints[0, 0, 1].any()  # the spine is at the origin in the first frame
        row = {column: int(values[rows[name]]) for column, values in dataset.columns.items()}
        assert name == "S{setup:03d}C{camera:03d}P{subject:03d}R{replication:03d}A{action:03d}".format(
            **row, action=row["label"] + 1
        )


def test_clips_equal_literal_application_of_the_rules(prepared: Path, cases: list[Case]) -> None:
    dataset = ArrowDataset(prepared)
    rows = {clip: row for row, clip in enumerate(dataset.clip_ids)}
    for case in cases:
        if not case.fault:
            np.testing.assert_allclose(dataset.clip(rows[case.name]), clip_of(case.content), rtol=0, atol=1e-6)


def test_version_of_the_rules_is_recorded_and_checked(
    tmp_path: Path, prepared: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preparation that was interrupted under other rules starts over, so no data set mixes the two."""
    assert ArrowDataset(prepared).source["version"] == ntu_plan.VERSION
    make_shard = ntu.make_shard

    def interrupted_make_shard(task: ntu.ShardTask) -> ntu.ShardRecord:
        if task.index == 1:
            raise KeyboardInterrupt
        return make_shard(task)

    for version, resumed in ((ntu_plan.VERSION - 1, False), (ntu_plan.VERSION, True)):
        with monkeypatch.context() as patched:
            patched.setattr(ntu_plan, "VERSION", version)
            patched.setattr(ntu, "make_shard", interrupted_make_shard)
            with pytest.raises(KeyboardInterrupt):
                prepare([archive], tmp_path / str(version), edition="60")
        prepare([archive], tmp_path / str(version), edition="60")
        assert ("resuming" in capsys.readouterr().err) == resumed
        assert contents(tmp_path / str(version)) == contents(prepared)


def test_report_counts_match_generated_files(prepared: Path, cases: list[Case]) -> None:
    report = json.loads((prepared / "report.json").read_text())
    assert report["files_read"] == COUNT
    assert report["left_out"] == dict(sorted(Counter(case.fault for case in cases if case.fault).items()))
    removed: Counter[str] = Counter()
    for case in cases:
        removed += case.removed
    assert report["removed"] == dict(sorted(removed.items()))
    rejected = {Path(f["file"]).stem for files in report["left_out_files"].values() for f in files}
    assert rejected == {case.name for case in cases if case.fault}
    assert report["clips"] == sum(not case.fault for case in cases)
    for split in report["splits"]["x-view"].values():
        assert split["clips"] == sum(split["classes"].values())


@pytest.mark.parametrize("kind", ["same zip", "folder", "two sources"])
def test_result_does_not_depend_on_kind_of_source(
    kind: str, tmp_path: Path, prepared: Path, cases: list[Case], archive: Path
) -> None:
    sources = [archive]
    if kind == "folder":
        sources = [write_folder(tmp_path / "folder", cases)]
    elif kind == "two sources":
        sources = [write_folder(tmp_path / "a", cases[::2]), write_zip(tmp_path / "b.zip", cases[1::2])]
    prepare(sources, tmp_path / "out", edition="60")
    result, expected = contents(tmp_path / "out"), contents(prepared)
    if kind != "same zip":  # the report contains the paths of files
        del result["report.json"], expected["report.json"]
    assert result == expected
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_duplicate_and_contradictory_files_are_rejected(tmp_path: Path, cases: list[Case]) -> None:
    good = [case for case in cases if not case.fault][:4]
    first, second = write_folder(tmp_path / "a", good), write_folder(tmp_path / "b", good[:2])
    (second / f"{good[1].name}.skeleton").write_bytes(good[2].content)
    dataset, report = prepare([first, second], tmp_path / "out", edition="60")
    assert set(dataset.clip_ids) == {good[0].name, good[2].name, good[3].name}
    assert report.reasons() == {"duplicate": 1, "contradictory": 2}


def test_editions_and_exclude_list(tmp_path: Path) -> None:
    cases = [case for case in corpus(1300, actions=120, setups=32) if not case.fault][::40]
    assert any(int(case.name[-3:]) > 60 for case in cases)
    source = write_folder(tmp_path / "in", cases)
    (tmp_path / "list.txt").write_text(f"The names of 1 sample:\n\n{cases[0].name}\n{cases[1].name}.skeleton\n")
    exclude = read_exclude_list(tmp_path / "list.txt")
    assert exclude == [cases[0].name, cases[1].name]
    dataset, report = prepare([source], tmp_path / "120", edition="120", exclude=exclude)
    assert len(dataset) == len(cases) - 2
    assert report.reasons() == {"excluded": 2}
    assert [b.name for b in dataset.benchmarks] == ["x-sub", "x-set"]
    assert dataset.num_classes == 120
    smaller, report = prepare([source], tmp_path / "60", edition="60")
    assert {name[-3:] <= "060" for name in smaller.clip_ids} == {True}
    assert report.reasons()["not in this edition"] == len(cases) - len(smaller)


def test_interrupted_preparation_resumes(
    tmp_path: Path, prepared: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_shard = ntu.make_shard
    started: list[int] = []
    interrupt = True

    def recording_make_shard(task: ntu.ShardTask) -> ntu.ShardRecord:
        started.append(task.index)
        if task.index == 1 and interrupt:
            raise KeyboardInterrupt
        return make_shard(task)

    monkeypatch.setattr(ntu, "make_shard", recording_make_shard)
    with pytest.raises(KeyboardInterrupt):
        prepare([archive], tmp_path / "out", edition="60")
    assert not (tmp_path / "out").exists()
    interrupt = False
    prepare([archive], tmp_path / "out", edition="60")
    assert started == [0, 1, 1]
    assert contents(tmp_path / "out") == contents(prepared)


def test_invalid_options_are_reported_in_one_line(
    tmp_path: Path, archive: Path, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("no clip\n")
    for arguments, message in (
        (["/nowhere", "out", "--edition", "60"], "/nowhere"),
        ([str(archive), str(prepared), "--edition", "60"], "--overwrite"),
        ([str(archive), "out", "--edition", "60", "--workers", "0"], "--workers"),
        ([str(archive), "out", "--edition", "60", "--exclude-list", str(tmp_path / "empty.txt")], "names no clip"),
        ([str(archive), "out"], "--edition"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        error = capsys.readouterr().err
        assert raised.value.code == 2
        assert message in error
        assert error.count("\n") == 1


def test_command_prints_summary(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(archive), str(tmp_path / "out"), "--edition", "60", "--workers", "1"])
    out = capsys.readouterr().out
    for text in (f"read      {COUNT}", "no usable body", "joined fragments", "x-view", "python -m fgst.train"):
        assert text in out
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    main([str(archive), str(tmp_path / "out"), "--edition", "60", "--workers", "1", "--overwrite"])


def test_joints_equal_file_except_for_origin(prepared: Path, cases: list[Case]) -> None:
    dataset = ArrowDataset(prepared)
    case = cases[0]
    row = list(dataset.clip_ids).index(case.name)
    numbers = [line.split()[:3] for line in case.content.splitlines() if len(line.split()) == 12]
    expected = np.array(numbers, np.float64).reshape(-1, 25, 3)
    expected = expected - expected[0, 1]
    np.testing.assert_array_equal(dataset.clip(row)[0], expected.astype(np.float32))


def test_other_folders_are_never_replaced(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        prepare([archive], tmp_path / "out", edition="60", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


def test_malicious_archives_are_read_safely(tmp_path: Path, cases: list[Case]) -> None:
    """Compression ratios of a thousand, and names with parent folders or control characters."""
    good = cases[0]
    bombs = {
        "S001C001P001R001A002": b"\0" * 40_000_000,
        "S001C001P001R001A003": b"9999999\n" + b"0\n" * 20_000_000,
        "S001C001P001R001A004": b"99999999\n" + b"1\n" * 7_000_000,
    }
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"../../../{good.name}.skeleton", good.content)
        archive.writestr("/etc/S099C999P001R001A001.skeleton", good.content)
        archive.writestr("S001C001P001R001A000.skeleton", good.content)
        archive.writestr("S001C001P001R001A061.skeleton", good.content)
        archive.writestr("\x1b[31mred.skeleton", good.content)
        archive.writestr("readme.txt", b"hello")
        for name, content in bombs.items():
            archive.writestr(f"{name}.skeleton", content)
    assert (tmp_path / "bad.zip").stat().st_size < 200_000
    existing = set(tmp_path.parent.rglob("*.skeleton"))
    dataset, report = prepare([tmp_path / "bad.zip"], tmp_path / "out", edition="60")
    assert list(dataset.clip_ids) == [good.name]
    assert set(tmp_path.parent.rglob("*.skeleton")) == existing
    assert report.reasons() == {"unreadable": 3, "not a clip": 3, "not in this edition": 1}
    assert report.other_files == 1
    text = (dataset.path / "report.json").read_text()
    assert "larger than 16 MiB" in text
    assert "\\u001b" not in text


@pytest.mark.parametrize(
    ("edition", "benchmark"), [("60", "x-sub"), ("60", "x-view"), ("120", "x-sub"), ("120", "x-set")]
)
def test_training_uses_splits_of_benchmark(edition: str, benchmark: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "in", corpus(230, actions=8, setups=32 if edition == "120" else 17))
    dataset, _ = prepare([source], tmp_path / "out", edition=edition)
    config = PRESETS["tiny"].with_values(
        {"data.benchmark": benchmark, "train.epochs": 1, "data.frames": 16, "train.lr": 0.01}
    )
    (result,) = fit(config, dataset=dataset, device="cpu")
    assert result.test is not None
    rule = dataset.benchmark(benchmark)
    values = dataset.columns[rule.column]
    test_clips = set(dataset.clip_ids[~np.isin(values, rule.train)])
    assert set(result.test.clip_ids) == test_clips
    assert 10 < len(test_clips) < len(dataset) - 10
    assert {"val/top1", "test/top1"} <= set(result.metrics)


@pytest.mark.slow
def test_preparation_on_existing_cluster(tmp_path: Path, prepared: Path, archive: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        prepare(
            [archive], tmp_path / "out", edition="60", parallel_map=partial(ray_map, address=cluster.address, workers=2)
        )
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "out") == contents(prepared)


INTERRUPTED = """
import sys
from pathlib import Path
from fgst.data.formats.ntu import prepare
from fgst.sweep.backends.ray_session import ray_map

def reporting_map(function, tasks):
    for number, record in enumerate(ray_map(function, tasks, address=None, workers=4)):
        yield record
        if number == 1:
            print("two shards", flush=True)

if __name__ == "__main__":
    prepare([Path(sys.argv[1])], Path(sys.argv[2]), edition="60", parallel_map=reporting_map)
"""


@pytest.mark.slow
def test_result_does_not_depend_on_workers_and_kill(tmp_path: Path) -> None:
    """Prepare 5,000 files of all kinds with one worker, with four workers, and with four workers after a kill."""
    cases = corpus(5000)
    source = write_zip(tmp_path / "skeletons.zip", cases)
    four_workers = partial(ray_map, address=None, workers=4)
    prepare([source], tmp_path / "one", edition="60")
    prepare([source], tmp_path / "four", edition="60", parallel_map=four_workers)
    process = start_python(INTERRUPTED, source, tmp_path / "killed")
    kill_on_line(process, "two shards")
    assert not (tmp_path / "killed").exists()
    finished = len(list((tmp_path / ".killed.preparing").glob("clips-*.json")))
    assert finished >= 2
    prepare([source], tmp_path / "killed", edition="60", parallel_map=four_workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "four") == contents(tmp_path / "killed")
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["clips"] == sum(not case.fault for case in cases)
    assert report["left_out"] == dict(sorted(Counter(case.fault for case in cases if case.fault).items()))
