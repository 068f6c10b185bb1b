"""The manifest of published files: what is read is what was written, through kills and rewrites."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runs_on_disk import ENV

from torchmae import disk, manifest
from torchmae.errors import UserError


def put(folder: Path, **texts: str) -> None:
    partials = {name: folder / f".{name}.partial" for name in texts}
    for name, partial in partials.items():
        partial.write_text(texts[name])
    manifest.publish(folder, partials)


def test_what_is_published_is_read_back(tmp_path: Path) -> None:
    put(tmp_path, a="one", b="two")
    assert manifest.read(tmp_path, "a") == b"one"
    put(tmp_path, a="three")
    assert manifest.read(tmp_path, "a") == b"three"
    assert manifest.read(tmp_path, "b") == b"two"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "manifest.json"]
    entries = json.loads((tmp_path / "manifest.json").read_text())
    assert [len(contents) for contents in entries.values()] == [1, 1]
    manifest.forget(tmp_path, ("a", "never"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "manifest.json"]
    assert list(json.loads((tmp_path / "manifest.json").read_text())) == ["b"]


def test_each_damage_is_named_with_the_ways_out_and_can_be_overruled(tmp_path: Path) -> None:
    put(tmp_path, a="12345")
    for text, what in (
        ("1234", "it has 4 bytes, 5 were written"),
        ("12354", "its SHA-256 begins with"),
    ):
        (tmp_path / "a").write_text(text)
        for read in (manifest.check, manifest.read):
            with pytest.raises(UserError) as error:
                read(tmp_path, "a")
            for part in (what, f"{tmp_path}/a is not what", "--no-verify", "mae verify", "a copy"):
                assert part in str(error.value)
        with manifest.verification(False), manifest.verification(True):  # what is off stays off
            assert manifest.read(tmp_path, "a") == text.encode()
            manifest.check(tmp_path, "a")
    (tmp_path / "b").write_text("new")
    with pytest.raises(UserError, match="does not list it"):
        manifest.check(tmp_path, "b")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"a": 3}', '{"a": [{"bytes": 3}]}', "\xff"])
def test_a_damaged_manifest_is_a_sentence(tmp_path: Path, text: str) -> None:
    put(tmp_path, a="one")
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"manifest\.json is damaged .*delete it"):
        manifest.read(tmp_path, "a")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 3}'])
def test_a_manifest_that_is_damaged_while_its_run_trains_is_written_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    put(tmp_path, a="one", b="two")
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / ".a.partial").write_text("three")
    manifest.publish(tmp_path, {"a": tmp_path / ".a.partial"}, adopt=("a", "b", "none"))
    assert "manifest.json was damaged" in caplog.text and "written again" in caplog.text
    assert manifest.read(tmp_path, "a") == b"three"
    assert manifest.read(tmp_path, "b") == b"two"


def test_a_folder_without_one_is_read_as_it_is_and_adopted_at_the_next_publish(
    tmp_path: Path,
) -> None:
    (tmp_path / "old").write_text("old")
    assert manifest.read(tmp_path, "old") == b"old"
    (tmp_path / ".new.partial").write_text("new")
    manifest.publish(tmp_path, {"new": tmp_path / ".new.partial"}, adopt=("old", "none"))
    assert manifest.read(tmp_path, "old") == b"old"
    assert manifest.read(tmp_path, "new") == b"new"


def test_a_large_file_is_read_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, sha256 = [], disk.sha256
    monkeypatch.setattr(disk, "sha256", lambda path: read.append(path) or sha256(path))
    path = tmp_path / "a"
    path.write_bytes(bytes(2 << 20))
    first = manifest.content_of(path)
    assert manifest.content_of(path) == first
    assert len(read) == 1
    time.sleep(0.02)  # more than a tick of the clock
    with path.open("r+b") as file:
        file.write(b"x")
    assert manifest.content_of(path) != first
    assert len(read) == 2


def test_a_file_that_is_replaced_between_two_looks_is_looked_at_again(tmp_path: Path) -> None:
    put(tmp_path, a="0")
    looks = 0

    def look(path: Path) -> tuple[manifest.Content, str]:
        nonlocal looks
        looks += 1
        if looks < 4:  # behind the manifest that was read, a training goes on
            put(tmp_path, a=str(looks))
        return manifest.content_of(path), path.read_text()

    assert manifest.compare(tmp_path, "a", look) == "3"


PUBLISH = """
import itertools, sys
from pathlib import Path
from torchmae import manifest
folder = Path(sys.argv[1])
for i in itertools.count():
    partial = folder / ".a.partial"
    partial.write_text(f"{i} " * 1000)
    manifest.publish(folder, {"a": partial})
"""


def test_no_kill_and_no_reader_meets_a_file_that_is_not_listed(tmp_path: Path) -> None:
    """SIGKILL at random times while a process publishes, read all the while by another one."""
    dice, reads = random.Random(0), 0
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", PUBLISH, str(tmp_path)], env=ENV)
        try:
            while not (tmp_path / "a").exists():
                assert process.poll() is None
                time.sleep(0.001)
            end = time.monotonic() + dice.uniform(0.1, 0.3)
            while time.monotonic() < end:
                assert len(set(manifest.read(tmp_path, "a").split())) == 1
                reads += 1
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        manifest.check(tmp_path, "a")
    assert reads > 100
