"""A real MLflow server that a test may kill and bring back, and a proxy before it that loses replies."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_READY = 300.0  # seconds; eight on an idle machine


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@dataclass
class Server:
    """`mlflow server` on a database and artifacts under `folder`, always at the same address."""

    folder: Path
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Where it listens, if it does."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> Server:
        """Returns when it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", self.host, "--port", str(self.port)),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"),
            *("--artifacts-destination", str(self.folder / "artifacts")),
        ]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            command,
            stdout=(self.folder / "server.log").open("ab"),
            stderr=subprocess.STDOUT,
            env={**os.environ, **quiet},
            start_new_session=True,
        )
        deadline = time.monotonic() + _READY
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.kill()
                raise RuntimeError((self.folder / "server.log").read_text()[-3000:])
            time.sleep(0.2)
        return self

    def kill(self) -> None:
        """SIGKILL to it and the worker that it started."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


@dataclass
class Proxy:
    """Passes requests on to a server, and its replies back, where `lose` does not say otherwise.

    `lose(path)` is asked about every request: "reply" has the server take it in and its reply lost; "late"
    has it taken in when `arrive` is called, the client having been cut off at once; "" is for all others.
    """

    server: Server
    lose: Callable[[str], str]
    port: int = field(default_factory=free_port)
    late: list[Callable[[], object]] = field(default_factory=list)

    @property
    def uri(self) -> str:
        """Where it listens inside its block."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))

                def ask() -> tuple[http.client.HTTPResponse, bytes]:
                    connection = http.client.HTTPConnection("127.0.0.1", proxy.server.port, timeout=60)
                    connection.request(self.command, self.path, body, dict(self.headers))
                    reply = connection.getresponse()
                    return reply, reply.read()

                fate = proxy.lose(self.path)
                if fate == "late":
                    proxy.late.append(ask)
                else:
                    reply, content = ask()
                if fate:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815 (names of http.server's)

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing."""

        self._httpd = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._httpd.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()

    def arrive(self) -> None:
        """The late requests reach the server."""
        while self.late:
            self.late.pop(0)()
