"""The cluster files: Ray accepts them, and checks of the project find errors that Ray's validation misses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster.config_checks import CLUSTER_FILES, ROOT, all_problems, read

pytest.importorskip("jsonschema")
AWS = ROOT / "cluster.yaml"
Change = Callable[[dict[str, Any]], Any]


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """Validate a configuration as ``ray up`` does before it contacts the cloud, and return it with defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return dict(prepared)


def gpu(config: dict[str, Any]) -> dict[str, Any]:
    """Return the node type of the workers."""
    node_type: dict[str, Any] = config["available_node_types"]["gpu"]
    return node_type


def head(config: dict[str, Any]) -> dict[str, Any]:
    """Return the node type of the head."""
    node_type: dict[str, Any] = config["available_node_types"]["head"]
    return node_type


@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
def test_file_is_valid(path: Path) -> None:
    prepared = validate(read(path))
    assert prepared["cluster_name"]
    assert all_problems(read(path)) == []


def test_cluster_files_include_aws_file() -> None:
    assert AWS in CLUSTER_FILES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["provider"].pop("type"), "type"),
        (lambda c: c.pop("head_node_type"), "must be one of"),
        (lambda c: c.update(head_node_type="unknown"), "must be one of"),
        (lambda c: gpu(c).pop("node_config"), "node_config"),
        (lambda c: gpu(c).pop("resources"), "resources"),
        (lambda c: gpu(c).update(max_worker=3), "max_worker"),
        (lambda c: gpu(c).update(min_workers=99), "max_workers"),
        (lambda c: gpu(c).update(resources={"GPU": 0.5}), "0.5"),
        (lambda c: c.update(max_workers="four"), "four"),
        (lambda c: c.update(idle_timeout_minutes=-1), "-1"),
        (lambda c: c.update(initialization_commands="bash"), "bash"),
        (lambda c: c.update(idle_timeout=5), "idle_timeout"),
        (lambda c: c["auth"].update(user="x"), "user"),
    ],
)
def test_ray_rejects_invalid_files(change: Change, message: str) -> None:
    config = read(AWS)
    change(config)
    with pytest.raises(Exception, match=message):
        validate(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("cluster_name"), "no cluster_name"),
        (lambda c: c["provider"].pop("region"), "no region"),
        (lambda c: gpu(c)["node_config"].update(InstanceTyp="g6.xlarge"), "unknown field InstanceTyp"),
        (lambda c: gpu(c)["node_config"].update(InstanceType="g6.tiny"), "unknown instance type g6.tiny"),
        (lambda c: gpu(c)["node_config"].pop("ImageId"), "gpu: no ImageId"),
        (lambda c: head(c)["node_config"].pop("SecurityGroupIds"), "ssh open to the world"),
        (lambda c: gpu(c)["node_config"].pop("IamInstanceProfile"), "gpu: no IamInstanceProfile"),
        (lambda c: gpu(c)["node_config"].update(IamInstanceProfile="fgst-worker"), "IamInstanceProfile"),
        (
            lambda c: gpu(c)["node_config"]["MetadataOptions"].update(HttpTokens="optional"),
            "does not require a session token",
        ),
        (lambda c: gpu(c)["node_config"]["BlockDeviceMappings"][0]["Ebs"].update(Size=100), "Size"),
        (lambda c: gpu(c)["node_config"].pop("InstanceMarketOptions"), "gpu: costs money while idle"),
        (lambda c: gpu(c).update(min_workers=1), "gpu: costs money while idle"),
        (lambda c: head(c).update(resources={"CPU": 4, "GPU": 0}), "the head accepts trials"),
        (
            lambda c: head(c)["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}),
            "the head is a spot instance",
        ),
        (
            lambda c: c["provider"].update(
                security_group={"IpPermissions": [{"IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]}
            ),
            "open to",
        ),
        (
            lambda c: c.update(
                head_start_ray_commands=[s.replace("127.0.0.1", "0.0.0.0") for s in c["head_start_ray_commands"]]
            ),
            "dashboard",
        ),
        (
            lambda c: c.update(
                worker_start_ray_commands=[
                    s.replace("RAY_AUTH_MODE=token", "X=1") for s in c["worker_start_ray_commands"]
                ]
            ),
            "worker_start_ray_commands: no RAY_AUTH_MODE",
        ),
        (
            lambda c: c.update(
                head_start_ray_commands=[s.replace("--autoscaling-config", "--x") for s in c["head_start_ray_commands"]]
            ),
            "no worker would ever start",
        ),
        (lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "no token"),
        (lambda c: c["file_mounts"].update({"~/.aws/credentials": "~/.aws/credentials"}), "contains personal secrets"),
    ],
)
def test_project_checks_find_problem(change: Change, message: str) -> None:
    config = read(AWS)
    change(config)
    assert any(message in problem for problem in all_problems(config)), all_problems(config)


def test_user_settings_at_top_of_file_take_effect(tmp_path: Path) -> None:
    text = AWS.read_text()
    top, below = text.split("cluster_name:")
    assert "CHANGE-ME" in top
    assert "CHANGE-ME" not in below
    for old, new in {
        "us-east-1\n": "eu-west-3\n", "sg-CHANGE-ME": "sg-1", "s3://CHANGE-ME/fgst": "s3://mine/x",
        "ami-CHANGE-ME": "ami-1",
        "g6.xlarge  #": "p5.48xlarge  #", "workers 4": "workers 9",
    }.items():  # fmt: skip
        assert top.count(old) == 1, old
        top = top.replace(old, new)
    changed = tmp_path / "cluster.yaml"
    changed.write_text(f"{top}cluster_name:{below}")
    config = read(changed)
    assert all_problems(config) == []
    assert config["provider"]["region"] == "eu-west-3"
    assert config["setup_commands"] == ["echo s3://mine/x >~/.fgst_storage"]
    assert gpu(config)["node_config"]["InstanceType"] == "p5.48xlarge"
    assert (config["max_workers"], gpu(config)["max_workers"]) == (9, 9)
    for kind in (head(config), gpu(config)):
        assert kind["node_config"]["ImageId"] == "ami-1"
        assert kind["node_config"]["SecurityGroupIds"] == ["sg-1"]


@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
def test_mounted_files_exist(path: Path) -> None:
    for local in read(path).get("file_mounts", {}).values():
        if not local.startswith(("~", "/")):
            assert (ROOT / local).exists(), local
