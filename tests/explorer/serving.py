"""A page that is being served, and visitors that speak Gradio's protocol without a browser."""

import json
import socket
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from flowergen.explorer.model import ExplorerModel
from flowergen.explorer.server import start

HOST = "127.0.0.1"
API = "gradio_api"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def gradio_or_skip() -> None:
    pytest.importorskip("gradio", reason="THE PAGE IS NOT TESTED: no Gradio: uv pip install -c constraints.txt -e '.[dev,app]'")


@contextmanager
def served(explorer: ExplorerModel) -> Iterator[str]:
    """The address of a page, served by threads of this process."""
    gradio_or_skip()
    page = start(explorer, HOST, free_port())
    try:
        yield page.local_url.rstrip("/")
    finally:
        page.close(verbose=False)


class Answer(NamedTuple):
    status: int
    body: str


class Visitor:
    """Sends requests to a page, as a browser does or as no browser would.

    Args:
        address: of the page.
    """

    def __init__(self, address: str):
        self.address, self.session = address, uuid.uuid4().hex
        self.config = config = json.loads(self.get("config").body)
        self.ids = {component["props"].get("elem_id"): component["id"] for component in config["components"]}
        self.events = {
            (name, event): dependency["id"]
            for dependency in config["dependencies"]
            for target, event in dependency["targets"]
            for name, number in self.ids.items()
            if name and target == number
        }

    def get(self, path: str, timeout: float = 60) -> Answer:
        return self._answer(urllib.request.Request(f"{self.address}/{path}"), timeout)

    def upload(self, name: str, content: bytes) -> Answer:
        """Upload a file as a browser does; the body is a list of its path on the server."""
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/png\r\n\r\n'
        request = urllib.request.Request(f"{self.address}/{API}/upload", head.encode() + content + b"\r\n--x--\r\n")
        request.add_header("Content-Type", "multipart/form-data; boundary=x")
        return self._answer(request, 60)

    def join(self, name: str, event: str, data: list[Any]) -> Answer:
        """Put an event of the component ``name`` into the queue."""
        return self._post("queue/join", {"data": data, "fn_index": self.events[name, event], "event_data": None})

    def hover(self, number: Any) -> Answer:
        """Ask for the picture of a point of the map, which does not wait in the queue."""
        return self._post("component_server/", {"data": number, "component_id": self.ids["plane"], "fn_name": "picture"})

    def result(self, timeout: float = 120) -> dict[str, Any]:
        """Wait for the end of the event that has joined, and return its last message."""
        request = urllib.request.Request(f"{self.address}/{API}/queue/data?session_hash={self.session}")
        with urllib.request.urlopen(request, timeout=timeout) as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    message = json.loads(line.removeprefix(b"data:"))
                    if message["msg"] == "process_completed":
                        return message
        raise AssertionError("the stream has ended without a result")

    def ask(self, name: str, event: str, data: list[Any]) -> dict[str, Any]:
        """Join, and wait for the result."""
        joined = self.join(name, event, data)
        assert joined.status == 200, joined
        return self.result()

    def _post(self, path: str, body: dict[str, Any]) -> Answer:
        request = urllib.request.Request(
            f"{self.address}/{API}/{path}", json.dumps(body | {"session_hash": self.session}).encode()
        )
        request.add_header("Content-Type", "application/json")
        return self._answer(request, 60)

    @staticmethod
    def _answer(request: urllib.request.Request, timeout: float) -> Answer:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return Answer(reply.status, reply.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read().decode(errors="replace"))
