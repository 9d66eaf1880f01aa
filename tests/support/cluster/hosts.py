"""Hosts for ``ray up`` without a cloud: Linux namespaces on this machine, each with its own sshd.

Each host has its own PID, mount, UTS, IPC and network namespaces, and thus its own address, home, ``/tmp`` and
processes, and can die or freeze independently. Isolation is also a necessity: ``ray up`` and ``ray down`` call
``ray stop``, which ends all Ray processes that it can see. The hosts are connected by a bridge without an uplink. All
of them are descendants of one process, the *world*; when it is killed, the kernel removes their processes, networks and
mounts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[3]
SHARED = "/mnt/fgst"  # the folder that all hosts share, as if by NFS
NETWORK = "10.231.0"
LAPTOP = "laptop"
TIMEOUT = 300.0
_PROGRAMS = {
    "sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsync": "rsync",
    "ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "mount": "mount", "mkfs.ext4": "e2fsprogs",
    "fsfreeze": "util-linux",
}  # fmt: skip
_NAMESPACES = ["--mount", "--pid", "--net", "--uts", "--ipc"]
_UNSHARE = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The world: a bridge, and the shared folder as a separate file system, which can be frozen.
_WORLD = """
set -e
ip link set lo up
ip link add br0 type bridge && ip addr add {network}.1/24 dev br0 && ip link set br0 up
if mount -o loop {state}/shared.img {state}/shared 2>/dev/null; then touch {state}/shared/.own; fi
touch {state}/ready
exec sleep infinity
"""
# A host: what it needs of this machine is mounted into its home and /tmp before these are mounted over the real ones.
_HOST = """
set -e
hostname {name}
{disk}
{visible}
mount -t tmpfs tmpfs /mnt && mkdir {shared} && mount --bind {state}/shared {shared}
mount -t tmpfs tmpfs /dev/shm
mount --bind {state}/names /etc/hosts
mount --bind {state}/nameservers /etc/resolv.conf
mount -t tmpfs tmpfs /run && mkdir /run/sshd && cp {state}/hostkey {state}/sshd_config /run/sshd/
mount --rbind {home} {real_home}
mount --rbind {tmp} /tmp
cd /
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip link set lo up && ip addr add {address}/24 dev eth0 && ip link set eth0 up && ip route add default via {network}.1
touch /run/up
exec {sshd} -D -e -f /run/sshd/sshd_config
"""
_SSHD = """
Port 22
HostKey /run/sshd/hostkey
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxStartups 100
"""


def missing() -> str | None:
    """Return in one line why this machine cannot run hosts; ``None`` if it can."""
    if sys.platform != "linux" or os.geteuid():
        return "hosts in namespaces need Linux and root"
    packages = sorted({package for name, package in _PROGRAMS.items() if shutil.which(name, path=_PATH) is None})
    if packages:
        return f"hosts in namespaces need: apt-get install {' '.join(packages)}"
    script = "mount -t tmpfs tmpfs /mnt && ip link add br0 type bridge"
    probe = ["unshare", *_NAMESPACES, "--fork", "--mount-proc", "sh", "-c", script]
    result = subprocess.run(probe, capture_output=True, text=True, check=False)
    if result.returncode:
        return f"this machine forbids namespaces ({(result.stderr.strip().splitlines() or ['no reason given'])[-1]})"
    return None


class Hosts:
    """Hosts by name, and a laptop, which has a checkout in ``~/fgst`` and an ssh key for all of them.

    Args:
        folder: for all files; removed by :meth:`end`.
        names: names of the hosts; all are off until :meth:`boot`.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.addresses = {name: f"{NETWORK}.{10 + number}" for number, name in enumerate([LAPTOP, *names])}
        # By name: the process that started the host, and the PID of the host's first process.
        self._running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        self._pid_namespaces: set[str] = set()  # of all hosts ever started
        self._frozen = False
        (folder / "shared").mkdir(parents=True)
        subprocess.run(["truncate", "--size=2G", folder / "shared.img"], check=True)
        subprocess.run(["mkfs.ext4", "-q", folder / "shared.img"], check=True)
        (folder / "sshd_config").write_text(_SSHD)
        (folder / "names").write_text(
            "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        )
        (folder / "nameservers").touch()  # empty: queries to an unreachable server would take seconds
        for key in ("hostkey", "id"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
        for name in self.addresses:
            self._make_home(name)
        self._world = subprocess.Popen(
            [*_UNSHARE, "bash", "-c", _WORLD.format(network=NETWORK, state=folder)],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        _until((folder / "ready").exists, "the world started")
        self._first = _first_process(self._world.pid)
        self._pid_namespaces.add(_pid_namespace(self._first))
        self.can_stall = self._in_world("test", "-e", str(folder / "shared/.own")) == 0

    @property
    def names(self) -> list[str]:
        """Names of the hosts that are up."""
        return list(self._running)

    def boot(self, name: str, tmp_size: str = "") -> None:
        """Switch a host on, with its previous home and an empty ``/tmp``, of ``tmp_size`` (e.g. 64m) if given."""
        tmp, home = self.folder / name / "tmp", self.folder / name / "home"
        shutil.rmtree(tmp, ignore_errors=True)
        tmp.mkdir()
        tmp.chmod(0o1777)
        script = _HOST.format(
            name=name, state=self.folder, shared=SHARED, home=home, tmp=tmp, real_home=Path.home(), network=NETWORK,
            address=self.addresses[name], sshd=shutil.which("sshd", path=_PATH), visible=self._visible(home, tmp),
            disk=f"mount -t tmpfs -o mode=1777,size={tmp_size} tmpfs {tmp}" if tmp_size else "",
        )  # fmt: skip
        with (self.folder / name / "log").open("ab") as log:
            process = subprocess.Popen(
                [*self._enter(self._first), *_UNSHARE, "bash", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            first = _first_process(process.pid)
            self._pid_namespaces.add(_pid_namespace(first))
            link = ["ip", "link", "add", f"to-{name}", "master", "br0", "up", "type", "veth", "peer", "name", "eth0"]
            # After a kill, the kernel takes a moment to remove the network namespace and the link of that name.
            _until(lambda: self._in_world(*link, "netns", str(first)) == 0, f"{name} was connected")
            _until(lambda: Path(f"/proc/{first}/root/run/up").exists(), f"{name} was up")
        except AssertionError as error:
            raise AssertionError(f"{error}: {(self.folder / name / 'log').read_text()}") from None
        self._running[name] = (process, first)

    def kill(self, name: str) -> None:
        """Simulate a power failure: end all of the host's processes at once, and disconnect it."""
        process, first = self._running.pop(name)
        os.kill(first, signal.SIGKILL)
        process.wait(TIMEOUT)

    def start(self, name: str, command: str) -> subprocess.Popen[str]:
        """Start a command on a host in a login shell of its user, with SIGINT enabled even if the tests ignore it."""
        user = [f"HOME={Path.home()}", "USER=root", "LOGNAME=root", "SHELL=/bin/bash", "TERM=dumb", "LANG=C.UTF-8"]
        return subprocess.Popen(
            [*self._enter(self._running[name][1]), "env", "--default-signal=INT", "-i", *user, f"PATH={_PATH}",
             "bash", "-c", f"cd && . ~/.profile && {{ {command}\n}}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, name: str, command: str, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
        """Run a command on a host and return its output and exit code."""
        process = self.start(name, command)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, "")

    def processes(self, name: str) -> list[str]:
        """Return the command lines of all processes on a host."""
        return [line for pid in self._pids(name) if (line := _command_line(pid))]

    def stop(self, name: str, words: str) -> None:
        """Send SIGINT to the processes that have these words in their command lines."""
        for pid in self._pids(name):
            if words in _command_line(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Suspend all processes of a host, like heavy swapping; its network still accepts packets."""
        pids = self._pids(name)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Make writes to the shared folder block within the context, like NFS during an outage of its server."""
        assert self.can_stall
        assert self._in_world("fsfreeze", "--freeze", str(self.folder / "shared")) == 0
        self._frozen = True
        try:
            yield
        finally:
            self._thaw()

    def end(self) -> None:
        """End all hosts and remove the folder."""
        if self._frozen:
            self._thaw()  # a process that waits for a frozen file system cannot be killed
        with suppress(ProcessLookupError, AttributeError):
            os.kill(self._first, signal.SIGKILL)
        with suppress(AttributeError):
            self._world.wait(TIMEOUT)
        for process, _ in self._running.values():
            process.wait(TIMEOUT)
        _until(lambda: not self.left(), "all processes ended")
        shutil.rmtree(self.folder)

    def left(self) -> list[str]:
        """Return the command lines of all processes that are left of any host."""
        return [_command_line(pid) for pid in _processes() if _pid_namespace(pid) in self._pid_namespaces]

    def _make_home(self, name: str) -> None:
        home = self.folder / name / "home"
        (home / ".ssh").mkdir(parents=True)
        home.chmod(0o755)
        (home / ".ssh").chmod(0o700)
        shutil.copy(self.folder / "id.pub", home / ".ssh" / "authorized_keys")
        (home / ".profile").write_text('[ -z "$BASH_VERSION" ] || . ~/.bashrc\n')
        (home / ".bashrc").touch()
        if name == LAPTOP:
            shutil.copy(self.folder / "id", home / ".ssh" / "fgst_cluster")
            excluded = shutil.ignore_patterns(
                ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info", "build", "docs",
                "datasets", "checkpoints", "ray_results", "mlruns", "server", "mlflow.db*",
            )  # fmt: skip
            shutil.copytree(ROOT, home / "fgst", ignore=excluded)
            (home / ".bashrc").write_text(f'export PATH="{sys.prefix}/bin:$PATH"\n')

    def _visible(self, home: Path, tmp: Path) -> str:
        """Return commands that mount the interpreter and its packages into a home or ``/tmp`` that would hide them."""
        commands = []
        for path in dict.fromkeys([Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]):
            for hidden, own in ((Path.home().resolve(), home), (Path("/tmp"), tmp)):
                if path.is_relative_to(hidden):
                    target = own / path.relative_to(hidden)
                    commands.append(f"mkdir -p {target} && mount --bind {path} {target}")
        return "\n".join(commands)

    def _enter(self, pid: int) -> list[str]:
        return ["nsenter", "--target", str(pid), *_NAMESPACES, "--"]

    def _in_world(self, *command: str) -> int:
        """Run a command in the world's namespaces except for PIDs, which remain those of this machine."""
        namespaces = [option for option in _NAMESPACES if option != "--pid"]
        return subprocess.run(
            ["nsenter", "--target", str(self._first), *namespaces, "--", *command], capture_output=True, check=False
        ).returncode

    def _thaw(self) -> None:
        self._in_world("fsfreeze", "--unfreeze", str(self.folder / "shared"))
        self._frozen = False

    def _pids(self, name: str) -> list[int]:
        namespace = _pid_namespace(self._running[name][1])
        return [pid for pid in _processes() if _pid_namespace(pid) == namespace]


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # the process has ended
        return ""


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _first_process(parent: int) -> int:
    """Return the first process of the PID namespace that ``unshare`` created, as a descendant of ``parent``."""
    outer = _pid_namespace(os.getpid())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        descendants = [parent]
        for pid in descendants:  # the list grows during the iteration
            with suppress(OSError):
                descendants += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        for pid in reversed(descendants):
            with suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
                if inner[-1] == "1" and _pid_namespace(pid) not in ("", outer):
                    return pid
        time.sleep(0.02)
    raise AssertionError("no namespace was created")


def _until(condition: object, what: str, seconds: float = 60.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timeout after {seconds:g} s, waiting until {what}"
        time.sleep(0.1)
