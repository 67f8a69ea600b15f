"""The explore command, and its server without a browser: a crowd, and visitors that mean harm."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from torch import Tensor

from flowergen import explore
from flowergen.app.command import one_line_errors
from flowergen.explorer import latent_map
from flowergen.explorer.model import ExplorerModel
from flowergen.explorer.server import MAX_QUEUED
from tests.explorer.serving import HOST, Answer, Visitor, free_port, gradio_or_skip, served
from tests.explorer.test_editing import bomb

pytestmark = pytest.mark.slow
GENERATE = [1, 0, [1], "dpmpp_2m", 3, 1.5, 0, 1, "the noisy picture"]  # what the page sends: one picture in three steps


@pytest.fixture(scope="module")
def page(diffusion_run: Path) -> Iterator[str]:
    with served(ExplorerModel.load(str(diffusion_run))) as address:
        yield address


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["explore", *arguments])
    with pytest.raises(SystemExit) as end:
        one_line_errors(explore.main)
    error = capsys.readouterr().err
    assert (end.value.code, len(error.splitlines())) == (2, 1), error
    return error


def test_mistakes_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], autoencoder_run: Path
) -> None:
    gradio_or_skip()
    run = f"run={autoencoder_run}"
    assert "run must be given" in refused(monkeypatch, capsys)
    assert "no such run" in refused(monkeypatch, capsys, "run=typo")
    assert "port=99999" in refused(monkeypatch, capsys, run, "port=99999")
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"port={port} cannot be used (Address already in use): give another" in refused(
            monkeypatch, capsys, run, f"port={port}"
        )
    found = importlib.util.find_spec
    monkeypatch.setattr(explore, "find_spec", lambda name: None if name == "gradio" else found(name))
    assert "flowergen.explore needs gradio: pip install 'flowergen[app]'" in refused(monkeypatch, capsys, run)


def test_the_command_serves_until_it_is_interrupted(autoencoder_run: Path, process_environment: dict[str, str]) -> None:
    """In a process of its own. It listens on this machine only."""
    gradio_or_skip()
    port = free_port()
    command = [sys.executable, "-m", "flowergen.explore", str(autoencoder_run), f"port={port}"]
    process = subprocess.Popen(
        command, env=process_environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=os.getcwd()
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"explore {autoencoder_run}: http://127.0.0.1:{port}"), line
        visitor = Visitor(f"http://{HOST}:{port}")
        assert "flowergen" in visitor.get("").body
        assert ("generate-button", "click") in visitor.events
        assert not [name for name, _ in visitor.events if name in ("img2img-button", "inpaint-button")]
        own = [address[4][0] for address in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)]
        for address in {*own, "127.0.0.2"} - {HOST}:
            with socket.socket() as probe:
                assert probe.connect_ex((address, port)) != 0, address
    finally:
        process.send_signal(signal.SIGINT)
        try:
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in out + error
    assert process.returncode in (0, 130)


def test_a_hundred_requests_at_once(page: str) -> None:
    """Some are computed, the others are told that the queue is full; the page answers meanwhile, and afterwards all is well."""
    visitors = [Visitor(page) for _ in range(100)]
    with ThreadPoolExecutor(100) as pool:
        joined = list(pool.map(lambda visitor: visitor.join("generate-button", "click", GENERATE), visitors))
        began = time.monotonic()
        assert visitors[0].get("").status == 200
        assert time.monotonic() - began < 5
        waiting = [visitor for visitor, answer in zip(visitors, joined, strict=True) if answer.status == 200]
        turned_away = [answer for answer in joined if answer.status != 200]
        assert MAX_QUEUED <= len(waiting) < 100
        assert {answer.status for answer in turned_away} == {503}
        assert all("full" in answer.body for answer in turned_away)
        results = list(pool.map(lambda visitor: visitor.result(), waiting))
    assert all(result["success"] for result in results)
    shown = {result["output"]["data"][0] for result in results}
    assert len(shown) == 1  # each of them the same picture, of the same seed
    assert Visitor(page).ask("generate-button", "click", GENERATE)["success"]


def test_a_hundred_pointers_on_the_map_at_once(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one picture is decoded, the others are answered with none, without waiting; then they are decoded too."""
    decode, begun, proceed = latent_map.picture_of_point, Event(), Event()

    def slow(explorer: ExplorerModel, number: Any) -> Tensor:
        begun.set()
        assert proceed.wait(60)
        return decode(explorer, number)

    monkeypatch.setattr(latent_map, "picture_of_point", slow)
    visitors = [Visitor(page) for _ in range(100)]
    with ThreadPoolExecutor(100) as pool:
        try:
            first = pool.submit(visitors[0].hover, 0)
            assert begun.wait(60)
            others = [pool.submit(visitor.hover, 1 + number % 63) for number, visitor in enumerate(visitors[1:])]
            assert {other.result(30) for other in others} == {Answer(200, '""')}
            assert not first.done()
            assert Visitor(page).ask("generate-button", "click", GENERATE)["success"]
        finally:
            proceed.set()
    for answer in (first.result(), visitors[1].hover(1)):
        assert answer.status == 200
        assert json.loads(answer.body).startswith("data:image/png;base64,")


@pytest.mark.parametrize("number", [-1, 64, 10**30, 1.5, "1", None, [1], {"a": 1}])
def test_what_is_no_point_has_no_picture(page: str, number: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert Visitor(page).hover(number) == Answer(200, '""')
    assert "Traceback" not in capfd.readouterr().err


def uploaded(visitor: Visitor, name: str, content: bytes) -> dict[str, Any]:
    answer = visitor.upload(name, content)
    assert answer.status == 200, answer
    (path,) = json.loads(answer.body)
    return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("bomb.png", bomb(), "bomb"),
        ("text.png", b"no picture at all", "not a picture"),
        ("../../../tmp/escaped.png", b"no picture at all", "not a picture"),
        ("..\\..\\evil.png", b"no picture at all", "not a picture"),
        ("%2e%2e%2fescaped.png", b"no picture at all", "not a picture"),
        ("<img src=x onerror=alert(1)>.png", b"no picture at all", "not a picture"),
        ("a" * 200 + ".png", b"no picture at all", "not a picture"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "Invalid file type"),
        ("run.sh", b"#!/bin/sh", "Invalid file type"),
    ],
)
def test_hostile_uploads_are_answered_with_a_sentence(
    page: str, name: str, content: bytes, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    visitor = Visitor(page)
    result = visitor.ask("upload", "upload", [uploaded(visitor, name, content)])
    assert not result["success"]
    error = result["output"]["error"]
    assert words in error
    assert "\n" not in error
    assert "/tmp" not in error
    assert "Traceback" not in capfd.readouterr().err or words == "Invalid file type"  # Gradio's own error, which it logs
    assert not list(Path("/tmp").glob("escaped.png"))
    assert Visitor(page).ask("generate-button", "click", GENERATE)["success"]


def test_an_upload_that_is_too_large_is_refused(page: str) -> None:
    answer = Visitor(page).upload("large.png", b"\0" * (33 * 2**20))
    assert answer.status == 413
    assert "Traceback" not in answer.body


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../../etc/passwd", "/proc/self/environ", "http://127.0.0.1:1/x.png"])
def test_files_of_the_server_cannot_be_named(page: str, path: str) -> None:
    visitor = Visitor(page)
    given = {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    answer = visitor.join("upload", "upload", [given])
    body = answer.body if answer.status != 200 else json.dumps(visitor.result())
    assert '"success": true' not in body
    assert "root:" not in body
    for request in (f"gradio_api/file={path}", f"file={path}", f"gradio_api/file=/{path}"):
        answer = visitor.get(request.replace(" ", "%20"))
        assert answer.status in (400, 403, 404), (request, answer)
        assert "root:" not in answer.body


@pytest.mark.parametrize(
    "data",
    [
        [10**9, *GENERATE[1:]],
        ["<script>", *GENERATE[1:]],
        [1, 0, [99], *GENERATE[3:]],
        [1, 0, "rose", *GENERATE[3:]],
        [1, 0, [1], "nothing", *GENERATE[4:]],
        [1, 0, [1], "dpmpp_2m", 10**9, *GENERATE[5:]],
        [1, 0, [1], "dpmpp_2m", 3, {"a": 1}, 0, 1, None],
        [None] * 9,
        [],
        [[["x"] * 1000] * 9],
    ],
)
def test_requests_of_no_browser_leave_it_answering(page: str, data: list[Any]) -> None:
    visitor = Visitor(page)
    answer = visitor.join("generate-button", "click", data)
    if answer.status == 200:
        result = visitor.result()
        assert not result["success"]
        assert "Traceback" not in json.dumps(result)
    assert Visitor(page).ask("generate-button", "click", GENERATE)["success"]


def test_gradio_is_imported_by_serving_only() -> None:
    """So that the package can be imported, and its help printed, without it."""
    code = "import sys, flowergen.explorer.server, flowergen.explore; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
