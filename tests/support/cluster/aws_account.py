"""An account at an "AWS" that moto plays on loopback, and the cluster's file filled in for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
from moto.server import ThreadedMotoServer

from tests.support.cluster.config_checks import ROOT, read

REGION, BUCKET, MINE = "us-east-1", "motion", "203.0.113.7/32"
PASSWORD, TOKEN = "correct horse battery staple", "0f" * 32


@dataclass
class Account:
    """An account at "AWS" in which aws-account.yaml was deployed, and somebody's computer with a cluster's file."""

    home: Path
    file: Path
    config: dict[str, Any]
    security_group: str
    environment: dict[str, str]

    def ec2(self) -> Any:
        return boto3.client("ec2", REGION)

    def instances(self, **tags: str) -> list[dict[str, Any]]:
        filters = [{"Name": f"tag:{name}", "Values": [value]} for name, value in tags.items()]
        found = self.ec2().describe_instances(Filters=filters)["Reservations"]
        return [i for r in found for i in r["Instances"] if i["State"]["Name"] in ("pending", "running")]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        ray = str(Path(sys.executable).with_name("ray"))
        return subprocess.run(
            [ray, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=400, check=False
        )


def _forget_clients() -> None:
    """Ray keeps its connections for as long as the process lives; here each test has an AWS of its own."""
    from ray.autoscaler._private.aws import config, utils

    for kept in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        kept.cache_clear()


@contextmanager
def an_account(folder: Path, setenv: Callable[[str, str], None], **changes: str) -> Iterator[Account]:
    """An account, for as long as it is needed; the environment leads to it, and to nodes that are folders (nodes.py).

    Args:
        setenv: sets a variable of the environment.
        changes: what else is another text in the cluster's file, by what it is there.
    """
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    home, nodes = folder / "home", folder / "nodes"
    for path, text in {".ray/auth_token": TOKEN, ".mlflow/credentials": credentials("admin")}.items():
        (home / path).parent.mkdir(parents=True)
        (home / path).write_text(text)
    for name, value in {
        "HOME": str(home),
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FGST_NODES": str(nodes),
        "TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_UP_enable_autoscaler_v2": "1",
        "PATH": f"{nodes / 'programs'}{os.pathsep}{os.environ['PATH']}",
    }.items():
        setenv(name, value)
    _forget_clients()
    # The server keeps its accounts for as long as this process lives.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    group, name = deploy(), f"fgst-{folder.name}"
    text = (ROOT / "cluster.yaml").read_text()
    for old, new in {
        "sg-CHANGE-ME": group,
        "CHANGE-ME/fgst": f"{BUCKET}/fgst",
        "ami-CHANGE-ME": image(),
        "cluster_name: fgst": f"cluster_name: {name}",
        **changes,
    }.items():
        assert old in text
        text = text.replace(old, new)
    file = folder / "cluster.yaml"
    file.write_text(text)
    try:
        yield Account(home, file, read(file), group, dict(os.environ))
    finally:
        server.stop()
        _forget_clients()
        for left in Path("/tmp").glob(f"ray_ssh_*/{hashlib.sha256(name.encode()).hexdigest()[:10]}"):
            left.rmdir()  # where ssh would keep its connections
            with suppress(OSError):
                left.parent.rmdir()


def credentials(user: str) -> str:
    return f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {PASSWORD}\n"


def image() -> str:
    return str(boto3.client("ec2", REGION).describe_images(Owners=["099720109477"])["Images"][0]["ImageId"])


def deploy(ssh_from: str = MINE) -> str:
    """What `aws cloudformation deploy` does with cluster/aws-account.yaml; the security group that it prints."""
    vpc = boto3.client("ec2", REGION).describe_vpcs()["Vpcs"][0]["VpcId"]
    stacks = boto3.client("cloudformation", REGION)
    stacks.create_stack(
        StackName="fgst",
        TemplateBody=(ROOT / "cluster" / "aws-account.yaml").read_text(),
        Parameters=[
            {"ParameterKey": key, "ParameterValue": value}
            for key, value in {"SshFrom": ssh_from, "Vpc": vpc, "Bucket": BUCKET}.items()
        ],
        Capabilities=["CAPABILITY_NAMED_IAM"],
    )
    (stack,) = stacks.describe_stacks(StackName="fgst")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return str({output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}["SecurityGroup"])
