"""An object store that is as slow as the bench says: a delay before each answer, and one link for all bytes.

Speaks as much HTTP as a pod's fetch asks for: GET, ranges from an offset, ETags and conditions on them. The rate is of
the whole link, however many requests share it, so that it is a physical limit and not one per stream.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_PIECE_BYTES = 128 * 1024
_BUFFERED_S = 0.002
"""What a sender that wakes up late finds in its buffers, so that the link does not stand still for it."""


@dataclass
class SlowStore:
    """Serves `files` by name. `delay_s` before each answer, `bytes_per_s` of the link."""

    delay_s: float
    bytes_per_s: float
    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free_at_s: float = 0.0

    @property
    def base(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def put(self, name: str, content: bytes) -> str:
        """Serve this; its URI."""
        self.files[f"/{name}"] = content
        return f"{self.base}/{name}"

    def limit_s(self, size_bytes: int) -> float:
        """The least that one request for so many bytes can take."""
        return self.delay_s + size_bytes / self.bytes_per_s

    def wait_for_link(self, count: int) -> None:
        """Until the link has carried so many bytes more."""
        with self._lock:
            self._free_at_s = max(self._free_at_s, time.monotonic() - _BUFFERED_S) + count / self.bytes_per_s
            until_s = self._free_at_s
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(left_s)


@contextlib.contextmanager
def slow_store(delay_s: float, bytes_per_s: float) -> Iterator[SlowStore]:
    """A store on a port of this machine."""
    store = SlowStore(delay_s, bytes_per_s)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            time.sleep(store.delay_s)
            content = store.files.get(self.path.partition("?")[0])
            if content is None:
                self.send_error(404)
                return
            etag = f'"{hashlib.blake2b(content[:4096] + content[-4096:], digest_size=8).hexdigest()}-{len(content)}"'
            if self.headers.get("If-None-Match") == etag:
                self.send_response(304)
                self.send_header("ETag", etag)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            begin, end = 0, len(content)
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                begin = int(found[1])
                end = min(end, int(found[2]) + 1) if found[2] else end
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(content)}")
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for position in range(begin, end, _PIECE_BYTES):
                    piece = content[position : min(end, position + _PIECE_BYTES)]
                    store.wait_for_link(len(piece))
                    self.wfile.write(piece)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
