"""Run a tracking server for a team: MLflow on PostgreSQL, protected by passwords.

Examples:
  make server                                                 data in server/, on http://127.0.0.1:5000
  python -m fgst.server --dir /srv/fgst --port 5001
  python -m fgst.server --sqlite                              without PostgreSQL, for one or two users
  python -m fgst.server --artifacts s3://bucket/mlflow        weights, tables and plots in a bucket

All data is in one folder, which later starts reuse. On the first start, the password of the user admin comes from
FGST_SERVER_PASSWORD or from a prompt, or is generated and saved in the file "password" of that folder. Ctrl-C stops the
server. mlflow/README.md describes access from other machines over TLS.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fgst.cli.command import CommandParser, run_command
from fgst.ops.server import ADMIN, AdminPassword, ServerOptions, run_server


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.server", __doc__)
    parser.add_argument("--dir", default="server", help="folder for all data (default: server)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    parser.add_argument("--workers", type=int, default=2, help="number of server processes (default: 2)")
    parser.add_argument(
        "--allowed-hosts", help="host names that clients may use, e.g. mlflow.example.org,10.0.0.5:* (default: local)"
    )
    parser.add_argument("--sqlite", action="store_true", help="use an SQLite file instead of PostgreSQL")
    parser.add_argument(
        "--artifacts", metavar="URI", help="location of artifacts, e.g. s3://bucket/mlflow (default: in --dir)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    options = ServerOptions(
        folder=Path(args.dir).absolute(),
        host=args.host,
        port=args.port,
        workers=args.workers,
        allowed_hosts=args.allowed_hosts,
        sqlite=args.sqlite,
        artifacts=args.artifacts,
    )

    def on_ready(password: AdminPassword) -> None:
        print(
            f"tracking server on {options.url}, data in {options.folder} (press Ctrl-C to stop it)\n"
            f"user {ADMIN}, password {password.source}\n"
            f"to use it:\n  export MLFLOW_TRACKING_URI={options.url} MLFLOW_TRACKING_USERNAME={ADMIN}"
            " MLFLOW_TRACKING_PASSWORD=…",
            flush=True,
        )

    exit_code = run_server(options, on_ready)
    if exit_code:
        print(f"the server exited unexpectedly (exit code {exit_code}); see {options.log}", file=sys.stderr)
        sys.exit(1)
    print(f"stopped; all data remains in {options.folder}", flush=True)


if __name__ == "__main__":
    run_command(main)
