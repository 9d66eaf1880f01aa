"""A simulated EC2 instance metadata service, version 2, which answers only requests with a valid session token.

  python -m tests.support.cluster.metadata_service ADDRESS PORT INSTANCE_ID

A POST of a number of seconds makes the service announce a spot interruption.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataService(ThreadingHTTPServer):
    """The metadata of one spot instance.

    Args:
        address: address to listen on.
        port: port to listen on; 0 picks a free one.
        instance_id: the instance's id.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0, instance_id: str = "i-1") -> None:
        super().__init__((address, port), _Handler)
        self.instance_id = instance_id
        self.notice = ""
        self.down = False
        self.tokens: list[str] = []  # only the last one is valid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def announce(self, seconds: float, action: str = "terminate") -> None:
        """Announce an interruption of the instance."""
        deadline = datetime.now(UTC) + timedelta(seconds=seconds)
        self.notice = json.dumps({"action": action, "time": deadline.strftime("%Y-%m-%dT%H:%M:%SZ")})


class _Handler(BaseHTTPRequestHandler):
    server: MetadataService

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _answer(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        """Issue a session token."""
        lifetime = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.server.down or self.path != "/latest/api/token" or not 1 <= int(lifetime or 0) <= 21600:
            return self._answer(503 if self.server.down else 400)
        self.server.tokens.append(f"token-{len(self.server.tokens)}")
        return self._answer(200, self.server.tokens[-1])

    def do_GET(self) -> None:
        """Answer with a metadata item."""
        if self.server.down:
            return self._answer(503)
        if self.headers.get("X-aws-ec2-metadata-token") not in self.server.tokens[-1:]:
            return self._answer(401)
        items = {
            "/latest/meta-data/instance-id": self.server.instance_id,
            "/latest/meta-data/spot/instance-action": self.server.notice,
        }
        if not items.get(self.path):
            return self._answer(404)
        return self._answer(200, items[self.path])

    def do_POST(self) -> None:
        """Announce an interruption; the real service has no such request."""
        self.server.announce(float(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(200)


if __name__ == "__main__":
    MetadataService(sys.argv[1], int(sys.argv[2]), sys.argv[3]).serve_forever()
