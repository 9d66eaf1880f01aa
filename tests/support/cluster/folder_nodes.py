"""Nodes of a cluster that are folders: `ssh` and `rsync` that reach them, and what a node finds on its PATH.

`ray up` runs for real against them. Each command of the cluster's file is run by a real bash, in the node's folder as
its home; only what would install or start something there (uv, curl, sudo, ray, the environment's python) writes down
how it was called instead. Ray's own `ray stop` would end every Ray process of the machine. With FGST_RAY, `ray start`
does start Ray, and it is told how far it may grow (autoscale.py, in a namespace of its own).
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

# Both programs are functions of this file, with the folder of all nodes in FGST_NODES.
_PROGRAM = (
    "#!{python}\nimport sys\nsys.path.insert(0, {folder!r})\nimport nodes\nsys.exit(nodes._{name}(sys.argv[1:]))\n"
)
_NOTE = """#!/bin/sh
{before}
{python} - "$FGST_LOG" "$0" "$@" <<'END'
import json, os, sys
kept = ("RAY_AUTH_MODE", "RAY_HEAD_IP", "RAY_OVERRIDE_RESOURCES", "RAY_enable_autoscaler_v2", "FGST_STORAGE",
        "FGST_SERVER_PASSWORD", "MLFLOW_TRACKING_URI", "RAY_JOB_STOP_WAIT_TIME_S")
environment = {{name: os.environ[name] for name in kept if name in os.environ}}
with open(sys.argv[1], "a") as log:
    call = {{"program": os.path.basename(sys.argv[2]), "arguments": sys.argv[3:], "environment": environment}}
    log.write(json.dumps(call) + "\\n")
END
"""
# All nodes are one machine with one address: what would be on the same port twice is left to Ray to choose.
_START = """if [ -n "${FGST_RAY:-}" ] && [ "$1" = start ]; then
  for one; do shift; case $one in --object-manager-port=*) ;; *) set -- "$@" "$one" ;; esac; done
  "$FGST_RAY" "$@" --object-store-memory=100000000 || exit 1
fi"""
_TELL = 'case "${{FGST_RAY:+$2}}" in fgst.ops.autoscaling) {python} "$@" || exit 1 ;; esac'
# The installer that curl would fetch puts a uv there, and that makes an environment of such programs.
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
    """A program that a node has called."""

    program: str
    arguments: tuple[str, ...]
    environment: dict[str, str]

    @property
    def line(self) -> str:
        return " ".join((self.program, *self.arguments))


class Nodes:
    """All nodes, by their addresses, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)
        for name in ("ssh", "rsync"):
            _write(
                self.programs / name,
                _PROGRAM.format(python=sys.executable, name=name, folder=str(Path(__file__).parent)),
            )

    def home(self, address: str) -> Path:
        return self.folder / address

    def calls(self, address: str) -> list[Call]:
        """What a node has called, in that order."""
        log = self.home(address) / ".calls"
        lines = log.read_text().splitlines() if log.exists() else []
        return [Call(c["program"], tuple(c["arguments"]), c["environment"]) for c in map(json.loads, lines)]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _boot(home: Path) -> None:
    """A fresh node, as its image has it."""
    if home.exists():
        return
    for name, before in {"curl": _CURL, "sudo": ""}.items():
        _write(home / ".local/bin" / name, _NOTE.format(python=sys.executable, before=before))
    _write(home / ".local/share/uv", _NOTE.format(python=sys.executable, before=_UV))
    _write(
        home / ".local/share/python", _NOTE.format(python=sys.executable, before=_TELL.format(python=sys.executable))
    )
    _write(home / ".local/share/ray", _NOTE.format(python=sys.executable, before=_START))
    for program in (Path(os.environ["FGST_NODES"]) / "programs").iterdir() if "FGST_NODES" in os.environ else ():
        (home / ".local/bin" / program.name).symlink_to(program)  # the head goes on to the workers


def _ssh(arguments: list[str]) -> int:
    """Run what is asked, as sshd does: the words joined by spaces, by the user's shell."""
    words = list(arguments)
    while words and words[0].startswith("-"):
        words = words[1 if words[0] in ("-tt", "-N") else 2 :]
    address, command = words[0].partition("@")[2], " ".join(words[1:])
    home = Path(os.environ["FGST_NODES"]) / address
    _boot(home)
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


def _rsync(arguments: list[str]) -> int:
    """Copy a file or a folder's content to a node; what is left out is another test's matter, with the real program."""
    import shutil

    source, (_, _, remote) = arguments[-2], arguments[-1].partition("@")
    address, _, target = remote.partition(":")
    home = Path(os.environ["FGST_NODES"]) / address
    _boot(home)
    path = home / target.removeprefix("~/")
    if source.endswith("/"):
        shutil.copytree(source, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, path)  # fails where no `mkdir -p` went before it, as rsync does
    return 0
