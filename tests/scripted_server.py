"""A small HTTP server for tests: what it answers is a function of each request."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any] | tuple[int, Any, dict[str, str]]
Answer = Callable[[str, str, Any], Reply]
"""Method, path with query and JSON body, to status, JSON or text, and headers; 0 as the status closes the connection."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Answer

    def reply(self) -> None:
        size = int(self.headers.get("content-length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        status, content, *rest = type(self).answer(self.command, self.path, body)
        if not status:
            self.close_connection = True
            return
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **(rest[0] if rest else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = reply  # noqa: N815 (names that the library asks for)

    def log_message(self, *args: object) -> None:
        """Nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *args: object) -> None:
        """Clients may go away."""


def new_server(port: int, answer: Answer) -> ThreadingHTTPServer:
    """A server on a port of the loopback, 0 for a free one; `serve_forever` runs it."""
    handler = type("Handler", (_Handler,), {"answer": staticmethod(answer)})
    return _Server(("127.0.0.1", port), handler)


@contextmanager
def scripted_server(answer: Answer) -> Iterator[str]:
    """The URL of a server that runs as long as the block."""
    server = new_server(0, answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
