"""A web server that misbehaves on request."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.contract.artifact_stores import SECRET


@dataclass
class Served:
    content: bytes
    etag: str | None
    modified: str | None = None


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class FaultyServer:
    """Serves `files`; `faults[path]` is a list of behaviours, one taken per request, then it behaves.

    `guards`: below a path, only requests with that Authorization are answered; the others get the challenge.
    """

    port: int = 0
    files: dict[str, Served] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    guards: dict[str, tuple[str, str]] = field(default_factory=dict)
    fault_of_all: str = ""
    """How every request is answered, whatever its path."""
    seen: list[Seen] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    at_hold: threading.Event = field(default_factory=threading.Event)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def put(self, name: str, content: bytes, *, etag: bool = True) -> str:
        tag = f'"{hashlib.md5(content).hexdigest()}"' if etag else None
        self.files["/" + name] = Served(content, tag)
        return f"{self.base}/{name}"

    def ranges(self) -> list[str | None]:
        return [request.headers.get("range") for request in self.seen]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: FaultyServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.world.seen.append(Seen(self.command, self.path, headers))
        for guarded, (authorization, challenge) in self.world.guards.items():
            if path.startswith(guarded) and headers.get("authorization") != authorization:
                self.send_response(401)
                self.send_header("WWW-Authenticate", challenge)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        queued = self.world.faults.get(path, [])
        fault = self.world.fault_of_all or (queued.pop(0) if queued else "")
        try:
            self._answer(path, headers, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, path: str, headers: dict[str, str], fault: str) -> None:
        if fault.startswith("status:"):
            self._plain(int(fault.removeprefix("status:")), f"no: {SECRET}".encode())
            return
        if fault == "reset":
            self.close_connection = True
            return
        if fault.startswith("redirect:"):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("redirect:"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault.startswith("drip:"):
            # One byte at a time, without an end, of its headers or of its body.
            begun = {"headers": "X-Drip: ", "body": "Content-Length: 100000\r\n\r\n"}[fault.removeprefix("drip:")]
            self.wfile.write(f"HTTP/1.1 200 OK\r\n{begun}".encode())
            while not self.world.hold.wait(0.02):
                self.wfile.write(b" ")
                self.world.at_hold.set()
            self.close_connection = True
            return
        served = self.world.files.get(path)
        if served is None:
            self._plain(404, b"nothing")
            return
        if headers.get("if-none-match") == served.etag and served.etag:
            self._plain(304, b"")
            return
        if "if-match" in headers and headers["if-match"] != served.etag and "ignore-if-match" not in fault:
            self._plain(412, b"")
            return
        offset = 0
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        content = served.content
        ranged = found is not None and "ignore-range" not in fault
        if found is not None and ranged:
            offset = int(found.group(1))
            content = content[: int(found.group(2)) + 1] if found.group(2) else content
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {offset}-{len(content) - 1}/{len(served.content)}")
        if served.etag:
            self.send_header("ETag", served.etag)
        if served.modified:
            self.send_header("Last-Modified", served.modified)
        length = len(content) - offset + (1000 if "claims-more" in fault else 0) - (5 if "claims-less" in fault else 0)
        if "no-length" in fault:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content))
            return
        self.send_header("Content-Length", str(length))
        self.end_headers()
        body = content[offset:]
        half = len(body) // 2
        if "drop" in fault:
            self.wfile.write(body[:half])
            self.close_connection = True
        elif "change" in fault:
            self.wfile.write(body[:half])
            self.close_connection = True
            self.world.put(path.removeprefix("/"), content[::-1] + b"new")
        elif "hold" in fault:
            self.wfile.write(body[:half])
            self.wfile.flush()
            self.world.at_hold.set()
            self.world.hold.wait(20)
            self.wfile.write(body[half:])
        else:
            self.wfile.write(body)
        if "claims" in fault:
            self.close_connection = True

    def _plain(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def faulty_server() -> Iterator[FaultyServer]:
    """A running one, on loopback."""
    world = FaultyServer()
    handler = type("Handler", (_Handler,), {"world": world})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    world.port = httpd.server_port
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield world
    world.hold.set()
    httpd.shutdown()
    httpd.server_close()
