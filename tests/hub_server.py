"""A server on this machine that speaks as much of the Hugging Face hub's protocol as uploads and downloads need."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef" * 2 + "01234567"  # of every revision


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: ``files[OWNER/NAME][PATH]``. ``requests`` holds the method and path of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.created: dict[str, Any] = {}
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        """For the environment variable HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Serve until the end of the block."""
    with HubServer() as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        """Information on a repository, the list of its files, or one of them."""
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo, what = "/".join(parts[2:4]), parts[4:5]
            files = self.server.files.get(repo)
            if files is None:
                self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            elif what == ["tree"]:
                self._answer(
                    [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in files.items()]
                )
            else:
                self._answer({"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            return
        repo, name = "/".join(parts[:2]), "/".join(parts[4:])  # OWNER/NAME/resolve/REVISION/PATH
        data = self.server.files.get(repo, {}).get(name)
        if data is None:
            self._answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            self._answer(data, ETag=f'"{_oid(data)}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Create a repository, say how each file is to be uploaded, or commit files."""
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"])) if "Content-Length" in self.headers else self._chunks()
        if path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            self.server.created[repo] = asked
            self.server.files.setdefault(repo, {})
            self._answer({"url": f"{self.server.endpoint}/{repo}", "name": repo})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            self._answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in path:
            repo = "/".join(path.strip("/").split("/")[2:4])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})
        else:
            self._answer({"error": path}, 404)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
