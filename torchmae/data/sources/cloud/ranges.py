"""Parts of files at http(s)://, s3://, ...: asked for by fsspec, and again where that fails.

No text here ever has more of an address than what the user wrote: $NAMES stay names, and what a
library says, which repeats the whole address, is left out.
"""

import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from torchmae.errors import RunError, UserError, library, printable

T = TypeVar("T")

ATTEMPTS, FIRST_WAIT = 8, 0.5  # seconds, doubled each time: a minute in all
SILENCE = 30.0  # seconds without a byte, after which a request is given up

SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
VARIABLE = re.compile(r"\$\{?\w+\}?")


def is_url(spec: str) -> bool:
    """Whether DATA is an address."""
    return SCHEME.match(spec) is not None


def refuse_secrets(url: str) -> None:
    """Raises UserError for an address with a name, password or query in it, which config.json,
    pages and messages would repeat."""
    where = SCHEME.sub("", url, count=1)
    user, at, _ = where.partition("/")[0].rpartition("@")
    query = where.partition("?")[2]
    plain = [VARIABLE.sub("", text).strip(":&=") for text in (user if at else "", query)]
    if any(plain):
        bare = SCHEME.match(url)[0] + where.partition("/")[0].rpartition("@")[2]  # type: ignore[index]  # it is one
        raise UserError(
            f"an address at {printable(bare)} with a name, a password or a query: it would be "
            "written into config.json. Put them into the environment (~/.netrc, "
            "AWS_ACCESS_KEY_ID, ...), or into variables that are named in quotes: "
            "'https://$USER:$PASSWORD@...', 'https://...?$QUERY'"
        )


def expanded(url: str) -> str:
    """An address with the values of its variables, for nothing but a request."""
    full = os.path.expandvars(url)
    missing = VARIABLE.search(full)
    if missing and missing[0] in url:
        raise UserError(f"{printable(url)}: the environment has no {missing[0]}")
    return full


class Facts(NamedTuple):
    """Bytes of a file, and what changes with its content (its ETag or time); "" if unknown."""

    size: int
    tag: str


class Files:
    """Files at addresses. Each process has connections of its own.

    Args:
        urls: of one host.
    """

    def __init__(self, urls: list[str]):
        self.urls = urls
        self.here: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "here": None}

    def system(self) -> Any:
        """fsspec's file system."""
        if self.here is None or self.here[0] != os.getpid():
            self.here = os.getpid(), connect(self.urls[0])
        return self.here[1]

    def whole(self, number: int) -> bytes:
        """A file."""
        path = self.path(number)
        return retried(self.urls[number], lambda: self.system().cat_file(path))

    def facts(self, number: int) -> Facts:
        """What the server says of a file."""
        path = self.path(number)
        found = retried(self.urls[number], lambda: self.system().info(path))
        size = found.get("size")
        if size is None:
            raise Refused(f"{printable(self.urls[number])}: the server does not say its size")
        named = ("ETag", "etag", "Content-MD5", "LastModified", "Last-Modified", "mtime", "created")
        tag = next((found[name] for name in named if found.get(name)), "")
        return Facts(int(size), str(tag))

    def part(self, number: int, offset: int, size: int) -> bytes:
        """Some bytes of a file.

        Raises:
            RunError: they do not come.
        """
        path = self.path(number)

        def ask() -> bytes:
            data = self.system().cat_file(path, start=offset, end=offset + size)
            if len(data) > size:
                raise Refused("the server does not answer ranges of bytes")
            if len(data) < size:
                raise ConnectionError("the answer ended too early")
            return data

        return retried(self.urls[number], ask) if size else b""

    def path(self, number: int) -> str:
        """As the file system names it."""
        return self.system()._strip_protocol(expanded(self.urls[number]))


class Refused(RunError):
    """A request that will not be answered, however often it is asked."""


def connect(url: str) -> Any:
    """fsspec's file system of an address, with the credentials of the environment."""
    scheme = str(SCHEME.match(url)[1]).lower()  # type: ignore[index]  # it is one
    fsspec = library("fsspec", "cloud")
    logging.getLogger("fsspec").setLevel(logging.INFO)  # below, it writes whole addresses
    options: dict[str, Any] = {}
    if scheme in ("http", "https"):
        aiohttp = library("aiohttp", "cloud")
        limits = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        options["client_kwargs"] = {"timeout": limits, "trust_env": True}  # proxies, ~/.netrc
        options["encoded"] = "?" in url  # a signature is to stay as it is
        options["headers"] = {"Accept-Encoding": "identity"}
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    except (ValueError, ImportError) as error:
        text = str(error).splitlines()[0]
        raise UserError(f"{scheme}:// needs another package beside fsspec: {text}") from error


def retried(url: str, ask: Callable[[], T]) -> T:
    """The answer to a request, asked again after growing waits where it fails for now.

    Raises:
        Refused: it fails for good.
        RunError: it fails too often.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        try:
            return ask()
        except UserError:
            raise
        except Exception as error:
            reason, final = judged(error)
        if final:
            raise Refused(f"{printable(url)}: {reason}")
    raise RunError(
        f"{printable(url)}: {reason}, {ATTEMPTS} times in a row. When it answers again, the same "
        "command continues"
    )


def judged(error: Exception) -> tuple[str, bool]:
    """What is wrong with a request, without what the library says; whether that stays so."""
    status = getattr(error, "status", None)
    if isinstance(error, Refused):
        return str(error), True
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "not found", True
    if isinstance(error, PermissionError) or status in (401, 403):
        return f"access is refused{f' ({status})' if status else ''}", True
    if isinstance(status, int):
        return f"the server answers {status}", 400 <= status < 500 and status not in (408, 425, 429)
    if isinstance(error, TimeoutError):
        return f"no answer in {SILENCE:g} s", False
    if isinstance(error, ConnectionError) and type(error) is ConnectionError:
        return str(error), False  # our own
    return f"the connection fails ({type(error).__name__})", False
