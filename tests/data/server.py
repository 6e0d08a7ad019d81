"""A real HTTP server on this machine that misbehaves on demand."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CERTIFICATE = Path(__file__).with_name("self_signed.pem")
"""A key and a certificate for localhost that nobody vouches for."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        behaviours = self.server.behaviours
        (behaviours.pop(0) if behaviours else serve)(self)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass

    def head(self, status: int, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Connection", "close")
        self.end_headers()


Behaviour = Callable[[Handler], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.etag = '"one"'
        self.behaviours: list[Behaviour] = []
        self.requests: list[dict[str, str]] = []

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is part of the game."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


def serve(
    handler: Handler, stop_after: int | None = None, ranges: bool = True, etag: bool = True
) -> None:
    """Answer as a good server does, Range and If-Range included; ``stop_after`` cuts the
    connection.
    """
    server, start, status = handler.server, 0, 200
    wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if ranges and wanted and handler.headers.get("If-Range") == server.etag:
        start, status = int(wanted[1]), 206
    body = server.content[start:]
    headers = {"Content_Type": "application/octet-stream"}
    if etag:
        headers["ETag"] = server.etag
    if status == 206:
        size = len(server.content)
        headers["Content_Range"] = f"bytes {start}-{size - 1}/{size}"
    handler.head(status, len(body), **headers)
    handler.wfile.write(body[:stop_after])


def cut(after: int, **how: bool) -> Behaviour:
    return lambda handler: serve(handler, stop_after=after, **how)


def answer(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    def behave(handler: Handler) -> None:
        handler.head(status, len(body), **headers)
        handler.wfile.write(body)

    return behave


@contextmanager
def serving(content: bytes, *, encrypted: bool = False) -> Iterator[Server]:
    server = Server(content)
    if encrypted:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
