"""Cluster nodes that are folders: replacements of `ssh` and `rsync`, and of the programs on a node's PATH.

The real `ray up` runs against them. A real bash runs each command of the cluster file, with the node's folder as its
home. Only programs that would install or start something (uv, curl, sudo, ray, the virtual environment's python) are
replaced by scripts that log how they were called; a real `ray stop` would end every Ray process of the machine. With
FGST_RAY set, `ray start` and the publishing of node groups are real (autoscale_script.py, in its own namespaces).
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
# `ssh` and `rsync` call functions of this module; FGST_NODES is the folder that contains all nodes.
_PROGRAM = (
    "#!{python}\nimport sys\nsys.path.insert(0, {root!r})\nfrom tests.support.cluster import folder_nodes\n"
    "sys.exit(folder_nodes.{name}(sys.argv[1:]))\n"
)
_LOGGED_PROGRAM = """#!/bin/sh
{before}
{python} - "$FGST_LOG" "$0" "$@" <<'END'
import json, os, sys
names = ("RAY_AUTH_MODE", "RAY_HEAD_IP", "RAY_OVERRIDE_RESOURCES", "RAY_enable_autoscaler_v2", "FGST_STORAGE",
        "FGST_SERVER_PASSWORD", "MLFLOW_TRACKING_URI", "RAY_JOB_STOP_WAIT_TIME_S")
environment = {{name: os.environ[name] for name in names if name in os.environ}}
with open(sys.argv[1], "a") as log:
    call = {{"program": os.path.basename(sys.argv[2]), "arguments": sys.argv[3:], "environment": environment}}
    log.write(json.dumps(call) + "\\n")
END
"""
# All nodes share one address, so Ray chooses the port that would otherwise be used twice.
_START_RAY = """if [ -n "${FGST_RAY:-}" ] && [ "$1" = start ]; then
  for one; do shift; case $one in --object-manager-port=*) ;; *) set -- "$@" "$one" ;; esac; done
  "$FGST_RAY" "$@" --object-store-memory=100000000 || exit 1
fi"""
_PUBLISH_NODE_GROUPS = 'case "${{FGST_RAY:+$2}}" in fgst.cli.autoscaling) {python} "$@" || exit 1 ;; esac'
# Instead of downloading uv's installer, curl prints one that installs a logged uv, which creates logged environments.
_CURL = """cat <<'END'
cp "$HOME/.local/share/uv" "$UV_INSTALL_DIR/uv"
END
exec >/dev/null"""
_UV = """case "$1" in
  --version) echo "uv $(sed -n 's/^uv==//p' "$HOME/fgst/constraints.txt") (a test)"; exit 0 ;;
  venv) for last; do :; done; mkdir -p "$last/bin"
    for name in python ray; do cp "$HOME/.local/share/$name" "$last/bin/$name"; done ;;
esac"""


@dataclass(frozen=True)
class Call:
    """A call of a program on a node."""

    program: str
    arguments: tuple[str, ...]
    environment: dict[str, str]

    @property
    def line(self) -> str:
        """The command line."""
        return " ".join((self.program, *self.arguments))


class Nodes:
    """All nodes of a cluster, as subfolders named by their addresses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)
        for name in ("ssh", "rsync"):
            _write(
                self.programs / name,
                _PROGRAM.format(python=sys.executable, name=name, root=str(ROOT)),
            )

    def home(self, address: str) -> Path:
        """Return the home folder of a node."""
        return self.folder / address

    def calls(self, address: str) -> list[Call]:
        """Return the programs that a node has called, in order."""
        log = self.home(address) / ".calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [Call(c["program"], tuple(c["arguments"]), c["environment"]) for c in map(json.loads, lines)]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def boot(home: Path) -> None:
    """Create a node with the programs of its machine image, unless it exists."""
    if home.exists():
        return
    for name, before in {"curl": _CURL, "sudo": ""}.items():
        _write(home / ".local/bin" / name, _LOGGED_PROGRAM.format(python=sys.executable, before=before))
    _write(home / ".local/share/uv", _LOGGED_PROGRAM.format(python=sys.executable, before=_UV))
    _write(
        home / ".local/share/python",
        _LOGGED_PROGRAM.format(python=sys.executable, before=_PUBLISH_NODE_GROUPS.format(python=sys.executable)),
    )
    _write(home / ".local/share/ray", _LOGGED_PROGRAM.format(python=sys.executable, before=_START_RAY))
    for program in (Path(os.environ["FGST_NODES"]) / "programs").iterdir() if "FGST_NODES" in os.environ else ():
        (home / ".local/bin" / program.name).symlink_to(program)  # with them the head connects to the workers


def ssh(arguments: list[str]) -> int:
    """Run a command on a node as sshd does: its words are joined by spaces and passed to the user's shell."""
    words = list(arguments)
    while words and words[0].startswith("-"):
        words = words[1 if words[0] in ("-tt", "-N") else 2 :]
    address, command = words[0].partition("@")[2], " ".join(words[1:])
    home = Path(os.environ["FGST_NODES"]) / address
    boot(home)
    environment = {
        "HOME": str(home), "PATH": "/usr/bin:/bin", "FGST_LOG": str(home / ".calls"), "LANG": "C.UTF-8", "TERM": "dumb",
    }  # fmt: skip
    environment |= {
        k: v
        for k, v in os.environ.items()
        if k.startswith(("AWS_", "FGST_NODES", "FGST_RAY", "PYTHONPATH", "TMPDIR", "RAY_TMPDIR"))
    }
    os.chdir(home)
    os.execve("/bin/sh", ["/bin/sh", "-c", command], environment)


def rsync(arguments: list[str]) -> int:
    """Copy a file or a folder's content to a node. Exclusions are tested with the real rsync, in test_packages.py."""
    import shutil

    source, (_, _, remote) = arguments[-2], arguments[-1].partition("@")
    address, _, target = remote.partition(":")
    home = Path(os.environ["FGST_NODES"]) / address
    boot(home)
    path = home / target.removeprefix("~/")
    if source.endswith("/"):
        shutil.copytree(source, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, path)  # like rsync, fails if the parent folder does not exist
    return 0
