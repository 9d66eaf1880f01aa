"""How far a cluster may grow, as its configuration says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgst.errors import InputError
from fgst.ops import autoscaling
from fgst.ops.autoscaling import main, node_groups
from tests.support.cluster.config_checks import ROOT, read


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    told: list[object] = []
    monkeypatch.setattr(autoscaling, "report", lambda groups, address: told.append(groups))
    return told


def test_workers_count_and_the_head_does_not(tmp_path: Path, reported: list[object]) -> None:
    config = read(ROOT / "cluster.yaml")
    config["available_node_types"]["gpu"]["resources"] = {"CPU": 4, "GPU": 1}  # as Ray fills them in
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(config))
    assert node_groups(file) == [(4, {"CPU": 4, "GPU": 1})]
    config["max_workers"] = 3  # of all types together
    file.write_text(json.dumps(config))
    main([str(file)])
    main(["8", "CPU=16", "GPU=2"])
    assert reported == [[(3, {"CPU": 4, "GPU": 1})], [(8, {"CPU": 16, "GPU": 2})]]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["nothing.yaml"], "no configuration"), (["4"], "say what a node has"), (["4", "GPU"], "write KIND=N")],
)
def test_what_cannot_be_is_one_message(arguments: list[str], word: str, reported: list[object]) -> None:
    with pytest.raises(InputError, match=word):
        main(arguments)
    assert reported == []
