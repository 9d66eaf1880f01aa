"""Reading the maximum size of a cluster from its configuration, and publishing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fgst.cli import autoscaling
from fgst.errors import InputError
from fgst.ops.autoscaling import NodeGroup, read_node_groups
from tests.support.cluster.config_checks import ROOT, read


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[NodeGroup]]:
    """The groups that the command publishes; ``test_preflight.py`` publishes some in a real cluster."""
    calls: list[Sequence[NodeGroup]] = []
    monkeypatch.setattr(autoscaling, "publish_node_groups", lambda groups, address: calls.append(groups))
    return calls


def test_worker_groups_are_published_without_head(
    tmp_path: Path, published: list[Sequence[NodeGroup]], capsys: pytest.CaptureFixture[str]
) -> None:
    config = read(ROOT / "cluster.yaml")
    config["available_node_types"]["gpu"]["resources"] = {"CPU": 4, "GPU": 1}  # as filled in by Ray
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(config))
    assert read_node_groups(file) == [NodeGroup(4, {"CPU": 4, "GPU": 1})]
    config["max_workers"] = 3  # limits the sum over all types
    file.write_text(json.dumps(config))
    autoscaling.main([str(file)])
    autoscaling.main(["8", "CPU=16", "GPU=2"])
    assert published == [[NodeGroup(3, {"CPU": 4, "GPU": 1})], [NodeGroup(8, {"CPU": 16, "GPU": 2})]]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == [{"nodes": 8, "CPU": 16, "GPU": 2}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "not an autoscaler configuration"),
        (["4"], "give the resources of a node"),
        (["4", "GPU"], "expected KIND=N"),
    ],
)
def test_invalid_arguments_are_rejected(
    arguments: list[str], message: str, published: list[Sequence[NodeGroup]]
) -> None:
    with pytest.raises(InputError, match=message):
        autoscaling.main(arguments)
    assert published == []
