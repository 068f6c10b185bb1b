"""A real HTTP server on this machine that serves files by ranges, and fails as it is told."""

import os
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves every file of the file system by its path.

    `faults` are taken one by one by requests for parts: "503", "cut" (the connection ends in the
    middle of the body), "silent" (nothing comes for a second), "whole" (ranges are ignored), "404".
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults: list[str] = []
        self.asked: list[str] = []  # "GET /path 0-99" of each request
        self.password = ""  # of HTTP's basic authentication, as the header has it; "" for none
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def url(self, path: Path | str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are gone are no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        part = self.headers.get("Range", "").removeprefix("bytes=")
        self.server.asked.append(f"{self.command} {self.path} {part}".strip())
        fault = self.server.faults.pop(0) if part and self.server.faults else ""
        denied = self.server.password and self.headers.get("Authorization") != self.server.password
        if denied or fault.isdigit() or not os.path.isfile(path):
            self.send_response(401 if denied else int(fault or 404))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "silent":
            time.sleep(1)
        data = Path(path).read_bytes()
        whole = len(data)
        part = "" if fault == "whole" else part
        if part:
            first, last = part.split("-")
            data = data[int(first) : int(last) + 1]
        self.send_response(206 if part else 200)
        if part:
            self.send_header("Content-Range", f"bytes {part}/{whole}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{os.stat(path).st_mtime_ns}"')
        self.end_headers()
        if body and fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            self.connection.close()
        elif body:
            self.wfile.write(data)


@cache
def server() -> Server:
    """One for all tests of a process."""
    return Server()
