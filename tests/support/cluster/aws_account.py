"""An AWS account simulated by moto on this machine, with cluster.yaml filled in for it."""

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

REGION, BUCKET, USER_CIDR = "us-east-1", "motion", "203.0.113.7/32"
PASSWORD, TOKEN = "correct horse battery staple", "0f" * 32


@dataclass
class Account:
    """A simulated AWS account in which aws-account.yaml is deployed, and a user's computer.

    Attributes:
        home: the user's home folder, with the token and the credentials.
        file: the user's cluster.yaml.
        config: its content.
        security_group: id of the deployed security group.
        environment: environment variables for the user's commands.
    """

    home: Path
    file: Path
    config: dict[str, Any]
    security_group: str
    environment: dict[str, str]

    def ec2(self) -> Any:
        return boto3.client("ec2", REGION)

    def instances(self, **tags: str) -> list[dict[str, Any]]:
        """Return the pending and running instances with these tags."""
        filters = [{"Name": f"tag:{name}", "Values": [value]} for name, value in tags.items()]
        reservations = self.ec2().describe_instances(Filters=filters)["Reservations"]
        return [i for r in reservations for i in r["Instances"] if i["State"]["Name"] in ("pending", "running")]

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a ``ray`` command as the user."""
        ray = str(Path(sys.executable).with_name("ray"))
        return subprocess.run(
            [ray, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=400, check=False
        )


def _clear_client_caches() -> None:
    """Make Ray open new connections; it caches them as long as the process runs, but each test has its own server."""
    from ray.autoscaler._private.aws import config, utils

    for cached in (utils.resource_cache, utils.client_cache, config._get_subnets_or_die):
        cached.cache_clear()


@contextmanager
def aws_account(folder: Path, setenv: Callable[[str, str], None], **changes: str) -> Iterator[Account]:
    """Provide an account within the context, and point the environment to it and to its nodes (folder_nodes.py).

    Args:
        folder: an empty folder for all files.
        setenv: sets an environment variable.
        changes: further replacements in cluster.yaml, new text by old text.
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
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "FGST_NODES": str(nodes),
        "TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_UP_enable_autoscaler_v2": "1",
        "PATH": f"{nodes / 'programs'}{os.pathsep}{os.environ['PATH']}",
    }.items():
        setenv(name, value)
    _clear_client_caches()
    # moto's accounts exist as long as this process.
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    group, name = deploy(), f"fgst-{folder.name}"
    text = (ROOT / "cluster.yaml").read_text()
    for old, new in {
        "sg-CHANGE-ME": group,
        "CHANGE-ME/fgst": f"{BUCKET}/fgst",
        "ami-CHANGE-ME": image_id(),
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
        _clear_client_caches()
        for leftover in Path("/tmp").glob(f"ray_ssh_*/{hashlib.sha256(name.encode()).hexdigest()[:10]}"):
            leftover.rmdir()  # for ssh's control sockets
            with suppress(OSError):
                leftover.parent.rmdir()


def credentials(user: str) -> str:
    """Return the content of ~/.mlflow/credentials."""
    return f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {PASSWORD}\n"


def image_id() -> str:
    """Return the id of a machine image that moto knows."""
    return str(boto3.client("ec2", REGION).describe_images(Owners=["099720109477"])["Images"][0]["ImageId"])


def deploy(ssh_from: str = USER_CIDR) -> str:
    """Deploy cluster/aws-account.yaml as `aws cloudformation deploy` does, and return the security group's id."""
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
