"""NTU RGB+D: files with all their oddities become the clips, and the report, that their maker knows."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fgst.cli.data_ntu import main, prepare, read_exclude_list
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from tests.support.ntu_corpus import Case, corpus, write_folder, write_zip
from tests.support.small import kill_when_told, start_python

COUNT = 290  # ten of each oddity, and more than one shard


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return corpus(COUNT)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, cases: list[Case]) -> Path:
    return write_zip(tmp_path_factory.mktemp("ntu") / "skeletons.zip", cases)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    out = tmp_path_factory.mktemp("sets") / "ntu-60"
    prepare([archive], out, edition="60")
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_clip_is_what_its_maker_knows(made: Path, cases: list[Case]) -> None:
    dataset = ArrowDataset(made)
    rows = {clip: row for row, clip in enumerate(dataset.clip_ids)}
    good = {case.name: case for case in cases if not case.fault}
    assert set(rows) == set(good)
    assert list(dataset.clip_ids) == sorted(good)
    for name, case in good.items():
        joints = dataset.clip(rows[name])
        assert joints.shape == (case.persons, case.frames, 25, 3), name
        assert not joints[0, 0, 1].any()  # the spine of the first frame is the origin
        row = {column: int(values[rows[name]]) for column, values in dataset.columns.items()}
        assert name == "S{setup:03d}C{camera:03d}P{subject:03d}R{replication:03d}A{action:03d}".format(
            **row, action=row["label"] + 1
        )


def test_the_report_counts_what_its_maker_knows(made: Path, cases: list[Case]) -> None:
    report = json.loads((made / "report.json").read_text())
    assert report["files_read"] == COUNT
    assert report["left_out"] == dict(sorted(Counter(case.fault for case in cases if case.fault).items()))
    removed: Counter[str] = Counter()
    for case in cases:
        removed += case.removed
    assert report["removed"] == dict(sorted(removed.items()))
    named = {Path(f["file"]).stem for found in report["left_out_files"].values() for f in found}
    assert named == {case.name for case in cases if case.fault}
    assert report["clips"] == sum(not case.fault for case in cases)
    for split in report["splits"]["x-view"].values():
        assert split["clips"] == sum(split["classes"].values())


@pytest.mark.parametrize("kind", ["zip again", "folder", "two sources"])
def test_the_same_files_give_the_same_data_set(
    kind: str, tmp_path: Path, made: Path, cases: list[Case], archive: Path
) -> None:
    sources = [archive]
    if kind == "folder":
        sources = [write_folder(tmp_path / "folder", cases)]
    elif kind == "two sources":
        sources = [write_folder(tmp_path / "a", cases[::2]), write_zip(tmp_path / "b.zip", cases[1::2])]
    prepare(sources, tmp_path / "out", edition="60")
    again, first = contents(tmp_path / "out"), contents(made)
    if kind != "zip again":  # the report names files by their place
        del again["report.json"], first["report.json"]
    assert again == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_files_there_twice(tmp_path: Path, cases: list[Case]) -> None:
    good = [case for case in cases if not case.fault][:4]
    first, second = write_folder(tmp_path / "a", good), write_folder(tmp_path / "b", good[:2])
    (second / f"{good[1].name}.skeleton").write_bytes(good[2].content)
    dataset, report = prepare([first, second], tmp_path / "out", edition="60")
    assert set(dataset.clip_ids) == {good[0].name, good[2].name, good[3].name}
    assert report.reasons() == {"there twice": 1, "contradictory": 2}


def test_editions_and_lists(tmp_path: Path) -> None:
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


def test_a_killed_run_goes_on(tmp_path: Path, made: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fgst.cli.data_ntu as module

    whole = module.make_shard
    asked = []

    def dies(task):
        asked.append(task.index)
        if task.index == 1:
            raise KeyboardInterrupt
        return whole(task)

    monkeypatch.setattr(module, "make_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare([archive], tmp_path / "out", edition="60")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "make_shard", lambda task: asked.append(task.index) or whole(task))
    prepare([archive], tmp_path / "out", edition="60")
    assert asked == [0, 1, 1]
    assert contents(tmp_path / "out") == contents(made)


def test_bad_input_is_one_line(tmp_path: Path, archive: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("nothing here\n")
    for arguments, word in (
        (["/nowhere", "out", "--edition", "60"], "/nowhere"),
        ([str(archive), str(made), "--edition", "60"], "--overwrite"),
        ([str(archive), "out", "--edition", "60", "--workers", "0"], "--workers"),
        ([str(archive), "out", "--edition", "60", "--exclude-list", str(tmp_path / "empty.txt")], "names no clip"),
        ([str(archive), "out"], "--edition"),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        error = capsys.readouterr().err
        assert exit_.value.code == 2
        assert word in error
        assert error.count("\n") == 1


def test_the_command_tells_what_it_did(tmp_path: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(archive), str(tmp_path / "out"), "--edition", "60", "--workers", "1"])
    out = capsys.readouterr().out
    for word in (f"read      {COUNT}", "no usable body", "joined fragments", "x-view", "python -m fgst.train"):
        assert word in out
    main([str(archive), str(tmp_path / "out"), "--edition", "60", "--workers", "1", "--overwrite"])


def test_fragments_keep_their_places(tmp_path: Path, made: Path, cases: list[Case]) -> None:
    """Frame by frame: what was read is what is stored, but for the origin."""
    dataset = ArrowDataset(made)
    case = cases[0]
    row = list(dataset.clip_ids).index(case.name)
    numbers = [line.split()[:3] for line in case.content.splitlines() if len(line.split()) == 12]
    expected = np.array(numbers, np.float64).reshape(-1, 25, 3)
    expected = expected - expected[0, 1]
    np.testing.assert_array_equal(dataset.clip(row)[0], expected.astype(np.float32))


def test_what_is_no_data_set_is_never_replaced(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        prepare([archive], tmp_path / "out", edition="60", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"


def test_hostile_archives(tmp_path: Path, cases: list[Case]) -> None:
    """Ratios of a thousand, names that climb, names that are no clip's: faults, or clips like others."""
    good = cases[0]
    others = {
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
        for name, content in others.items():
            archive.writestr(f"{name}.skeleton", content)
    assert (tmp_path / "bad.zip").stat().st_size < 200_000
    before = set(tmp_path.parent.rglob("*.skeleton"))
    dataset, report = prepare([tmp_path / "bad.zip"], tmp_path / "out", edition="60")
    assert list(dataset.clip_ids) == [good.name]
    assert set(tmp_path.parent.rglob("*.skeleton")) == before
    assert report.reasons() == {"unreadable": 3, "not a clip": 3, "not in this edition": 1}
    assert report.strays == 1
    text = (dataset.path / "report.json").read_text()
    assert "larger than the 16 MiB" in text
    assert "\\u001b" not in text


@pytest.mark.parametrize(
    ("edition", "benchmark"), [("60", "x-sub"), ("60", "x-view"), ("120", "x-sub"), ("120", "x-set")]
)
def test_training_on_it(edition: str, benchmark: str, tmp_path: Path) -> None:
    from fgst.config import PRESETS
    from fgst.training.trainer import fit

    source = write_folder(tmp_path / "in", corpus(230, actions=8, setups=32 if edition == "120" else 17))
    dataset, _ = prepare([source], tmp_path / "out", edition=edition)
    config = PRESETS["tiny"].with_values(
        {"data.benchmark": benchmark, "train.epochs": 1, "data.frames": 16, "train.lr": 0.01}
    )
    (result,) = fit(config, dataset=dataset, device="cpu")
    assert result.test is not None
    rule = dataset.benchmark(benchmark)
    values = dataset.columns[rule.column]
    tested = set(dataset.clip_ids[~np.isin(values, rule.train)])
    assert set(result.test.clip_ids) == tested
    assert 10 < len(tested) < len(dataset) - 10
    assert {"val/top1", "test/top1"} <= set(result.metrics)


@pytest.mark.slow
def test_on_a_cluster_that_is_there(tmp_path: Path, made: Path, archive: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        prepare([archive], tmp_path / "out", edition="60", workers=2, address=cluster.address)
    finally:
        cluster.shutdown()
    assert contents(tmp_path / "out") == contents(made)


KILLED = """
import sys
import fgst.cli.data_ntu as module
from fgst.cli.data_ntu import main

whole = module._made

def told(tasks, workers, address):
    for number, made in enumerate(whole(tasks, workers, address)):
        yield made
        if number == 1:
            print("two shards", flush=True)

module._made = told
if __name__ == "__main__":
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_four_workers_and_a_kill_in_the_middle_change_nothing(tmp_path: Path) -> None:
    """The corpus of the acceptance: 5,000 files with every oddity, one worker, four, and four killed half-way."""
    cases = corpus(5000)
    source = write_zip(tmp_path / "skeletons.zip", cases)
    command = [str(source), "--edition", "60"]
    prepare([source], tmp_path / "one", edition="60", workers=1)
    prepare([source], tmp_path / "four", edition="60", workers=4)
    process = start_python(KILLED, command[0], tmp_path / "killed", *command[1:], "--workers", "4")
    kill_when_told(process, "two shards")
    assert not (tmp_path / "killed").exists()
    kept = len(list((tmp_path / ".killed.preparing").glob("clips-*.json")))
    assert kept >= 2
    prepare([source], tmp_path / "killed", edition="60", workers=4)
    assert contents(tmp_path / "one") == contents(tmp_path / "four") == contents(tmp_path / "killed")
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["clips"] == sum(not case.fault for case in cases)
    assert report["left_out"] == dict(sorted(Counter(case.fault for case in cases if case.fault).items()))
