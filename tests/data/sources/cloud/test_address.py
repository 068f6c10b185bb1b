"""Packed sets and tars that a real HTTP server has, which fails in all ways it can."""

import base64
import logging
import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from helpers.server import Server
from helpers.sources import labels, names, pack, pack_shards, picture, png

from torchmae.data.config import Listing
from torchmae.data.loader import Batches
from torchmae.data.sources import open_source
from torchmae.data.sources.cloud import kept, ranges
from torchmae.data.transforms import CenterCropResize
from torchmae.disk import cache_folder
from torchmae.errors import RunError, UserError

pytest.importorskip("fsspec", reason="an extra")
pytest.importorskip("aiohttp", reason="an extra")

IMAGES = {f"c{i % 2}/{i}.png": png(i) for i in range(12)}
NOTHING_KEPT = Listing(cloud_cache=0)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(ranges, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(ranges, "SILENCE", 0.3)
    made = Server()
    yield made
    made.shutdown()


def asked(server) -> list[str]:
    """Requests for parts of tar files."""
    return [one for one in server.asked if ".tar" in one and "-" in one.rpartition(" ")[2]]


def test_a_packed_set_is_that_of_the_folder(tmp_path, server):
    here = open_source(pack_shards(tmp_path / "set", IMAGES))
    there = open_source(server.url(tmp_path / "set"))
    assert names(there) == names(here) and labels(there) == labels(here)
    assert there.fingerprint() == here.fingerprint() and there.stamp() == here.stamp()
    assert not asked(server)  # opening reads the index alone
    for _ in range(2):
        assert [there.read(i) for i in range(12)] == [here.read(i) for i in range(12)]
    assert len(asked(server)) == 4  # each shard once: they are small
    again = open_source(server.url(tmp_path / "set"))
    assert again.read(5) == here.read(5) and len(asked(server)) == 4  # it is on the disk now


def test_tars_and_ranges_of_them(tmp_path, server):
    for k in range(2):
        pack(tmp_path / f"s-{k:03}.tar", {f"c/{k}{i}.png": png(i) for i in range(3)})
    pack(tmp_path / "t.tar", {"a/1.png": png(1), "a/1.cls": b"seven"})
    there = open_source(server.url(tmp_path / "s-{000..001}.tar"), listing=NOTHING_KEPT)
    here = open_source(tmp_path / "s-{000..001}.tar")
    assert names(there) == names(here) and there.fingerprint() == here.fingerprint()
    before = len(asked(server))
    assert [there.read(i) for i in range(6)] == [here.read(i) for i in range(6)]
    assert len(asked(server)) == before + 6  # one by one, since nothing is kept
    assert labels(open_source(server.url(tmp_path / "t.tar"))) == ["seven"]
    for url, message in (
        (tmp_path / "gone.tar", "not found"),
        (tmp_path / "gone", "index.json: not found. An address is a packed set's"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(server.url(url))


@pytest.mark.parametrize("fault", ["503", "429", "cut", "silent"])
def test_what_fails_for_now_is_asked_again(tmp_path, server, fault):
    pack_shards(tmp_path / "set", IMAGES)
    there = open_source(server.url(tmp_path / "set"), listing=NOTHING_KEPT)
    server.faults = [fault] * 2
    assert there.read(3) == IMAGES[names(there)[3]]
    assert len(asked(server)) == 3


def test_what_fails_for_good_ends_a_run_with_a_line(tmp_path, server):
    """And is no bad image, in whose place another one would be learned."""
    pack_shards(tmp_path / "set", IMAGES)
    there = open_source(server.url(tmp_path / "set"), listing=NOTHING_KEPT)
    for faults, message in (
        (["404"], "not found"),
        (["403"], "access is refused"),
        (["whole"], "does not answer ranges"),
        (["503"] * 99, "the server answers 503, 8 times in a row. When it answers again, the same"),
    ):
        server.faults = list(faults)
        with pytest.raises(RunError, match=message) as caught:
            there.read(3)
        assert "\n" not in str(caught.value)
    server.faults = []
    server.shutdown()
    server.server_close()
    with pytest.raises(RunError, match="the connection fails"):
        open_source(server.url(tmp_path / "set"))


def test_a_damaged_shard_is_a_bad_image(tmp_path, server):
    source = open_source(pack_shards(tmp_path / "set", IMAGES))
    shard, offset, _ = source.places[4].tolist()
    data = bytearray(Path(source.paths[shard]).read_bytes())
    data[offset + 20] ^= 1
    Path(source.paths[shard]).write_bytes(data)
    there = open_source(server.url(tmp_path / "set"), listing=NOTHING_KEPT)
    with pytest.raises(ValueError, match="the shard is damaged"):
        there.read(4)


def test_what_is_kept_has_a_limit_and_a_checksum(tmp_path, server, monkeypatch):
    monkeypatch.setattr(kept, "BLOCK", 4096)
    for name in ("one", "two"):
        images = {f"{i}.png": picture((i, len(name), ord(name[0]))) + bytes(9000) for i in range(9)}
        pack_shards(tmp_path / name, images)
    limit = 40_000
    small = Listing(cloud_cache=limit / 1e9)

    def kept_bytes() -> int:
        return sum(file.stat().st_size for file in cache_folder("cloud").rglob("[0-9]*-[0-9]*"))

    for name in ("one", "two"):
        here, there = (
            open_source(at, listing=some)
            for at, some in (
                (tmp_path / name, Listing()),
                (server.url(tmp_path / name), small),
            )
        )
        assert [there.read(i) for i in range(9)] == [here.read(i) for i in range(9)]
        assert limit / 2 < kept_bytes() <= limit
    before = len(asked(server))
    assert there.read(0) == here.read(0) and len(asked(server)) == before
    for file in there.remote.folder.iterdir():
        file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    assert there.read(0) == here.read(0) and len(asked(server)) > before


def read_all(source, pipe) -> None:
    pipe.send([source.read(i) for i in range(len(source))])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes(tmp_path, server):
    pack_shards(tmp_path / "set", IMAGES)
    there = open_source(server.url(tmp_path / "set"), listing=NOTHING_KEPT)
    want = [there.read(i) for i in range(12)]  # the connection is open
    assert pickle.loads(pickle.dumps(there)).read(3) == want[3]
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(2)]
    children = [fork.Process(target=read_all, args=(there, end)) for _, end in pipes]
    for child in children:
        child.start()
    for here, _ in pipes:
        assert here.poll(60) and here.recv() == want
    for child in children:
        child.join()


SECRET = "hunter2secret"


@pytest.mark.parametrize(
    "where", [f"me:{SECRET}@host/x", f"{SECRET}@host/x", f"host/x?sig={SECRET}"]
)
def test_addresses_with_secrets_are_refused_unsaid(where):
    with pytest.raises(UserError, match="into variables that are named") as caught:
        open_source(f"https://{where}.tar")
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_loading_from_a_server_that_fails_and_wants_a_password(
    tmp_path, server, monkeypatch, caplog
):
    """By two processes: the batches are those of the folder, and neither what is stored of DATA nor
    any line of output, in detail, has the password."""
    token = base64.b64encode(f"me:{SECRET}".encode()).decode()
    server.password = f"Basic {token}"
    monkeypatch.setenv("TORCHMAE_TEST_USER", f"me:{SECRET}")
    images = {f"{i}.png": picture((20 * i, 9 * i, 99), 32) for i in range(12)}
    pack_shards(tmp_path / "set", images)
    caplog.set_level(logging.DEBUG)
    url = server.url(tmp_path / "set").replace("//", "//$TORCHMAE_TEST_USER@")
    here, there = open_source(tmp_path / "set"), open_source(url, listing=NOTHING_KEPT)
    server.faults = ["503", "cut", "429"]
    both = [
        [
            batch.images
            for batch in Batches(one, CenterCropResize((32, 32)), 4).loader(0, 3, workers)
        ]
        for one, workers in ((here, 0), (there, 2))
    ]
    assert all(map(torch.equal, *both)) and not server.faults
    server.faults = ["403"] * 9
    with pytest.raises(
        RunError, match="^http://.TORCHMAE_TEST_USER@.*: access is refused"
    ) as caught:
        next(Batches(there, CenterCropResize((32, 32)), 4).loader(0, 3, 1))
    assert "\n" not in str(caught.value)  # torch's would have a traceback
    for secret in (SECRET, token):
        assert secret not in caplog.text + str(pickle.dumps(there))
    monkeypatch.delenv("TORCHMAE_TEST_USER")
    with pytest.raises(UserError, match="the environment has no .TORCHMAE_TEST_USER"):
        open_source(url)
