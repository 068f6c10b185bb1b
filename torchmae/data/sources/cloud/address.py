"""Packed sets and tar files at an address: https://, s3://, ... by fsspec."""

import tempfile
from pathlib import Path

from torchmae.data.sources.cloud.kept import Kept
from torchmae.data.sources.cloud.ranges import Files, Refused, refuse_secrets
from torchmae.data.sources.packed import ARRAYS, INDEX, read_packed
from torchmae.data.sources.source import Source, digest_of
from torchmae.data.sources.tars import Tars, braces
from torchmae.errors import UserError, printable

GB = 10.0  # of blocks that are kept, unless --cloud-cache says otherwise


def open_address(url: str, cloud_cache: float | None = None) -> Source:
    """The packed set at an address, or one or more tar files ("https://host/s-{000..009}.tar").

    Args:
        url: without secrets; $NAMES in it are those of the environment.
        cloud_cache: GB that may be kept on the local disk, of all sets together.

    Raises:
        UserError: it has secrets, or there is no such set.
        RunError: the server does not answer.
    """
    refuse_secrets(url)
    limit = int((GB if cloud_cache is None else cloud_cache) * 1e9)
    try:
        path, _, query = url.partition("?")
        if path.lower().endswith(".tar"):
            return open_tars([one + "?" * bool(query) + query for one in braces(path)], limit)
        return open_shards(path.rstrip("/"), query, limit)
    except Refused as error:
        raise UserError(str(error)) from None


def open_tars(urls: list[str], limit: int) -> Source:
    """Tar files, which are read through once to list their images."""
    files = Files(urls)
    facts = [files.facts(number) for number in range(len(urls))]
    for number, (size, _) in enumerate(facts):
        files.part(number, 0, min(size, 512))  # a server without ranges would send all of it
    known = all(tag for _, tag in facts)
    key = digest_of(urls, facts) if known else ""
    kept = Kept(files, [size for size, _ in facts], key, limit)
    source = Tars([url.partition("?")[0] for url in urls], remote=kept)
    source.known = key or None
    return source


def open_shards(url: str, query: str, limit: int) -> Source:
    """A packed set."""
    names = [f"{url}/{name}" + "?" * bool(query) + query for name in (INDEX, ARRAYS)]
    index = Files(names)
    try:
        header = index.whole(0)
    except Refused as error:
        raise UserError(
            f"{error}. An address is a packed set's (mae pack makes one), or names tar files, such "
            "as .../part-{000..009}.tar"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, INDEX).write_bytes(header)
        Path(folder, ARRAYS).write_bytes(index.whole(1))
        try:
            source = read_packed(Path(folder), url)
        except UserError as error:
            raise UserError(str(error).replace(folder, printable(url))) from error
    sizes = [shard["bytes"] for shard in source.header["shards"]]
    files = Files([f"{path}" + "?" * bool(query) + query for path in source.paths])
    source.remote = Kept(files, sizes, source.header["index_sha256"], limit)
    return source
