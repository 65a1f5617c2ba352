"""Serving a built site on this machine."""

from __future__ import annotations

import errno
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tenfold.benchmarks.site import MARKER
from tenfold.shared.logging import TenfoldError

ADDRESS = "127.0.0.1"


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files without a log line for each."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class names it)
        pass


def open_server(site: Path, port: int) -> ThreadingHTTPServer:
    """A server of ``site`` bound to 127.0.0.1 (port 0: any free one), not yet running.

    Raises:
        TenfoldError: there is no site, or the port cannot be had.
    """
    if not (site / MARKER).is_file():
        raise TenfoldError(
            f"there is no site in {site}: build it with `tenfold-benchmarks dashboard --output {site}`"
        )
    try:
        return ThreadingHTTPServer((ADDRESS, port), partial(QuietHandler, directory=str(site)))
    except OverflowError as error:
        raise TenfoldError(f"{port} is not a port: choose one from 1 to 65535") from error
    except OSError as error:
        reason = (
            "is used by another program" if error.errno == errno.EADDRINUSE else f"cannot be used ({error})"
        )
        raise TenfoldError(f"port {port} {reason}: choose another with --port") from error


def serve(site: Path, port: int) -> None:
    """Serve ``site`` until Ctrl-C."""
    with open_server(site, port) as server:
        print(f"http://{ADDRESS}:{server.server_port}/ (Ctrl-C stops it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
