"""The page of a stream and its updates over HTTP, for browsers on this machine alone.

``/`` is the page, ``/events`` its updates as server-sent events. The server is bound to 127.0.0.1, and answers only to
that name and to localhost: a page from elsewhere whose name was made to lead here (DNS rebinding) reads nothing.
"""

from __future__ import annotations

import http.server
import socketserver
import threading
from typing import Any

import s2vfast.errors as errors
from s2vfast.live.feed import Feed

ADDRESS = "127.0.0.1"
_QUIET = 5.0
"""Seconds after which a comment is sent where nothing is new, to learn whether the browser is still there."""


class Server(http.server.ThreadingHTTPServer):
    """Serves a page and a feed, from threads of its own, until `stop`.

    Args:
        page: HTML.
        feed: its updates.
        port: 0: any that is free.

    Raises:
        ConfigError: the port is no port, or taken.
    """

    daemon_threads = True

    def __init__(self, page: str, feed: Feed, port: int = 0) -> None:
        self.page, self.feed = page.encode("utf-8", "replace"), feed
        if not 0 <= port < 2**16:
            raise errors.ConfigError(f"--port: {port}; a number from 0 to 65535 is expected")
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            reason = f"--port: {port} cannot be used ({error.strerror}); another, or 0 for any that is free"
            raise errors.ConfigError(reason) from error
        self.hosts = {f"{name}:{self.server_address[1]}" for name in (ADDRESS, "localhost")}
        threading.Thread(target=self.serve_forever, daemon=True, name="s2vfast live: server").start()

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """As of `http.server.HTTPServer`, which would ask for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone, or never said anything, is no error."""

    def stop(self) -> None:
        """End the feed for all browsers, then the server."""
        self.feed.close()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 30.0  # seconds that a browser may take to ask, or to take what it is sent

    def do_GET(self) -> None:
        """The page, its updates, or why not."""
        if not self._is_own():
            self._send(403, "text/plain", f"this server answers to {' and '.join(sorted(self.server.hosts))} alone\n")
        elif self.path == "/":
            self._send(200, "text/html", self.server.page)
        elif self.path == "/events":
            self._events()
        else:
            self._send(404, "text/plain", "there is / and /events\n")

    def _is_own(self) -> bool:
        """Whether the request names this server, and comes from its page or from nobody's."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        own = {f"http://{host}" for host in self.server.hosts}
        return len(hosts) == 1 and hosts[0].lower() in self.server.hosts and own.issuperset(origins)

    def _send(self, code: int, kind: str, content: str | bytes) -> None:
        content = content.encode() if isinstance(content, str) else content
        self._head(code, kind, len(content))
        self.wfile.write(content)

    def _head(self, code: int, kind: str, length: int | None) -> None:
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        if length is None:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _events(self) -> None:
        self._head(200, "text/event-stream", None)
        feed = self.server.feed
        feed.join()
        try:
            number: int | None = None
            while True:
                closed = feed.closed  # before the read: what it misses is read once more
                number, updates = feed.read(number, _QUIET)
                text = "".join(f"data: {update}\n\n" for update in updates)
                self.wfile.write((text or ": nothing new\n\n").encode())
                if closed:
                    break
        finally:
            feed.leave()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the stream's."""
