"""The server of `mae serve`: requests of one page, on 127.0.0.1 alone.

Who may ask: the address has a random token, which other users of the machine and other pages in
the browser do not know; `Host` has to be this server (against DNS rebinding), and `Origin` this
page for what is posted. No path of a client is ever opened: names are looked up in a table.
"""

import errno
import json
import logging
import secrets
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from torchmae.data.decode import BadImage
from torchmae.disk import parse_json
from torchmae.errors import RunError, UserError, printable
from torchmae.report.html import playground
from torchmae.tasks.serve.answers import Answers

logger = logging.getLogger(__name__)

PORTS = range(8000, 8020)  # of which the first free one is taken
SECONDS = 30.0  # without a byte, after which a connection is closed
REST = 5.0  # seconds in which the rest of an upload that is refused may come
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": playground.POLICY + "; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # it would have the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Refused(Exception):
    """A request that is not answered: the status, and why."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class Reply(NamedTuple):
    """What is sent."""

    status: HTTPStatus
    kind: str
    body: bytes


def as_json(content: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    """A reply of one line."""
    return Reply(status, "application/json", json.dumps(content).encode() + b"\n")


class Server(ThreadingHTTPServer):
    """A page and its answers.

    Args:
        port: on 127.0.0.1; 0 for any that is free.
        answers: what the model says.
        most: bytes of the largest upload.

    Attributes:
        url: of the page, with the token.
    """

    daemon_threads = True
    allow_reuse_port = False

    def __init__(self, port: int, answers: Answers, most: int):
        self.answers = answers
        self.most = most
        self.token = secrets.token_urlsafe(16)
        self.pages = playground.files("server.js")
        super().__init__(("127.0.0.1", port), Handler)
        port = self.server_address[1]
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self.url = f"http://127.0.0.1:{port}/{self.token}/"

    def server_bind(self) -> None:
        """Binds without looking the machine's name up, which may wait for a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A line, no traceback; none where a tab was closed."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logger.warning(printable(f"a request failed: {type(error).__name__}: {error}"))


def open_server(port: int | None, answers: Answers, most: int) -> Server:
    """The server on a port, or on the first free one.

    Raises:
        UserError: it is taken, or not allowed.
    """
    for number in PORTS if port is None else [port]:
        try:
            return Server(number, answers, most)
        except OSError as error:
            taken = error
            if port is None and error.errno == errno.EADDRINUSE:
                continue
            break
    names = f"ports {PORTS[0]} to {PORTS[-1]} are" if port is None else f"port {port} is"
    why = "in use" if taken.errno == errno.EADDRINUSE else f"not to be had ({taken.strerror})"
    way = "--port NUMBER" if port is None else "another --port, or leave it out for a free one"
    raise UserError(f"{names} {why}: {way}")


class Handler(BaseHTTPRequestHandler):
    """One request. All that goes wrong is a line of JSON: {"error": why}."""

    server: Server
    server_version, sys_version = "mae", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """A file of the page, or what it asks."""
        self.answer(self.get)

    def do_POST(self) -> None:
        """An image, or a mask for one."""
        self.answer(self.post)

    def answer(self, method: Callable[[str], Reply]) -> None:
        """Checks who asks, and sends what `method` makes of the last part of the path."""
        try:
            reply = method(self.checked_name())
        except Refused as error:
            reply = as_json({"error": str(error)}, error.status)
        except (BadImage, UserError, RunError) as error:
            reply = as_json({"error": one_line(error)}, HTTPStatus.BAD_REQUEST)
        except OSError:  # the tab was closed, or says nothing more
            self.close_connection = True
            return
        except Exception as error:
            text = one_line(f"failed: {type(error).__name__}: {error}")
            logger.warning(f"a request {text}")
            reply = as_json({"error": text}, HTTPStatus.INTERNAL_SERVER_ERROR)
        self.send(reply)

    def checked_name(self) -> str:
        """The last part of the path, of whoever knows the token and comes from this page."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 alone")
        path = self.path.partition("?")[0]
        token, slash, name = path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode(), self.server.token.encode())
        if not (known and slash):  # without it the page would look for its files elsewhere
            raise Refused(
                HTTPStatus.NOT_FOUND, "nothing here: open the address that mae serve printed"
            )
        if self.command == "POST":
            origins = self.headers.get_all("Origin", [])
            if len(origins) != 1 or origins[0].lower() not in {
                f"http://{host}" for host in self.server.hosts
            }:
                raise Refused(HTTPStatus.FORBIDDEN, "only the page itself may post")
        return name

    def get(self, name: str) -> Reply:
        """The page, its files, what it has to know, a mask."""
        name = name or "page.html"
        if name in self.server.pages:
            kind = TYPES[name.rpartition(".")[2]]
            return Reply(HTTPStatus.OK, f"{kind}; charset=utf-8", self.server.pages[name])
        if name == "about":
            return as_json(self.server.answers.about)
        if name == "mask":
            query = parse_qs(self.path.partition("?")[2])
            try:
                masking, ratio, seed = (query[key][0] for key in ("masking", "ratio", "seed"))
                numbers = float(ratio), int(seed)
            except (KeyError, ValueError) as error:
                raise UserError("a mask needs masking, ratio and seed") from error
            return as_json(self.server.answers.mask(masking, *numbers))
        raise Refused(HTTPStatus.NOT_FOUND, "nothing here of this name")

    def post(self, name: str) -> Reply:
        """What the model says of an image file, or of pixels under a mask."""
        if name == "image":
            return as_json(self.server.answers.image(self.body()))
        if name == "reconstruct":
            try:
                asked = parse_json(self.body())
            except ValueError:
                asked = None
            if not (isinstance(asked, dict) and self.is_request(asked)):
                raise UserError("pixels in base64, numbers of hidden patches, and a yes or no")
            return as_json(self.server.answers.reconstruct(**asked))
        raise Refused(HTTPStatus.NOT_FOUND, "nothing here of this name")

    def is_request(self, asked: dict[str, Any]) -> bool:
        """Whether a request has what `Answers.reconstruct` takes."""
        hidden = asked.get("hidden")
        return (
            asked.keys() == {"pixels", "hidden", "true_statistics"}
            and isinstance(asked["pixels"], str)
            and isinstance(hidden, list)
            and all(type(one) is int for one in hidden)
            and isinstance(asked["true_statistics"], bool)
        )

    def body(self) -> bytes:
        """What was uploaded; its size is known before it is read."""
        sizes = self.headers.get_all("Content-Length", [])
        if len(sizes) != 1 or not (sizes[0].isascii() and sizes[0].isdecimal()):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "how large is it? Content-Length is missing")
        if len(sizes[0]) > 15 or int(sizes[0]) > self.server.most:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"more than {self.server.most / 1e6:g} MB: start mae serve with a larger "
                "--max-upload",
            )
        data = self.rfile.read(int(sizes[0]))
        if len(data) < int(sizes[0]):
            raise ConnectionAbortedError("the upload has stopped")
        return data

    def send(self, reply: Reply) -> None:
        """Sends a reply; nobody may be there to read it."""
        with suppress(OSError):
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(reply.body)))
            for header, value in HEADERS.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(reply.body)
            self.wfile.flush()
            if reply.status >= HTTPStatus.BAD_REQUEST and self.command == "POST":
                self.drain()

    def drain(self) -> None:
        """Reads what is still coming of an upload, or the client would never see the reply."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(1.0)
        end = time.monotonic() + REST
        while time.monotonic() < end and self.connection.recv(1 << 16):
            pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses (no HTTP, another method), like all other errors."""
        self.send(
            as_json({"error": one_line(message or HTTPStatus(code).phrase)}, HTTPStatus(code))
        )

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address has the token."""


def one_line(error: object) -> str:
    """The first line of a message, in which nothing can harm a console."""
    return printable((str(error).strip().splitlines() or ["failed"])[0])
