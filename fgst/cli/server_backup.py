"""Save a tracking server's folder to an object store, and restore it, e.g. on another machine.

Examples:
  python -m fgst.server_backup save ~/server s3://bucket/fgst/server.tar.gz
  python -m fgst.server_backup restore ~/server s3://bucket/fgst/server.tar.gz

The server must be stopped. Artifacts that it stores elsewhere (--artifacts) are not included. An existing backup is
replaced only when the new one is complete. If no backup exists, restore changes nothing and exits with code 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser, run_command
from fgst.ops.server_backup import restore_backup, save_backup


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.server_backup", __doc__)
    parser.add_argument("action", choices=("save", "restore"), help="whether to save or to restore the folder")
    parser.add_argument("folder", help="the server's --dir")
    parser.add_argument("uri", help="URI of the backup, a single file, e.g. s3://bucket/fgst/server.tar.gz")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    folder = Path(args.folder).absolute()
    if args.action == "save":
        size = save_backup(folder, args.uri)
        print(f"saved {folder} as {args.uri} ({size / 1e6:,.1f} MB)", flush=True)
    elif restore_backup(folder, args.uri):
        print(f"restored {folder} from {args.uri}", flush=True)
    else:
        print(f"there is no backup at {args.uri}; the server starts empty", flush=True)


if __name__ == "__main__":
    run_command(main)
