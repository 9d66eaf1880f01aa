"""Checks of a cluster file beyond Ray's own validation: security, costs, and AWS's description of an instance."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session
import yaml
from botocore.validate import ParamValidator

ROOT = Path(__file__).parents[3]
CLUSTER_FILES = sorted(ROOT.glob("cluster*.yaml"))
ANYWHERE = ("0.0.0.0/0", "::/0")
_ADDED_BY_RAY = {"MinCount": 1, "MaxCount": 1}  # required by the API call


def read(path: Path) -> dict[str, Any]:
    """Read a cluster file."""
    config = yaml.safe_load(path.read_text())
    assert isinstance(config, dict)
    return config


def all_problems(config: dict[str, Any]) -> list[str]:
    """Return everything that is wrong with a cluster file's content, one line each."""
    problems = [] if config.get("cluster_name") else ["no cluster_name, so Ray would name it default"]
    problems += [*_authentication(config), *_ports(config), *_mounts(config)]
    if config["provider"]["type"] == "aws":
        problems += [*_aws(config), *_head(config)]
    return problems


def _start_commands(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (key, command)
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in config.get(key, [])
        if "ray start" in command
    ]


def _authentication(config: dict[str, Any]) -> list[str]:
    problems = []
    if not any("auth_token" in remote for remote in config.get("file_mounts", {})):
        problems.append("file_mounts: no token for the nodes")
    if config["provider"]["type"] == "aws":
        starts = [(key, command) for key, command in _start_commands(config) if "RAY_AUTH_MODE=token" not in command]
        problems += [f"{key}: no RAY_AUTH_MODE=token" for key, _ in starts]
    return problems


def _ports(config: dict[str, Any]) -> list[str]:
    problems = []
    for key, command in _start_commands(config):
        if "--head" in command and "--dashboard-host=127.0.0.1" not in command and "dashboard=false" not in command:
            problems.append(f"{key}: the dashboard does not listen on 127.0.0.1 only")
        if "ray-client-server" in command:
            problems.append(f"{key}: opens a port for Ray clients")
    rules = config["provider"].get("security_group", {}).get("IpPermissions", [])
    ranges = itertools.chain.from_iterable(rule.get("IpRanges", []) + rule.get("Ipv6Ranges", []) for rule in rules)
    problems += [f"provider: open to {r}" for r in ranges if {r.get("CidrIp"), r.get("CidrIpv6")} & set(ANYWHERE)]
    return problems


def _mounts(config: dict[str, Any]) -> list[str]:
    secrets = (".aws", ".ssh", ".netrc", ".env")
    return [
        f"file_mounts: {local} contains personal secrets"
        for local in config.get("file_mounts", {}).values()
        if Path(local).name in secrets or Path(local).parent.name in secrets[:2]
    ]


@cache
def _run_instances() -> Any:
    """Return AWS's description of the arguments of the call that starts instances."""
    return botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _aws(config: dict[str, Any]) -> list[str]:
    problems = [] if config["provider"].get("region") else ["provider: no region"]
    shape = _run_instances()
    offered = shape.members["InstanceType"].enum
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        problems += [
            f"{name}: no {key}" for key in ("InstanceType", "ImageId", "IamInstanceProfile") if not node.get(key)
        ]
        if not node.get("SecurityGroupIds"):
            problems.append(f"{name}: no SecurityGroupIds, so Ray would create a group with ssh open to the world")
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            problems.append(f"{name}: metadata does not require a session token")
        if node.get("InstanceType") not in offered:
            problems.append(f"{name}: unknown instance type {node.get('InstanceType')}")
        report = ParamValidator().validate({**_ADDED_BY_RAY, **node}, shape)
        known = set(shape.members) | {"SubnetIds"}
        problems += [f"{name}: node_config has an unknown field {key}" for key in node if key not in known]
        problems += [f"{name}: {line}" for line in report.generate_report().splitlines()]
    return problems


def _head(config: dict[str, Any]) -> list[str]:
    name = config["head_node_type"]
    head = config["available_node_types"][name]
    problems = []
    if (head["resources"].get("CPU"), head["resources"].get("GPU")) != (0, 0):
        problems.append(f"{name}: the head accepts trials")
    if "InstanceMarketOptions" in head["node_config"]:
        problems.append(f"{name}: the head is a spot instance")
    if "--autoscaling-config" not in " ".join(command for _, command in _start_commands(config)):
        problems.append(f"{name}: no --autoscaling-config, so no worker would ever start")
    for other, kind in config["available_node_types"].items():
        spot = kind["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if other != name and (not spot or kind.get("min_workers", 0)):
            problems.append(f"{other}: costs money while idle")
    return problems
