"""Serve the page: on this machine alone unless told otherwise, and without any other network.

Notable choices:
- Files of visitors lie in a folder of their own that goes when the server does.
- The browser is told to load nothing from elsewhere.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lipdet.app.exhibits import Exhibit
from lipdet.app.markup import CSS
from lipdet.app.session import LARGEST_FILE, samples
from lipdet.errors import InputError
from lipdet.files import write_picture

# Blobs and data are what the page itself makes; its scripts are compiled on the spot.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'self'; object-src 'none'"
)
FONTS = ("system-ui", "sans-serif")
CODE_FONTS = ("ui-monospace", "monospace")


class Policy:
    """Adds the policy to every answer; an ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, and its answer back with one header more."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message.get("headers", []), header]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


@contextmanager
def serving(
    exhibits: Mapping[str, Exhibit], host: str, port: int, root_path: str = ""
) -> Iterator[str]:
    """Serve the page until the block ends.

    Args:
        exhibits: detectors by name, at least one.
        host: address to listen on.
        port: 0 for any free one.
        root_path: under which a proxy serves the page; empty for none.

    Yields:
        The address of the page.

    Raises:
        InputError: gradio is not installed, or the port cannot be had.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with tempfile.TemporaryDirectory(prefix="lipdet-app-") as folder:
        # Read when gradio is imported, which makes a folder that stays behind without it.
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            import gradio as gr
            from starlette.middleware import Middleware

            from lipdet.app.page import build_page
        except ModuleNotFoundError as error:
            raise InputError(
                f"The page needs {error.name}; in the clone of lipdet: pip install -e '.[app]'."
            ) from None
        page = build_page(exhibits, _write_samples(exhibits, Path(folder)))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or _free_port(host),
                root_path=root_path or None,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=True,
                max_file_size=LARGEST_FILE,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                enable_monitoring=False,
                app_kwargs={
                    "middleware": [Middleware(Policy)],
                    "docs_url": None,
                    "redoc_url": None,
                },
                theme=gr.themes.Default(font=FONTS, font_mono=CODE_FONTS),
                css=CSS,
            )
        except OSError:
            raise InputError(
                f"Nothing can listen on {host}, port {port}; choose others with --host and --port."
            ) from None
        try:
            yield address
        finally:
            page.close(verbose=False)


def _write_samples(exhibits: Mapping[str, Exhibit], folder: Path) -> list[Path]:
    """Write pictures for the first detector of crops, and for the first of whole pictures."""
    framings = [exhibit.detector.framing for exhibit in exhibits.values()]
    chosen = {bool(framing.whole): framing for framing in reversed(framings)}
    pictures = [picture for whole in sorted(chosen) for picture in samples(chosen[whole])]
    files = [folder / f"sample-{index}.png" for index in range(1, len(pictures) + 1)]
    for file, picture in zip(files, pictures, strict=True):
        write_picture(file, picture)
    return files


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as probe:
        return int(probe.getsockname()[1])
