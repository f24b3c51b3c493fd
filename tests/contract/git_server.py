"""Git over HTTP on loopback: git's own `http-backend`, behind Python's web server, with a login if a test wants one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "init.defaultBranch=main")


@dataclass
class GitServer:
    """Serves the repositories below `root`. `authorization`: what every request must carry, if anything."""

    root: Path
    port: int = 0
    authorization: str = ""
    redirect_to: str = ""
    seen: list[dict[str, str]] = field(default_factory=list)
    at_hold: threading.Event = field(default_factory=threading.Event)
    hold: threading.Event | None = None
    """Where it is set to one, every request waits for it."""

    def commit(self, repository: str, files: dict[str, bytes], tag: str = "") -> str:
        """The commit that makes the repository hold these files too."""
        path = self.root / repository
        if not path.exists():
            path.mkdir(parents=True)
            self.git(repository, "init", "--quiet")
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        self.git(repository, "add", "--all")
        self.git(repository, "commit", "--quiet", "--allow-empty", "-m", "models")
        if tag:
            self.git(repository, "tag", tag)
        return self.git(repository, "rev-parse", "HEAD")

    def git(self, repository: str, *arguments: str, input: str = "") -> str:
        command = ["git", *IDENTITY, *arguments]
        done = subprocess.run(
            command, cwd=self.root / repository, input=input, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def uri(self, repository: str, rest: str = "") -> str:
        return f"git+http://127.0.0.1:{self.port}/{repository}/.git{rest}"


class _Handler(BaseHTTPRequestHandler):
    world: GitServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self._body())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        self.world.seen.append({name.lower(): value for name, value in self.headers.items()})
        if self.world.hold is not None:
            self.world.at_hold.set()
            self.world.hold.wait(20)
        if self.world.redirect_to:
            self.send_response(302)
            self.send_header("Location", self.world.redirect_to + self.path)
            self.end_headers()
            return
        if self.world.authorization and self.headers.get("Authorization") != self.world.authorization:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.world.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "uploadpack.allowAnySHA1InWant",
            "GIT_CONFIG_VALUE_0": "true",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n"))
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(answer)


@contextmanager
def git_server(root: Path) -> Iterator[GitServer]:
    """A running one."""
    world = GitServer(root)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"world": world}))
    httpd.daemon_threads = True
    world.port = httpd.server_port
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield world
    httpd.shutdown()
    httpd.server_close()
