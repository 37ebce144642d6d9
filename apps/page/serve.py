"""The page as a web server.

with serving(Loaded("runs/default", ".cache/search.sqlite"), port=7860) as url:
    ...                                # until the block ends; then every file that was sent is deleted
"""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from apps.page import html
from apps.page.tabs import Look, Search, Watch

FOLDER = "GRADIO_TEMP_DIR"  # where Gradio looks up its folder
KEPT = 900  # seconds after which a file that was sent, and a picture that was made, is deleted
MEGABYTES = 100  # of a file that is sent
WAITING = 64  # requests in the queue; more are refused
SESSIONS = 64  # visitors whose video is remembered, the latest ones
FONTS = dict(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # of the machine: none is fetched
# The browser loads nothing from elsewhere, and sends nothing there, whatever a page may ask for.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; form-action 'self'"
)


class Headers:
    """Adds POLICY to each response of an ASGI application."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def add(message):
            if message["type"] == "http.response.start":
                headers = [
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                message = message | dict(headers=[*message.get("headers", []), *headers])
            await send(message)

        await self.app(scope, receive, add)


def build(loaded, video=None, kept=KEPT):
    """The page of a Loaded as gr.Blocks. `video` is offered on the tab Watch."""
    options = dict(analytics_enabled=False, delete_cache=(max(1, min(60, kept)), kept))
    with gr.Blocks(title=f"VL-JEPA: {Path(loaded.run).name}", **options) as page:
        gr.HTML(html.line(f"VL-JEPA, run {Path(loaded.run).name}"), elem_classes="heading")
        with gr.Tab("Look"):
            Look(loaded)
        with gr.Tab("Search"):
            Search(loaded)
        with gr.Tab("Watch"):
            Watch(loaded, video)
    return page.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)


@contextmanager
def serving(loaded, host="127.0.0.1", port=7860, video=None, megabytes=MEGABYTES, kept=KEPT):
    """Serve the page of a Loaded, and yield its address. With `port` None, a free one is taken.

    What visitors send, and the pictures that are made for them, is in one temporary folder. A file is deleted
    after `kept` seconds, and all of them when the block ends. OSError for a port that is taken."""
    with _temporary_folder():
        page = build(loaded, video, kept)
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            footer_links=[],
            enable_monitoring=False,
            allowed_paths=[str(Path(video).resolve())] if video else [],
            max_file_size=f"{megabytes}mb",
            state_session_capacity=SESSIONS,
            theme=gr.themes.Default(**FONTS),
            css=html.STYLE,
            app_kwargs=dict(middleware=[Middleware(Headers)]),
        )
        try:
            yield url
        finally:
            page.close(verbose=False)


@contextmanager
def _temporary_folder():
    """A new folder for all files of Gradio, deleted at the end."""
    before = os.environ.get(FOLDER)
    with tempfile.TemporaryDirectory(prefix="vl-jepa-page-") as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER]
            if before:
                os.environ[FOLDER] = before
