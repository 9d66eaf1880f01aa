"""``ray up cluster.yaml`` against AWS simulated by moto: instances, permissions, and commands on the nodes.

Ray's AWS provider, its node installer and its command line are real, and so are the requests to the simulated AWS and
all shell commands on the nodes. The nodes are folders (``folder_nodes.py``).
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from tests.support.cluster.aws_account import (
    BUCKET,
    PASSWORD,
    REGION,
    TOKEN,
    USER_CIDR,
    Account,
    aws_account,
    credentials,
)
from tests.support.cluster.config_checks import ANYWHERE, ROOT
from tests.support.cluster.folder_nodes import Nodes, boot

pytest.importorskip("jsonschema")


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    monkeypatch.chdir(ROOT)
    with aws_account(tmp_path, monkeypatch.setenv) as account:
        yield account


def allowed_sources(groups: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    """Return the port and address range of each rule that admits traffic from outside the security groups."""
    return [
        (rule.get("FromPort"), span.get("CidrIp") or span.get("CidrIpv6"))
        for group in groups
        for rule in group["IpPermissions"]
        for span in (*rule.get("IpRanges", []), *rule.get("Ipv6Ranges", []))
    ]


def launch(account: Account, node_type: str, config: dict[str, Any]) -> dict[str, Any]:
    """Start one node of a type as the autoscaler does, and return the description of its instance."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    tags = {
        "ray-node-type": "head" if node_type == config["head_node_type"] else "worker",
        "ray-user-node-type": node_type,
        "ray-launch-config": "0",
        "ray-node-name": f"ray-{config['cluster_name']}-{node_type}",
        "ray-node-status": "uninitialized",
    }
    node_config = copy.deepcopy(config["available_node_types"][node_type]["node_config"])
    ((instance_id, _),) = provider.create_node(node_config, tags, 1).items()
    ((instance,),) = [
        r["Instances"] for r in account.ec2().describe_instances(InstanceIds=[instance_id])["Reservations"]
    ]
    return dict(instance)


def bootstrapped(account: Account, fill: bool = False) -> dict[str, Any]:
    """Return the configuration with everything that ``ray up`` adds to it.

    Args:
        fill: whether to look up the resources of each instance type. This takes seconds.
    """
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(account.config))
    if fill:
        config = AWSNodeProvider.fillout_available_node_types_resources(config)
    validate_config(config)
    return dict(AWSNodeProvider.bootstrap_config(config))


def test_instances_of_head_and_workers(account: Account) -> None:
    config = bootstrapped(account, fill=True)
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"]["CPU"] == kinds["head"]["resources"]["GPU"] == 0
    assert (kinds["gpu"]["resources"]["CPU"], kinds["gpu"]["resources"]["GPU"]) == (4, 1)
    head, worker = launch(account, "head", config), launch(account, "gpu", config)
    assert (head["InstanceType"], head.get("InstanceLifecycle")) == ("m6i.xlarge", None)
    assert (worker["InstanceType"], worker.get("InstanceLifecycle")) == ("g6.xlarge", "spot")
    for instance, profile in ((head, "fgst-head"), (worker, "fgst-worker")):
        assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [account.security_group]
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["KeyName"] == f"ray-autoscaler_{REGION}"
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert tags["ray-cluster-name"] == config["cluster_name"]
    assert [len(account.instances(**{"ray-node-type": kind})) for kind in ("head", "worker")] == [1, 1]
    (key,) = (account.home / ".ssh").iterdir()
    assert key.stat().st_mode & 0o077 == 0


def test_only_ssh_from_user_is_allowed(account: Account) -> None:
    config = bootstrapped(account)
    used = {
        group for kind in config["available_node_types"].values() for group in kind["node_config"]["SecurityGroupIds"]
    }
    groups = account.ec2().describe_security_groups(GroupIds=sorted(used))["SecurityGroups"]
    assert allowed_sources(groups) == [(22, USER_CIDR)]
    internal = [rule for rule in groups[0]["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert [[pair["GroupId"] for pair in rule["UserIdGroupPairs"]] for rule in internal] == [[account.security_group]]
    assert [rule["IpProtocol"] for rule in internal] == ["-1"]
    # Without a group in the file, Ray creates one that admits SSH from anywhere, as a comment of the file says.
    for kind in account.config["available_node_types"].values():
        del kind["node_config"]["SecurityGroupIds"]
    created = bootstrapped(account)["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    assert (22, ANYWHERE[0]) in allowed_sources(
        account.ec2().describe_security_groups(GroupIds=created)["SecurityGroups"]
    )


def test_missing_user_settings_fail_before_instances_start(
    account: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in account.config["available_node_types"].values():
        kind["node_config"]["SecurityGroupIds"] = ["sg-CHANGE-ME"]
    with pytest.raises(Exception):  # noqa: B017, PT011 (Ray prints the reason and raises a plain exception)
        bootstrapped(account)
    assert "Failed to detect a security group" in capsys.readouterr().err
    assert account.instances() == []


def test_roles_have_minimal_permissions(account: Account) -> None:
    iam = boto3.client("iam", REGION)
    allowed: dict[str, set[str]] = {}
    for profile in ("fgst-head", "fgst-worker"):
        (role,) = iam.get_instance_profile(InstanceProfileName=profile)["InstanceProfile"]["Roles"]
        documents = [
            iam.get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
            for name in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        ]
        for attached in iam.list_attached_role_policies(RoleName=role["RoleName"])["AttachedPolicies"]:
            assert not attached["PolicyArn"].startswith("arn:aws:iam::aws:"), "a policy managed by AWS is far too broad"
            version = iam.get_policy(PolicyArn=attached["PolicyArn"])["Policy"]["DefaultVersionId"]
            document = iam.get_policy_version(PolicyArn=attached["PolicyArn"], VersionId=version)["PolicyVersion"][
                "Document"
            ]
            documents.append(document)
        parsed = [ast.literal_eval(text) if isinstance(text, str) else text for text in documents]  # moto returns text
        statements = [statement for document in parsed for statement in document["Statement"]]
        actions = [s["Action"] if isinstance(s["Action"], list) else [s["Action"]] for s in statements]
        allowed[profile] = {action for listed in actions for action in listed}
        for statement, listed in zip(statements, actions, strict=True):
            if any(action.startswith("s3:") for action in listed):
                assert re.fullmatch(rf"arn:aws:s3:::{BUCKET}(/\*)?", statement["Resource"])
            if "iam:PassRole" in listed:
                assert "WorkerRole" in statement["Resource"]
    assert all(action.startswith("s3:") for action in allowed["fgst-worker"])
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "iam:PassRole"} < allowed["fgst-head"]
    assert not any("*" in action and action != "ec2:Describe*" for action in allowed["fgst-head"])


@pytest.mark.parametrize("ssh_from", ["0.0.0.0/0", "0.0.0.0/1", "anywhere"])
def test_wide_ssh_ranges_are_rejected(ssh_from: str) -> None:
    """The pattern of the parameter excludes them. CloudFormation enforces patterns; moto does not."""
    text = (ROOT / "cluster" / "aws-account.yaml").read_text()
    (pattern,) = re.findall(r"AllowedPattern: '(.*)'", text)
    assert re.fullmatch(pattern, USER_CIDR)
    assert re.fullmatch(pattern, "10.0.0.0/8")
    assert not re.fullmatch(pattern, ssh_from)


@pytest.mark.slow
def test_cloudformation_template_is_valid() -> None:
    """It matches AWS's resource descriptions and has no YAML anchors, which CloudFormation does not support."""
    lint = pytest.importorskip("cfnlint.api", reason="install the extra: pip install -e '.[test]'")
    text = (ROOT / "cluster" / "aws-account.yaml").read_text()

    def errors(template: str) -> list[str]:
        return [str(match) for match in lint.lint_all(template) if not match.rule.id.startswith("I")]  # I: info

    assert errors(text) == []
    assert any("IpProtokol" in error for error in errors(text.replace("IpProtocol: tcp", "IpProtokol: tcp")))
    assert not [token for token in yaml.scan(text) if isinstance(token, yaml.AnchorToken | yaml.AliasToken)]


@pytest.mark.slow
def test_cluster_lifecycle(account: Account, tmp_path: Path) -> None:
    nodes = Nodes(tmp_path / "nodes")
    result = account.ray("up", "-y", "--no-config-cache", str(account.file))
    assert result.returncode == 0, result.stdout + result.stderr
    (head,) = account.instances(**{"ray-node-type": "head", "ray-node-status": "up-to-date"})
    address = head["PublicIpAddress"]
    home = nodes.home(address)
    # Copied files
    assert (home / "fgst" / "fgst" / "sweep" / "backends" / "ray.py").is_file()
    assert (home / ".ray" / "auth_token").read_text() == TOKEN
    assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
    assert not (home / ".aws").exists()
    # Commands on the head
    check_head(nodes, address)
    # A worker, started in the same way as by the autoscaler of the head
    worker = install_worker(home, head["PrivateIpAddress"], account)
    check_worker(nodes, worker["PrivateIpAddress"], head["PrivateIpAddress"])
    # A second `ray up`, which installs nothing
    (home / ".calls").unlink()
    second = account.ray("up", "-y", "--no-config-cache", "--restart-only", str(account.file))
    assert second.returncode == 0, second.stdout + second.stderr
    assert [call.program for call in nodes.calls(address) if call.program in ("curl", "uv", "sudo")] == []
    # Commands on the cluster, which have its settings in their environment
    result = account.ray("exec", str(account.file), "python sweeps/focal_k.py --address auto")
    assert result.returncode == 0, result.stdout + result.stderr
    last = nodes.calls(address)[-1]
    assert last.line == "python sweeps/focal_k.py --address auto"
    assert last.environment["RAY_AUTH_MODE"] == "token"
    assert last.environment["FGST_STORAGE"] == f"s3://{BUCKET}/fgst/sweeps"
    assert last.environment["MLFLOW_TRACKING_URI"].endswith(":5000")
    result = account.ray("exec", str(account.file), "bash ~/fgst/cluster/setup.sh save")
    assert result.returncode == 0, result.stdout + result.stderr
    assert nodes.calls(address)[-1].arguments[1:3] == ("fgst.server_backup", "save")
    assert nodes.calls(address)[-1].arguments[-1] == f"s3://{BUCKET}/fgst/server.tar.gz"
    down = account.ray("down", "-y", str(account.file))
    assert down.returncode == 0, down.stdout + down.stderr
    assert account.instances() == []


def check_head(nodes: Nodes, address: str) -> None:
    """Check the commands that have run on the head."""
    calls = nodes.calls(address)
    (install,) = [call for call in calls if call.line.startswith("uv pip install")]
    assert "--torch-backend=cpu" in install.arguments
    assert install.arguments[-1].endswith("/fgst[cluster,server]")
    assert str(nodes.home(address) / "fgst" / "constraints.txt") in install.arguments
    (restore,) = [call for call in calls if "fgst.server_backup" in call.arguments]
    assert restore.arguments[-3:] == (
        "restore",
        str(nodes.home(address) / "server"),
        f"s3://{BUCKET}/fgst/server.tar.gz",
    )
    (server,) = [call for call in calls if "fgst.server" in call.arguments]
    assert calls.index(restore) < calls.index(server)
    assert server.arguments[-2:] == ("--artifacts", f"s3://{BUCKET}/fgst/mlflow")
    assert server.environment["FGST_SERVER_PASSWORD"] == PASSWORD
    starts = [call for call in calls if call.program == "ray"]
    assert [call.arguments[0] for call in starts] == ["stop", "start"]
    start = starts[1]
    assert calls.index(start) < [call.arguments[:2] for call in calls].index(("-m", "fgst.cli.autoscaling"))
    assert {"--head", "--dashboard-host=127.0.0.1"} < set(start.arguments)
    assert start.environment["RAY_AUTH_MODE"] == "token"
    assert int(start.environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    assert json.loads(start.environment["RAY_OVERRIDE_RESOURCES"]) == {"CPU": 0, "GPU": 0}


def install_worker(home: Path, head_ip: str, account: Account) -> dict[str, Any]:
    """Start and set up a worker with the configuration that ``ray up`` copied to the head."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.instance_manager.ray_installer import RayInstaller
    from ray.core.generated.instance_manager_pb2 import Instance

    config = json.loads((home / "ray_bootstrap_config.yaml").read_text())
    os.environ["HOME"] = str(home)  # restored by the fixture
    autoscaling = AutoscalingConfig(config)
    worker = launch(account, "gpu", config)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    provider.non_terminated_nodes({})
    instance = Instance(instance_id="1", instance_type="gpu", cloud_instance_id=worker["InstanceId"])
    RayInstaller(provider, autoscaling).install_ray(instance, head_ip)
    return worker


def check_worker(nodes: Nodes, address: str, head_ip: str) -> None:
    """Check the commands that have run on a worker."""
    calls = nodes.calls(address)
    # Installed once, although Ray runs the setup commands twice.
    (install,) = [call for call in calls if call.line.startswith("uv pip install")]
    assert install.arguments[-1].endswith("/fgst[cluster]")
    assert not any("torch-backend" in argument for argument in install.arguments)
    (start,) = [call for call in calls if call.program == "ray" and call.arguments[0] == "start"]
    assert f"--address={head_ip}:6379" in start.arguments
    assert start.environment["RAY_AUTH_MODE"] == "token"
    assert json.loads(start.environment["RAY_OVERRIDE_RESOURCES"])["GPU"] == 1
    assert [call for call in calls if "fgst.cli.spot_watcher" in call.arguments]
    assert [call for call in calls if call.program == "python" and "cuda.is_available" in call.line]
    assert (nodes.home(address) / ".ray" / "auth_token").read_text() == TOKEN


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (".fgst_storage", "s3://CHANGE-ME/fgst\n", "set storage"),
        (".mlflow/credentials", credentials("ada"), "must name the user admin"),
    ],
)
def test_setup_reports_invalid_settings(file: str, text: str, message: str, tmp_path: Path) -> None:
    home = tmp_path / "node"
    boot(home)
    (home / "fgst" / "cluster").mkdir(parents=True)
    for name in ("cluster/setup.sh", "pyproject.toml", "constraints.txt"):
        (home / "fgst" / name).write_bytes((ROOT / name).read_bytes())
    files = {
        ".fgst_storage": "s3://motion/fgst\n",
        ".ray/auth_token": TOKEN,
        ".mlflow/credentials": credentials("admin"),
    }
    for name, content in {**files, file: text}.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    result = subprocess.run(
        ["bash", str(home / "fgst" / "cluster" / "setup.sh"), "head"],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin", "FGST_LOG": str(home / ".calls")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert message in result.stderr.splitlines()[-1]
