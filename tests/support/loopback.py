"""A server of files on the loopback address: with or without parts, or breaking off."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files` by name.

    ranges    answer requests for parts
    limit     bytes after which a connection breaks, or None
    requests  (name, the header Range or None) of every request so far
    """

    def __init__(self, files: Mapping[str, bytes]):
        self.files, self.ranges, self.limit = dict(files), True, None
        self.requests: list[tuple[str, str | None]] = []
        self.address = ""


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Server]:
    """Serve `files` until the context ends."""
    server = Server(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            server.requests.append((name, wanted))
            content = server.files.get(name)
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            if not server.ranges:
                start = 0
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: server.limit])

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
