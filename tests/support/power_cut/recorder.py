"""Record what a process does to a folder, call by call, as the states of the disk that a power cut may leave.

The model is that of POSIX: without a sync, the disk may have any part of what was written. ``fsync`` of a file stores
its content but not its name. ``fsync`` of a folder stores the names in it. Changes of names that were not synced may
have happened or not, each on its own, except that a rename is one change.

A library that makes system calls without the C library, as safetensors does to rename its file, is not seen. Changes of
names that are found between two calls count as one change that is not synced.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

SHIM = Path(__file__).with_name("shim.c")
BLOCK = 4096
Tree = dict[str, bytes | None]
"""Content of files by relative path; ``None`` for a folder."""

# A change of names: (folder, name) -> inode, or None if the name is removed. All happen at once.
Change = dict[tuple[int, str], int | None]


@dataclass
class Content:
    """What a file may contain after a power cut.

    Attributes:
        synced: its content when it was synced last; ``None`` if it never was.
        current: its content now.
        truncated: whether it was truncated since.
    """

    synced: bytes | None
    current: bytes
    truncated: bool = False

    def after_cut(self, damage: str) -> bytes:
        """Return one of the possible contents, one for each of :data:`DAMAGES`."""
        synced, current = self.synced, self.current
        if synced == current or damage == "written":
            return current
        if synced is None or (damage == "empty" and self.truncated):
            synced = b""
        if damage in ("lost", "empty"):
            return synced
        if damage == "zeros":  # the new length was stored, but no new block
            return synced[: len(current)].ljust(len(current), b"\0")
        if damage == "holes":  # and the last block
            last = max(0, len(current) - 1) // BLOCK * BLOCK
            return synced[:last].ljust(last, b"\0") + current[last:]
        size = max(len(synced), (len(synced) + len(current)) // 2) if len(current) >= len(synced) else len(current)
        blocks = [(current, synced)[i // BLOCK % 2][i : i + BLOCK].ljust(BLOCK, b"\0") for i in range(0, size, BLOCK)]
        return b"".join(blocks)[:size]


DAMAGES = ("lost", "empty", "zeros", "holes", "torn", "written")


@dataclass(frozen=True)
class Cut:
    """A moment at which the power may fail.

    Attributes:
        call: the call that the process was about to make.
        marks: what the process had marked by then; it must survive.
        root: inode of the folder.
        names: names that are on the disk, by inode of their folder.
        pending: changes of names that may be on the disk or not, in order.
        files: contents by inode.
    """

    call: str
    marks: tuple[str, ...]
    root: int
    names: Mapping[int, Mapping[str, int]]
    pending: tuple[Change, ...]
    files: Mapping[int, Content]

    def tree(self, happened: tuple[bool, ...], damage: Mapping[int, str] | str) -> Tree:
        """Return the folder after a cut at which some of the pending changes had happened."""
        names = {folder: dict(entries) for folder, entries in self.names.items()}
        for change in (change for change, done in zip(self.pending, happened, strict=True) if done):
            for (folder, name), inode in change.items():
                entries = names.setdefault(folder, {})
                if inode is None:
                    entries.pop(name, None)
                else:
                    entries[name] = inode
        tree: Tree = {}

        def visit(folder: int, path: str, above: frozenset[int]) -> None:
            for name, inode in names.get(folder, {}).items():
                if inode in self.files:
                    chosen = damage if isinstance(damage, str) else damage.get(inode, "lost")
                    tree[path + name] = self.files[inode].after_cut(chosen)
                elif inode not in above:
                    tree[path + name] = None
                    visit(inode, f"{path}{name}/", above | {inode})

        visit(self.root, "", frozenset({self.root}))
        return tree

    def trees(self, rng: np.random.Generator, *, limit: int) -> Iterator[Tree]:
        """Yield possible trees: all of them if there are few, and else ``limit`` of them.

        Each prefix of the pending changes (as with a journal) is among them.
        """
        count = len(self.pending)
        choices = [tuple(i < done for i in range(count)) for done in range(count + 1)]
        if 2**count <= limit:
            choices = [tuple(bool(number >> i & 1) for i in range(count)) for number in range(2**count)]
        else:
            choices += [tuple(map(bool, rng.integers(0, 2, count))) for _ in range(limit - len(choices))]
        unsynced = [inode for inode, file in self.files.items() if file.synced != file.current]
        for happened in choices:
            for damage in DAMAGES if unsynced else ("written",):
                yield self.tree(happened, damage)
            if len(unsynced) > 1:
                yield self.tree(happened, {inode: str(rng.choice(DAMAGES)) for inode in unsynced})


@dataclass
class Recording:
    """All cuts of a process that ran to its end, and its output."""

    folder: Path
    cuts: list[Cut] = field(default_factory=list)
    output: str = ""

    def states(self, *, limit: int, seed: int = 0) -> Iterator[tuple[Tree, tuple[str, ...], str]]:
        """Yield each tree that a cut may leave, once, with the marks that must have survived and the next call."""
        rng, seen = np.random.default_rng(seed), set()
        for cut in self.cuts:
            for tree in cut.trees(rng, limit=limit):
                key = hash((cut.marks, frozenset(tree.items())))
                if key not in seen:
                    seen.add(key)
                    yield tree, cut.marks, cut.call

    def rebuild(self, tree: Tree) -> None:
        """Replace the folder by what a cut left."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for path, content in tree.items():
            if content is None:
                (self.folder / path).mkdir()
            else:
                (self.folder / path).write_bytes(content)


class _Recorder:
    """The other end of the process's calls."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.calls = 0
        self.lock = threading.Lock()
        self.marks: list[str] = []
        self.pending: list[Change] = []
        self.cuts: list[Cut] = []
        self.error: BaseException | None = None
        self.pins: dict[int, int] = {}  # open descriptors, so that the number of a removed inode is not used again
        self.files: dict[int, Content] = {}
        self.names: dict[int, dict[str, int]] = {}  # on the disk
        self.current: dict[int, dict[str, int]] = {}
        self.root = folder.stat().st_ino
        self.scan()
        self.pending = []
        self.names = {inode: dict(entries) for inode, entries in self.current.items()}
        for file in self.files.values():
            file.synced = file.current

    def scan(self) -> None:
        """Look at the folder."""
        current: dict[int, dict[str, int]] = {}
        stack = [(self.root, self.folder)]
        while stack:
            inode, folder = stack.pop()
            entries = current.setdefault(inode, {})
            for entry in os.scandir(folder):
                number = entry.inode()
                if number not in self.pins:
                    self.pins[number] = os.open(entry.path, os.O_PATH | os.O_NOFOLLOW)
                entries[entry.name] = number
                if entry.is_dir(follow_symlinks=False):
                    stack.append((number, Path(entry.path)))
                else:
                    content = Path(entry.path).read_bytes()
                    old = self.files.get(number)
                    if old is None:
                        self.files[number] = Content(None, content)
                    elif old.current != content:
                        self.files[number] = Content(old.synced, content, old.truncated)
        changes: Change = {}
        for inode in current.keys() | self.current.keys():
            before, now = self.current.get(inode, {}), current.get(inode, {})
            for name in before.keys() | now.keys():
                if before.get(name) != now.get(name):
                    changes[inode, name] = now.get(name)
        self.current = current
        if changes:
            self.pending.append(changes)

    def on_line(self, phase: str, kind: str, path: str) -> None:
        self.scan()
        if phase == "mark":
            self.marks.append(kind)
        elif phase == "before":
            self.calls += 1
            if self.calls % self.every == 0:
                self.cut(f"{kind} {os.path.relpath(path, self.folder)}")
        elif Path(path).exists():
            inode = Path(path).stat().st_ino
            if kind == "truncate" and inode in self.files:
                old = self.files[inode]
                self.files[inode] = Content(old.synced, old.current, truncated=True)
            elif kind == "sync":
                self.sync(inode)

    def sync(self, inode: int) -> None:
        if inode in self.files:
            self.files[inode] = Content(self.files[inode].current, self.files[inode].current)
            return
        remaining = []
        for change in self.pending:
            if any(folder == inode for folder, _ in change):
                for (folder, name), number in change.items():
                    entries = self.names.setdefault(folder, {})
                    if number is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = number
            else:
                remaining.append(change)
        self.pending = remaining

    def cut(self, call: str) -> None:
        names = {inode: dict(entries) for inode, entries in self.names.items()}
        self.cuts.append(Cut(call, tuple(self.marks), self.root, names, tuple(self.pending), dict(self.files)))

    def serve(self, connection: socket.socket) -> None:
        held = False
        try:
            while line := connection.recv(65536).decode():
                phase, _, rest = line.partition("\t")
                kind, _, paths = rest.partition("\t")
                if not held:
                    self.lock.acquire()
                held = phase == "before"
                try:
                    self.on_line(phase.strip(), kind, paths.partition("\t")[0])
                except BaseException as error:
                    self.error = self.error or error
                if not held:
                    self.lock.release()
                connection.send(b".")
        finally:
            if held:
                self.lock.release()
            connection.close()


def compile_shim(folder: Path) -> Path:
    """Compile the library that is preloaded; skips the test if this machine has no C compiler or is not Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    library = folder / "shim.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl", "-lpthread"], check=True)
    return library


def record(library: Path, folder: Path, script: str, *arguments: object, every: int = 1) -> Recording:
    """Run a Python script in a process of its own, and record what it does to a folder.

    The script has a function ``mark(text)``, which says that everything up to here must survive.

    Args:
        library: from :func:`compile_shim`.
        folder: an existing folder; its content counts as synced.
        script: the source; it can import ``tests`` and ``fgst``.
        arguments: further arguments of the script. The first one is the folder.
        every: consider a cut only at every n-th call.
    """
    folder = folder.resolve()
    recorder = _Recorder(folder, every)
    address = library.parent / f"{folder.name}.socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(address))
        server.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=recorder.serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        search_path = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
        environment = {
            **os.environ, "PYTHONPATH": search_path, "LD_PRELOAD": str(library), "POWER_CUT_ROOT": str(folder),
            "POWER_CUT_SOCKET": str(address),
        }  # fmt: skip
        process = subprocess.run(
            [sys.executable, "-c", PREAMBLE + script, folder, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
        )
        server.shutdown(socket.SHUT_RDWR)
    address.unlink()
    assert process.returncode == 0, process.stderr
    if recorder.error is not None:
        raise recorder.error
    recorder.scan()
    recorder.cut("the end")
    for pin in recorder.pins.values():
        os.close(pin)
    return Recording(folder, recorder.cuts, process.stdout)


PREAMBLE = """
import ctypes
def mark(text):
    ctypes.CDLL(None).power_cut_mark(str(text).encode())
"""
