"""What a cloud's metadata service says about the end of a node, and what is made of it."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines.program.spot_notice import seconds_left

AWS, GOOGLE = "/latest/meta-data/spot/instance-action", "/computeMetadata/v1/instance/preempted"


class Cloud(BaseHTTPRequestHandler):
    """AWS's and Google's services, which answer nobody without the right header."""

    said: dict[str, str]

    def do_PUT(self) -> None:
        lasting = "X-aws-ec2-metadata-token-ttl-seconds" in self.headers and self.path == "/latest/api/token"
        self._answer("a token" if lasting else None)

    def do_GET(self) -> None:
        allowed = self.headers["X-aws-ec2-metadata-token"] == "a token" or self.headers["Metadata-Flavor"] == "Google"
        self._answer(self.said.get(self.path)) if allowed else self.send_error(401)

    def _answer(self, text: str | None) -> None:
        if text is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def metadata() -> Iterator[str]:
    Cloud.said = {}
    with ThreadingHTTPServer(("127.0.0.1", 0), Cloud) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_of_aws(metadata: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a proxy would answer for itself
    assert seconds_left("aws", metadata) is None
    when = datetime.now(UTC) + timedelta(seconds=120)
    Cloud.said[AWS] = json.dumps({"action": "terminate", "time": when.strftime("%Y-%m-%dT%H:%M:%SZ")})
    left = seconds_left("aws", metadata)
    assert left is not None and 0 < left <= 120


def test_of_google(metadata: str) -> None:
    Cloud.said[GOOGLE] = "FALSE"
    assert seconds_left("google", metadata) is None
    Cloud.said[GOOGLE] = "TRUE"
    assert seconds_left("google", metadata) == 30


def test_no_answer_is_no_notice(metadata: str) -> None:
    """It is an error, which the program reports before it tries again."""
    with pytest.raises(OSError):
        seconds_left("google", metadata)
    with pytest.raises(OSError):
        seconds_left("aws", "http://127.0.0.1:1")
