"""An HTTP proxy before the S3 server that passes everything on, and can lose the answer to a request that came through."""

import contextlib
import http.client
import re
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LosingProxy:
    """Where it listens, what passed, and what it is to lose."""

    def __init__(self, upstream: str) -> None:
        self.url = ""
        self.upstream = urllib.parse.urlsplit(upstream).netloc
        self.lost: list[str] = []
        self._to_lose: list[re.Pattern[str]] = []

    def lose_answer_to(self, pattern: str) -> None:
        """The next request of which `METHOD path` matches is carried out, but nobody hears of it."""
        self._to_lose.append(re.compile(pattern))

    def is_lost(self, request: str) -> bool:
        for pattern in self._to_lose:
            if pattern.search(request):
                self._to_lose.remove(pattern)
                self.lost.append(request)
                return True
        return False


@contextlib.contextmanager
def losing_proxy(upstream: str) -> Iterator[LosingProxy]:
    """Run it while the block lasts."""
    proxy = LosingProxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(proxy.upstream, timeout=30)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in {"expect", "connection"}:
                    connection.putheader(name, value)  # Host too: it is part of the signature
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if proxy.is_lost(f"{self.command} {self.path} {answer.status}"):
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = pass_on  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
