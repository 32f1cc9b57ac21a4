"""An HTTP server on this machine that misbehaves as told, for tests of downloads."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What is served, how, and what was asked for."""

    content: bytes
    etag: str | None = '"first"'
    ranges: bool = True  # whether parts can be had
    if_range: bool = True  # whether If-Range is obeyed
    length: bool = True  # whether Content-Length is sent
    content_type: str = "application/octet-stream"
    cuts: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    statuses: list[int] = field(default_factory=list)  # of the next answers, without content
    asked: list[str | None] = field(default_factory=list)  # Range of every request
    sent: list[int] = field(default_factory=list)  # bytes of every answer
    url: str = ""


@contextlib.contextmanager
def serve(site: Site, handler: type | None = None) -> Iterator[Site]:
    """Serve ``site`` at ``site.url`` inside the block."""
    handler = handler or type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}/file.bin"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        site = self.site
        wanted = self.headers.get("Range")
        site.asked.append(wanted)
        if site.statuses:
            self.send_response(site.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
        condition = self.headers.get("If-Range")
        if condition and site.if_range and condition != site.etag:
            start = 0
        if start >= len(site.content) > 0:
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = site.content[start:]
        self.send_response(206 if start else 200)
        if start:
            total = len(site.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.length:
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", site.content_type)
        self.end_headers()
        if site.cuts:
            body = body[: site.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)
        site.sent.append(len(body))
