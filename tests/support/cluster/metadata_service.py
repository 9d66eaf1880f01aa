"""An instance metadata service that speaks as AWS documents its version 2: nothing without a token, tokens that end.

python imds.py ADDRESS PORT INSTANCE        # a POST of a number of seconds makes it warn
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Service(ThreadingHTTPServer):
    """Asked for a spot instance's metadata, on a port of its own choice by default."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0, instance: str = "i-1") -> None:
        super().__init__((address, port), _Handler)
        self.instance = instance
        self.notice = ""
        self.down = False
        self.tokens: list[str] = []
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def warn(self, seconds: float, action: str = "terminate") -> None:
        when = datetime.now(UTC) + timedelta(seconds=seconds)
        self.notice = json.dumps({"action": action, "time": when.strftime("%Y-%m-%dT%H:%M:%SZ")})


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.server.down or self.path != "/latest/api/token" or not 1 <= int(life or 0) <= 21600:
            return self._answer(503 if self.server.down else 400)
        self.server.tokens.append(f"token-{len(self.server.tokens)}")
        return self._answer(200, self.server.tokens[-1])

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.server.down:
            return self._answer(503)
        if self.headers.get("X-aws-ec2-metadata-token") != (self.server.tokens or [None])[-1]:
            return self._answer(401)
        answers = {
            "/latest/meta-data/instance-id": self.server.instance,
            "/latest/meta-data/spot/instance-action": self.server.notice,
        }
        if not answers.get(self.path):
            return self._answer(404)
        return self._answer(200, answers[self.path])

    def do_POST(self) -> None:
        """The door for tests, which AWS' own has not."""
        self.server.warn(float(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(200)


if __name__ == "__main__":
    Service(sys.argv[1], int(sys.argv[2]), sys.argv[3]).serve_forever()
