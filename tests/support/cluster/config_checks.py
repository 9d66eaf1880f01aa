"""What Ray does not look at in a cluster's file, and what this project asks of one."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import yaml
from botocore.validate import ParamValidator

ROOT = Path(__file__).parents[3]
FILES = sorted(ROOT.glob("cluster*.yaml"))
WORLD = ("0.0.0.0/0", "::/0")
_MADE_BY_RAY = {"MinCount": 1, "MaxCount": 1}  # the call needs them; Ray fills them in


def read(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text())
    assert isinstance(config, dict)
    return config


def all_problems(config: dict[str, Any]) -> list[str]:
    found = [] if config.get("cluster_name") else ["no cluster_name: Ray would call it default"]
    found += [*_authentication(config), *_ports(config), *_mounts(config)]
    if config["provider"]["type"] == "aws":
        found += [*_aws(config), *_head(config)]
    return found


def _starts(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (key, command)
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config.get(key, [])
        if "ray start" in command
    ]


def _authentication(config: dict[str, Any]) -> list[str]:
    found = []
    if not any("auth_token" in remote for remote in config.get("file_mounts", {})):
        found.append("file_mounts: the nodes get no token")
    if config["provider"]["type"] == "aws":
        starts = [(key, command) for key, command in _starts(config) if "RAY_AUTH_MODE=token" not in command]
        found += [f"{key}: no RAY_AUTH_MODE=token" for key, _ in starts]
    return found


def _ports(config: dict[str, Any]) -> list[str]:
    found = []
    for key, command in _starts(config):
        if "--head" in command and "--dashboard-host=127.0.0.1" not in command and "dashboard=false" not in command:
            found.append(f"{key}: the dashboard does not keep to 127.0.0.1")
        if "ray-client-server" in command:
            found.append(f"{key}: opens a port for Ray clients")
    rules = config["provider"].get("security_group", {}).get("IpPermissions", [])
    ranges = itertools.chain.from_iterable(rule.get("IpRanges", []) + rule.get("Ipv6Ranges", []) for rule in rules)
    found += [f"provider: open to {r}" for r in ranges if {r.get("CidrIp"), r.get("CidrIpv6")} & set(WORLD)]
    return found


def _mounts(config: dict[str, Any]) -> list[str]:
    secret = (".aws", ".ssh", ".netrc", ".env")
    return [
        f"file_mounts: {local} holds secrets of yours"
        for local in config.get("file_mounts", {}).values()
        if Path(local).name in secret or Path(local).parent.name in secret[:2]
    ]


@cache
def _run_instances() -> Any:
    """AWS' own description of the call that starts machines."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _aws(config: dict[str, Any]) -> list[str]:
    found = [] if config["provider"].get("region") else ["provider: no region"]
    shape = _run_instances()
    offered = shape.members["InstanceType"].enum
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        found += [f"{name}: no {key}" for key in ("InstanceType", "ImageId", "IamInstanceProfile") if not node.get(key)]
        if not node.get("SecurityGroupIds"):
            found.append(f"{name}: no SecurityGroupIds, so Ray would make a group with ssh open to the world")
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            found.append(f"{name}: metadata without a session token")
        if node.get("InstanceType") not in offered:
            found.append(f"{name}: there is no instance type {node.get('InstanceType')}")
        report = ParamValidator().validate({**_MADE_BY_RAY, **node}, shape)
        known = set(shape.members) | {"SubnetIds"}
        found += [f"{name}: node_config has an unknown field {key}" for key in node if key not in known]
        found += [f"{name}: {line}" for line in report.generate_report().splitlines()]
    return found


def _head(config: dict[str, Any]) -> list[str]:
    name = config["head_node_type"]
    head = config["available_node_types"][name]
    found = []
    if (head["resources"].get("CPU"), head["resources"].get("GPU")) != (0, 0):
        found.append(f"{name}: the head takes trials")
    if "InstanceMarketOptions" in head["node_config"]:
        found.append(f"{name}: the head is on the spot market")
    if "--autoscaling-config" not in " ".join(command for _, command in _starts(config)):
        found.append(f"{name}: no worker will ever be started")
    for other, kind in config["available_node_types"].items():
        spot = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if other != name and (not spot or kind.get("min_workers", 0)):
            found.append(f"{other}: costs on when nothing is to be done")
    return found
