"""On a spot node: hear the cloud's warning that the node will be taken away, and let its trials leave in time.

  python -m fgst.ops.spot_watcher          # cluster.yaml starts one on each worker

AWS warns two minutes ahead, and says it only in the instance's own metadata. Then Ray is told to drain the node, so
that no trial is begun on it any more, and the processes of its trials get SIGTERM: each keeps a checkpoint and ends,
and Ray starts it again on another node. Without all this a trial goes on from its last epoch, and two minutes later.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
from filelock import FileLock, Timeout

from fgst.cli.command import CommandParser, run_command
from fgst.errors import InputError

METADATA = "http://169.254.169.254"
LIFE = 6 * 3600  # seconds that a session token of the metadata service is good for, the longest there is
FIRST_CONTACT = 12  # attempts before a machine counts as none of the cloud's
GONE = 120.0  # seconds that are left, where the warning does not say
PATIENCE = 30.0  # seconds that Ray may take to answer


@dataclass(frozen=True)
class Warned:
    """What the cloud will do with this instance ("terminate", "stop", "hibernate"), and in how many seconds."""

    action: str
    seconds: float


class Metadata:
    """The instance metadata service, version 2: each answer is asked for with a session token."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._token = ""
        self._open = build_opener(ProxyHandler({})).open  # the service is on the machine, behind no proxy

    def warning(self) -> Warned | None:
        """What is announced for this instance, if anything is.

        Raises:
            OSError: if the service does not answer, or not as it should.
        """
        try:
            said = self._get("/latest/meta-data/spot/instance-action")
        except HTTPError as error:
            if error.code == 404:  # the normal state of things
                return None
            raise
        try:
            notice = json.loads(said)
            when = datetime.fromisoformat(notice["time"])
            return Warned(str(notice["action"]), max(0.0, (when - datetime.now(UTC)).total_seconds()))
        except (ValueError, KeyError, TypeError):
            return Warned("terminate", GONE)  # a warning of a form not known: a warning all the same

    def instance(self) -> str:
        """The instance's id."""
        return self._get("/latest/meta-data/instance-id").strip()

    def _get(self, path: str) -> str:
        if not self._token:
            self._token = self._ask("/latest/api/token", "PUT", "X-aws-ec2-metadata-token-ttl-seconds", str(LIFE))
        try:
            return self._ask(path, "GET", "X-aws-ec2-metadata-token", self._token)
        except HTTPError as error:
            if error.code == 401:  # the token's time is over
                self._token = ""
            raise

    def _ask(self, path: str, method: str, header: str, value: str) -> str:
        with self._open(Request(self._url + path, headers={header: value}, method=method), timeout=2) as answer:
            return str(answer.read(65536).decode())


def watch(metadata: Metadata, every: float, sleep: Callable[[float], None] = time.sleep) -> Warned:
    """Wait for a warning; a service that does not answer for a while is asked on.

    Raises:
        InputError: if it never answers at all.
    """
    silent, reached = 0, False
    while True:
        try:
            warned = metadata.warning()
            reached = True
        except (URLError, OSError) as error:
            silent += 1
            if not reached and silent >= FIRST_CONTACT:
                raise InputError(f"no instance metadata here ({error}): this watches on EC2 instances only") from None
            warned = None
        if warned is not None:
            return warned
        sleep(every)


def drain(seconds: float, instance: str, address: str | None = None) -> bool:
    """Tell Ray that the node on an instance will be gone after some seconds; whether Ray has heard it.

    Args:
        instance: its id at the cloud, which Ray was told when it was started there.
        address: of the cluster; default: the one to which this machine belongs.
    """
    # In a process of its own: a client of Ray's that gets no answer may wait for ever, or take its process down.
    command = [sys.executable, "-m", "fgst.ops.spot_watcher", "--drain", str(int(seconds)), instance, address or ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"Ray could not be told: {error}", file=sys.stderr, flush=True)
        return False
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"Ray would not drain the node: {said}", file=sys.stderr, flush=True)
    return done.returncode == 0


def _drain(seconds: int, instance: str, address: str | None) -> None:
    """What :func:`drain` does in a process of its own.

    Raises:
        InputError: if there is no such node, or Ray does not want to.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, without a description
    from ray.core.generated import autoscaler_pb2, gcs_pb2

    # `ray drain-node` would join the cluster to learn the node's id, and die with the node if that has nothing to do.
    ray = GcsClient(address=canonicalize_bootstrap_address_or_die(address))
    nodes = [
        node.hex()
        for node, info in ray.get_all_node_info().items()
        if info.instance_id == instance and info.state == gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE
    ]
    if not nodes:
        raise InputError(f"Ray knows of no node on instance {instance}")
    for node in nodes:
        accepted, reason = ray.drain_node(
            node,
            autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
            "the cloud takes this spot instance away",
            int(1000 * (time.time() + seconds)),
        )
        if not accepted:
            raise InputError(reason)


def trial_processes() -> list[psutil.Process]:
    """The processes of this user in which Ray trains; without Ray's own, which hold the node together."""
    found = []
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        title = (process.info["cmdline"] or [process.info["name"] or ""])[0]
        if title.startswith("ray::") and "Trainable" in title and process.info["uids"].real == os.getuid():
            found.append(process)
    return found


def leave(warned: Warned, instance: str) -> int:
    """Drain the node on this instance and ask its trials to end; how many were asked."""
    drain(warned.seconds, instance)  # first: what ends now must not be started here again
    asked = 0
    for process in trial_processes():
        try:
            process.terminate()
            asked += 1
        except psutil.NoSuchProcess:
            continue
    return asked


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser("python -m fgst.ops.spot_watcher", __doc__)
    parser.add_argument("--every", type=float, default=5.0, metavar="S", help="seconds between two looks (default: 5)")
    parser.add_argument(
        "--metadata",
        metavar="URL",
        default=os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA,
        help=f"the metadata service (default: AWS_EC2_METADATA_SERVICE_ENDPOINT, or {METADATA})",
    )
    parser.add_argument("--drain", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.drain:
        _drain(int(args.drain[0]), args.drain[1], args.drain[2] or None)
        return
    if args.every <= 0:
        raise InputError(f"--every {args.every:g}: a number of seconds above 0")
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"fgst-spot-{os.getuid()}.lock", timeout=0):
            metadata = Metadata(args.metadata)
            warned = watch(metadata, args.every)
            print(f"{datetime.now(UTC):%F %T} {warned.action} in {warned.seconds:.0f} s", flush=True)
            instance = ""
            with suppress(OSError):
                instance = metadata.instance()
            print(f"{leave(warned, instance)} processes were told to end", flush=True)
    except Timeout:
        print("another one watches here already", flush=True)  # `ray up` starts it again on a node that is up


if __name__ == "__main__":
    run_command(main)
