"""The tracking server's folder, kept in a bucket while its machine is away.

  python -m fgst.server_backup save ~/server s3://bucket/fgst/server.tar.gz
  python -m fgst.server_backup restore ~/server s3://bucket/fgst/server.tar.gz

The server must be stopped. What it keeps elsewhere (--artifacts) is left alone. A copy in the bucket is replaced only
by a whole one. Restoring where nothing was kept does nothing, and says so.
"""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fgst.cli.command import CommandParser, run_command
from fgst.errors import InputError

LEFT_OUT = ("lock", "socket", "mlflow.log", "postgres.log")


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser("python -m fgst.server_backup", __doc__)
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("folder", help="the server's --dir")
    parser.add_argument("uri", help="of one file, e.g. s3://bucket/fgst/server.tar.gz")
    args = parser.parse_args(argv)
    folder = Path(args.folder).absolute()
    store, path = _store(args.uri)
    try:
        (save if args.what == "save" else restore)(folder, store, path)
    except (OSError, EOFError, tarfile.TarError) as error:  # Arrow's are among them
        raise InputError(f"{args.uri}: could not be copied ({str(error).splitlines()[0]})") from None


def _store(uri: str) -> tuple[Any, str]:
    from pyarrow import fs

    if "://" not in uri:
        raise InputError(f"{uri}: name a URI, e.g. s3://bucket/fgst/server.tar.gz")
    try:
        store, path = fs.FileSystem.from_uri(uri)
    except (OSError, ValueError) as error:
        raise InputError(f"{uri}: cannot be reached ({str(error).splitlines()[0]})") from None
    return store, path


def save(folder: Path, store: Any, path: str) -> None:
    """Copy a stopped server's folder.

    Raises:
        InputError: if there is none, or its server is at work.
    """
    if not (folder / "known").exists():
        raise InputError(f"{folder}: no tracking server has ever run there")
    try:
        with FileLock(folder / "lock", timeout=0), tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w:gz") as archive:
                for entry in sorted(folder.iterdir()):
                    if entry.name not in LEFT_OUT:
                        archive.add(entry, entry.name)
            size = packed.tell()
            packed.seek(0)
            with store.open_output_stream(path) as stream:  # an object store shows a file when all of it is there
                while chunk := packed.read(8 * 1024 * 1024):
                    stream.write(chunk)
    except Timeout:
        raise InputError(f"{folder}: its server is at work; stop it first, and its database is whole") from None
    print(f"{folder} kept as {path} ({size / 1e6:,.1f} MB)", flush=True)


def restore(folder: Path, store: Any, path: str) -> None:
    """Put a kept folder where there is none.

    Raises:
        InputError: if there is one.
    """
    from pyarrow import fs

    if (folder / "known").exists():
        raise InputError(f"{folder}: a tracking server has data there; they are not replaced")
    if store.get_file_info(path).type != fs.FileType.File:
        print(f"nothing is kept as {path}; the server begins anew", flush=True)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with store.open_input_stream(path) as stream, tarfile.open(fileobj=stream, mode="r|gz") as archive:
        # With their modes, and as root with their owners: PostgreSQL wants its folder to be its user's alone. The file
        # "known" says that all is there, and so is made at last: a copy that broke off is made again.
        whole = False
        for member in archive:
            whole = whole or member.name == "known"
            if member.name != "known":
                archive.extract(member, folder, filter="tar")
    if not whole:
        raise InputError(f"{path}: is not a tracking server's folder")
    (folder / "known").touch()
    print(f"{folder} restored from {path}", flush=True)


if __name__ == "__main__":
    run_command(main)
