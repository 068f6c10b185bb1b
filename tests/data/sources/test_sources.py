"""What holds for every kind of source."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest
from helpers.sources import BUILDERS, labels, names

from torchmae.data.config import DecodeOptions
from torchmae.data.loader import read_pixels
from torchmae.data.sources import SOURCES, open_source
from torchmae.data.sources.source import Source, Subset
from torchmae.errors import UserError


def answer(source: Source) -> tuple:
    last = len(source) - 1
    return (
        source.name(last),
        source.label(last),
        read_pixels(source, last).tobytes(),
        len(source),
    )


def in_child(source: Source, pipe) -> None:
    pipe.send(answer(source))


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_contract(kind, tmp_path):
    spec = BUILDERS[kind](tmp_path / "one", 7)
    source = open_source(spec)
    assert isinstance(source, Source)
    assert len(source) == (1797 if kind == "digits" else 7) and not source.unusable
    assert len(set(names(source))) == len(source)
    assert all(label is None or isinstance(label, str) for label in labels(source))
    for i in (0, len(source) - 1):
        item = source.read(i)
        pixels = read_pixels(source, i)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == source.channels
        if not isinstance(item, bytes):
            assert item.shape == pixels.shape
    for beyond in (len(source), 10**9):
        with pytest.raises(IndexError):
            source.read(beyond)

    want = answer(source)  # files that are open by now must not be shared wrongly
    assert answer(pickle.loads(pickle.dumps(source))) == want
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=in_child, args=(source, there))
    process.start()
    assert here.poll(20) and here.recv() == want
    process.join()
    assert answer(source) == want

    fingerprint = source.fingerprint()
    assert int(fingerprint, 16) and open_source(spec).fingerprint() == fingerprint
    assert open_source(BUILDERS[kind](tmp_path / "two", 7)).fingerprint() == fingerprint
    if kind != "digits":
        assert open_source(BUILDERS[kind](tmp_path / "three", 8)).fingerprint() != fingerprint

    stamp = source.stamp()
    assert (stamp is None) == (kind in ("torchvision", "hf", "digits", "python"))
    assert open_source(spec).stamp() == pickle.loads(pickle.dumps(source)).stamp() == stamp
    half = Subset(source, range(3))
    assert half.stamp() != stamp or stamp is None
    assert (
        half.stamp()
        == Subset(open_source(spec), range(3)).stamp()
        != Subset(source, range(1, 4)).stamp()
        or not stamp
    )


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_decodes_as_it_is_told(kind, tmp_path):
    spec = BUILDERS[kind](tmp_path / "set", 5)
    source, grey = open_source(spec), open_source(spec, DecodeOptions(channels=1))
    assert source.decode == DecodeOptions() and source.channels == source.stored_channels
    assert grey.channels == 1 and grey.stored_channels == source.stored_channels
    assert grey.fingerprint() == source.fingerprint() and grey.stamp() == source.stamp()
    copy = pickle.loads(pickle.dumps(grey))
    assert copy.decode == grey.decode
    for one in (grey, copy):
        assert read_pixels(one, 3).shape == (*read_pixels(source, 3).shape[:2], 1)


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "array"])
def test_a_stamp_notices_what_a_fingerprint_may_not(kind, tmp_path):
    """Another time of modification is enough, and another place."""
    spec = BUILDERS[kind](tmp_path / "one", 7)
    source = open_source(spec)
    stamps = [source.stamp(), open_source(BUILDERS[kind](tmp_path / "two", 7)).stamp()]
    path = tmp_path / "one" / source.name(3) if kind in ("folder", "list") else spec
    facts = os.stat(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    stamps.append(open_source(spec).stamp())
    assert len(set(stamps)) == 3 and open_source(spec).fingerprint() == source.fingerprint()


def test_a_stamp_is_that_of_opening(tmp_path):
    for kind in ("tar", "array"):
        path = BUILDERS[kind](tmp_path / kind, 7)
        source = open_source(path)
        before = source.stamp()
        path.write_bytes(path.read_bytes())  # the same, at another time
        assert source.stamp() == before != open_source(path).stamp()


def test_what_is_no_source(tmp_path):
    (tmp_path / "x.docx").write_bytes(b"x")
    with pytest.raises(UserError, match="is no source"):
        open_source(tmp_path / "x.docx")
    with pytest.raises(UserError, match="Did you mean torchvision"):
        open_source("torchvison:CIFAR10")
    with pytest.raises(UserError, match="no such folder or file"):
        open_source("digit")
