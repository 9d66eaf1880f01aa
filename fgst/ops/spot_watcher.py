"""Graceful handling of spot interruptions: move trials to another node before the cloud terminates this one.

AWS announces an interruption two minutes in advance, only in the instance's own metadata. After such a notice, the
watcher asks Ray to drain the node, so that no more trials are placed there, and sends SIGTERM to the running trials:
each writes a checkpoint and exits, and Ray restarts the trial on another node. Without the watcher, a trial resumes
from the last uploaded epoch, and only after Ray has noticed that the node is gone.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import msgspec
import psutil

from fgst.errors import InputError
from fgst.parsing import decode_json

logger = logging.getLogger(__name__)

METADATA_URL = "http://169.254.169.254"
TOKEN_LIFETIME = 6 * 3600  # seconds; the longest that the metadata service allows
MAX_CONNECTION_ATTEMPTS = 12  # failures before concluding that this machine has no metadata service
DEFAULT_NOTICE = 120.0  # seconds left, if the notice does not say
DRAIN_TIMEOUT = 30.0  # seconds that Ray may take to answer
_DRAIN_SCRIPT = """
import sys
from fgst.errors import InputError
from fgst.sweep.backends._ray_private import drain_node

try:
    drain_node(sys.argv[1], float(sys.argv[2]), sys.argv[3] or None)
except InputError as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True)
class InterruptionNotice:
    """An announced interruption of this instance.

    Attributes:
        action: what the cloud will do: "terminate", "stop" or "hibernate".
        seconds: the time left until then.
    """

    action: str
    seconds: float


class _Notice(msgspec.Struct):
    """The answer of the metadata service."""

    action: str
    time: Annotated[datetime, msgspec.Meta(tz=True)]


class InstanceMetadata:
    """Client of the EC2 instance metadata service, version 2, whose requests carry a session token.

    Args:
        url: address of the service.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._token = ""
        self._open = build_opener(ProxyHandler({})).open  # a link-local service, never behind a proxy

    def interruption_notice(self) -> InterruptionNotice | None:
        """Return the interruption announced for this instance, or ``None``.

        Raises:
            OSError: if the service does not answer, or answers with an error.
        """
        try:
            answer = self._get("/latest/meta-data/spot/instance-action")
        except HTTPError as error:
            if error.code == 404:  # nothing is announced
                return None
            raise
        try:
            notice = decode_json(answer.encode(), _Notice)
            seconds = max(0.0, (notice.time - datetime.now(UTC)).total_seconds())
            return InterruptionNotice(notice.action, seconds)
        except ValueError:
            return InterruptionNotice("terminate", DEFAULT_NOTICE)  # a notice in an unknown format is still a notice

    def instance_id(self) -> str:
        """Return the instance's id.

        Raises:
            OSError: if the service does not answer, or answers with an error.
        """
        return self._get("/latest/meta-data/instance-id").strip()

    def _get(self, path: str) -> str:
        if not self._token:
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFETIME)}
            self._token = self._request("PUT", "/latest/api/token", lifetime)
        try:
            return self._request("GET", path, {"X-aws-ec2-metadata-token": self._token})
        except HTTPError as error:
            if error.code == 401:  # the token has expired; the next request fetches another
                self._token = ""
            raise

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        with self._open(Request(self._url + path, headers=headers, method=method), timeout=2) as response:
            return str(response.read(65536).decode())


def watcher_lock() -> Path:
    """Return the file that one watcher per user and machine locks."""
    return Path(tempfile.gettempdir()) / f"fgst-spot-{os.getuid()}.lock"


def wait_for_notice(
    metadata: InstanceMetadata, interval: float, sleep: Callable[[float], None] = time.sleep
) -> InterruptionNotice:
    """Poll the metadata service until it announces an interruption.

    Args:
        interval: seconds between two requests.
        sleep: how to wait that long.

    Raises:
        InputError: if the service cannot be reached from the start. Later outages are tolerated.
    """
    failures, reached = 0, False
    while True:
        notice = None
        try:
            notice = metadata.interruption_notice()
            reached = True
        except (URLError, OSError) as error:
            failures += 1
            if not reached and failures >= MAX_CONNECTION_ATTEMPTS:
                raise InputError(
                    f"cannot reach the instance metadata service ({error}); the watcher runs on EC2 instances only"
                ) from None
        if notice is not None:
            return notice
        sleep(interval)


def evacuate(notice: InterruptionNotice, instance_id: str) -> int:
    """Drain this node and ask the trials that run on it to exit.

    Returns:
        The number of processes that received SIGTERM.
    """
    request_drain(notice.seconds, instance_id)  # before the signals, or Ray would restart the trials here
    signalled = 0
    for process in trial_processes():
        try:
            process.terminate()
            signalled += 1
        except psutil.NoSuchProcess:
            continue
    return signalled


def request_drain(seconds: float, instance_id: str, address: str | None = None) -> bool:
    """Ask Ray to drain the node on an instance that will be gone after some seconds.

    This runs in a separate process because a Ray client that gets no answer can block forever or abort its process.

    Args:
        instance_id: the node's id at the cloud provider, with which Ray was started there.
        address: address of the cluster; ``None`` is the cluster that this machine belongs to.

    Returns:
        Whether Ray accepted. The reason is logged if it did not.
    """
    command = [sys.executable, "-c", _DRAIN_SCRIPT, instance_id, str(int(seconds)), address or ""]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRAIN_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.warning("cannot ask Ray to drain the node: %s", error)
        return False
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        logger.warning("Ray did not drain the node: %s", reason)
    return done.returncode == 0


def trial_processes() -> list[psutil.Process]:
    """Return this user's Ray processes that run trials, as opposed to those that keep the node running.

    Ray titles a worker process after its actor, and the class of a trial's actor has ``Trainable`` in its name.
    """
    processes = []
    for process in psutil.process_iter(["name", "cmdline", "uids"]):
        title = (process.info["cmdline"] or [process.info["name"] or ""])[0]
        if title.startswith("ray::") and "Trainable" in title and process.info["uids"].real == os.getuid():
            processes.append(process)
    return processes
