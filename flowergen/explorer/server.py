"""Serve the page, with one queue of bounded length and without requests to other servers."""

import os
from typing import Any

from flowergen.errors import UserError, printable
from flowergen.explorer.editing import MAX_UPLOAD_BYTES
from flowergen.explorer.model import ExplorerModel
from flowergen.explorer.page import asset, build

MAX_QUEUED = 40  # requests in the queue; further ones are refused
MAX_SESSIONS = 200  # sessions whose state is kept
OFFLINE = {  # must be set before Gradio is imported
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# The browser loads nothing from other servers. Gradio needs eval for its HTML templates, and inline styles.
POLICY = "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'"


def serve(run: str, host: str, port: int) -> None:
    """Load a run and serve its page until Ctrl-C.

    Args:
        run: as in ``run=RUN``.
        host: address to listen on: ``127.0.0.1`` for this machine only.
        port: port to listen on.

    Raises:
        UserError: the run cannot be loaded, or the port is in use.
    """
    page = start(ExplorerModel.load(run), host, port)
    print(f"explore {printable(run)}: {page.local_url}  (Ctrl-C ends it)", flush=True)
    page.block_thread()


def start(explorer: ExplorerModel, host: str, port: int) -> Any:
    """Serve the page in threads of this process and return it; its ``close()`` stops the server.

    Raises:
        UserError: the port is in use.
    """
    os.environ.update(OFFLINE)
    import gradio as gr
    from starlette.middleware import Middleware

    page = build(explorer)
    page.queue(max_size=MAX_QUEUED, default_concurrency_limit=1)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    try:
        page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False,
            footer_links=[], max_file_size=MAX_UPLOAD_BYTES, state_session_capacity=MAX_SESSIONS, theme=theme,
            head=f"<style>{asset('style.css')}</style>",  # unlike css=, it may select the body
            app_kwargs={"middleware": [Middleware(_offline)]},
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"port={port} cannot be used: give another, such as port={port + 1}") from error
    return page


def _offline(app: Any) -> Any:
    """Wrap an ASGI application so that the browser may load nothing from other servers."""

    async def offline(scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await app(scope, receive, with_policy)

    return offline
