"""The cache folder: whose it is, what is found in it, how large it gets, and what is done without it."""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import hspace
import numpy as np
import pytest
from hspace.engines import cache
from hspace.errors import ArgumentError, BundleError

from ..conftest import BUNDLES
from .helpers import alter, refused, snapshot

AVATARS = BUNDLES / "avatars32"
ENGINES = ["onnx", "openvino"]
CONTENT = bytes(range(256)) * 5000
KEY = cache.key("one")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_said", set())
    return tmp_path / "cache"


def mapped(entry: cache.Entry) -> bytes | None:
    found = entry.map()
    return None if found is None else bytes(found[1])


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_what_is_written_is_read(folder: Path) -> None:
    entry = cache.Entry("kind", KEY)
    assert entry.read() is None and mapped(entry) is None
    entry.write(CONTENT)
    assert entry.read() == mapped(entry) == CONTENT
    for other in (b"new", b""):
        entry.write(memoryview(other))
        assert entry.read() == mapped(entry) == other
    assert cache.Entry("kind", cache.key("two")).read() is None
    assert os.listdir(folder / "kind") == [f"{KEY}.bin"]


@pytest.mark.skipif(sys.platform == "win32", reason="a folder's rights are others there")
def test_it_is_its_owners_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        cache.Entry("kind", KEY).write(CONTENT)
    finally:
        os.umask(before)
    assert [mode(p) for p in (folder, folder / "kind", folder / "kind" / f"{KEY}.bin")] == [0o700, 0o700, 0o600]


@pytest.mark.parametrize("of", ["folder", "kind", "file"])
@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_what_others_can_write_is_not_used(folder: Path, of: str, bits: int, caplog: pytest.LogCaptureFixture) -> None:
    entry = cache.Entry("kind", KEY)
    entry.write(CONTENT)
    path = {"folder": folder, "kind": folder / "kind", "file": folder / "kind" / f"{KEY}.bin"}[of]
    path.chmod(mode(path) | bits)
    with caplog.at_level(logging.WARNING, "hspace"):
        assert entry.read() is None and mapped(entry) is None
        before = snapshot(folder)
        if of != "file":
            cache.Entry("kind", cache.key("two")).write(b"new")
            assert snapshot(folder) == before
            assert caplog.text.count("others can write it") == 1 and str(path) in caplog.text
    if of == "folder":
        assert "others can write it" in str(cache.why_not())
    path.chmod(mode(path) & ~bits)
    assert entry.read() == CONTENT


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("of", ["", "kind", f"kind/{KEY}.bin"])
def test_what_belongs_to_another_user_is_not_used(folder: Path, of: str) -> None:
    entry = cache.Entry("kind", KEY)
    entry.write(CONTENT)
    os.chown(folder / of, 12345, -1)
    assert entry.read() is None and mapped(entry) is None


def put(path: Path, what: str) -> None:
    """Something else in an entry's place."""
    sound = CONTENT + hashlib.sha256(CONTENT).digest()
    if what == "link":
        path.with_name("elsewhere").write_bytes(sound)
        path.symlink_to(path.with_name("elsewhere"))
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "huge":
        path.touch()
        os.truncate(path, 2**40)
    else:
        damaged = {"empty": b"", "short": b"x", "cut": sound[:-1]}
        damaged |= {"longer": sound + b"x", "altered": b"y" + sound[1:], "another digest": sound[:-1] + b"x"}
        path.write_bytes(damaged[what])


@pytest.mark.parametrize("what", ["link", "pipe", "folder", "device", "huge", "empty", "short"])
def test_an_entry_that_is_no_plain_file(folder: Path, what: str) -> None:
    entry = cache.Entry("kind", KEY)
    entry.write(CONTENT)
    path = folder / "kind" / f"{KEY}.bin"
    path.unlink()
    put(path, what)
    assert entry.read() is None and mapped(entry) is None


@pytest.mark.parametrize("what", ["cut", "longer", "altered", "another digest"])
def test_an_entry_that_is_damaged(folder: Path, what: str) -> None:
    entry = cache.Entry("kind", KEY)
    entry.write(CONTENT)
    put(folder / "kind" / f"{KEY}.bin", what)
    assert entry.read() is None and mapped(entry) is None
    entry.write(CONTENT)
    assert entry.read() == mapped(entry) == CONTENT


def test_a_mapped_entry_outlives_its_file(folder: Path) -> None:
    """Cut short, overwritten, removed: what was read is read again, and no signal ends the process."""
    entry = cache.Entry("kind", KEY)
    entry.write(CONTENT)
    path = folder / "kind" / f"{KEY}.bin"
    found = entry.map()
    assert found is not None
    whole, content = found
    assert isinstance(whole, mmap.mmap)
    if hasattr(whole, "madvise"):
        whole.madvise(mmap.MADV_DONTNEED)
    path.write_bytes(b"z")
    assert bytes(content) == CONTENT
    os.truncate(path, 0)
    path.unlink()
    assert bytes(content) == CONTENT and os.listdir(folder / "kind") == []


def test_without_room_for_a_copy_it_is_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = cache.Entry("kind", KEY)
    entry.write(CONTENT)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.tempfile, "TemporaryFile", full)
    found = entry.map()
    assert found is not None and bytes(found[1]) == CONTENT and not hasattr(found[0], "madvise")


# --- its size -----------------------------------------------------------------------------------------


def test_the_least_recently_used_leave_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSPACE_CACHE_LIMIT", str(3.5 * (len(CONTENT) + 32) / 2**30))
    entries = [cache.Entry(kind, cache.key(i)) for i, kind in enumerate("abcd")]
    for i, entry in enumerate(entries[:3]):
        entry.write(CONTENT)
        os.utime(next((folder / "abc"[i]).iterdir()), (i + 1, i + 1))
    (folder / "a" / "model.bin").write_bytes(bytes(9 * len(CONTENT)))  # nothing of the cache's
    assert entries[0].read() == CONTENT  # and was used last
    entries[3].write(CONTENT)
    assert [e.read() is not None for e in entries] == [True, False, True, True]
    assert (folder / "a" / "model.bin").exists()


def test_what_is_too_large_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.Entry("a", cache.key("small")).write(b"small")
    monkeypatch.setenv("HSPACE_CACHE_LIMIT", str(len(CONTENT) / 2**30))
    entry = cache.Entry("a", KEY)
    entry.write(CONTENT)
    assert entry.read() is None and cache.Entry("a", cache.key("small")).read() == b"small"
    monkeypatch.setenv("HSPACE_CACHE_LIMIT", "0")
    assert cache.Entry("a", cache.key("small")).read() is None


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf", "1e400", "8 GiB"])
def test_a_limit_that_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HSPACE_CACHE_LIMIT", text)
    with refused(ArgumentError, f"HSPACE_CACHE_LIMIT: found {text!r}", "GiB"):
        cache.Entry("a", KEY).write(b"x")


def test_a_limit_beyond_every_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("1e15", "1e308"):
        monkeypatch.setenv("HSPACE_CACHE_LIMIT", text)
        assert cache.limit() == sys.maxsize
        entry = cache.Entry("a", cache.key(text))
        entry.write(CONTENT)
        assert entry.read() == CONTENT


def test_what_a_write_left_half_done_is_swept(folder: Path) -> None:
    cache.Entry("a", KEY).write(CONTENT)
    old, new = (folder / "a" / f".{KEY}.bin.{c * 12}" for c in "ab")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.Entry("a", cache.key("two")).write(CONTENT)
    assert (old.exists(), new.exists()) == (False, True)


def test_several_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, read and trimmed at the same time: an entry is whole or not there, and nothing is left half-done."""
    monkeypatch.setenv("HSPACE_CACHE_LIMIT", str(3 * (len(CONTENT) + 32) / 2**30))
    wrong: list[object] = []

    def work(who: int) -> None:
        try:
            for i in range(20):
                entry = cache.Entry("a", cache.key((who + i) % 5))
                entry.write(CONTENT)
                wrong.extend(f for f in (entry.read(), mapped(entry)) if f not in (None, CONTENT))
        except Exception as e:
            wrong.append(e)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    assert not list(folder.rglob(".*")) and sum(p.stat().st_size for p in folder.rglob("*.bin")) <= cache.limit()


# --- no cache -----------------------------------------------------------------------------------------


@pytest.fixture
def _no_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HSPACE_CACHE", "XDG_CACHE_HOME", "HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cache, "_said", set())

    def unknown(path: str) -> str:
        return path

    monkeypatch.setattr(os.path, "expanduser", unknown)  # as where the system does not know the user
    yield


@pytest.mark.usefixtures("_no_home")
def test_no_home_folder(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "hspace"):
        cache.Entry("a", KEY).write(CONTENT)
        assert cache.Entry("a", KEY).read() is None
    assert cache.folder() is None and "no home folder" in str(cache.why_not())
    assert caplog.text.count("HSPACE_CACHE can name one") == 1


def test_relative_folders_of_the_environment_count_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the XDG Base Directory Specification says."""
    monkeypatch.delenv("HSPACE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert cache.folder() == tmp_path / ".cache" / "hspace"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
        assert cache.folder() == tmp_path / "x" / "hspace"
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "relative")
    assert cache.folder() is None


@pytest.mark.parametrize("what", ["file", "nul", "below a file"])
def test_a_folder_that_cannot_be(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    (folder.parent / "file").write_text("")
    given = {"file": folder.parent / "file", "below a file": folder.parent / "file" / "x", "nul": "\0"}[what]
    monkeypatch.setattr(cache, "folder", lambda: Path(given))
    cache.Entry("a", KEY).write(CONTENT)
    assert cache.Entry("a", KEY).read() is None and cache.Entry("a", KEY).map() is None
    assert cache.why_not() is not None


# --- engines that read it -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_a_warm_cache_serves_no_other_signature(folder: Path, tmp_path: Path, engine: str) -> None:
    """The graphs are the same, and cached; a manifest that says something else of them is refused as on a cold one."""
    pytest.importorskip("onnxruntime" if engine == "onnx" else engine)
    bundle = Path(shutil.copytree(AVATARS, tmp_path / "bundle"))
    hspace.open(bundle, engine=engine, precision="fp32")

    def widen(manifest: dict) -> None:
        for name, kind in (("trunk", "outputs"), ("head", "inputs")):
            (skip,) = (t for t in manifest["components"][name][kind] if t["name"] == "skip_0")
            skip["shape"][1] += 1

    alter(bundle, widen)
    for _ in range(2):
        with refused(BundleError, "trunk.onnx: outputs: found", "expected what the manifest says"):
            hspace.open(bundle, engine=engine, precision="fp32")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("garbage", [b"x", b"\x08\x09" * 4000])
def test_garbage_with_a_valid_digest(folder: Path, engine: str, garbage: bytes) -> None:
    pytest.importorskip("onnxruntime" if engine == "onnx" else engine)
    x = np.zeros((1, 3, 32, 32), np.float32)
    expected = hspace.open(AVATARS, engine=engine, precision="fp32").engine.run("encoder", {"x": x})[0]
    for path in folder.glob("*/*.bin"):
        path.write_bytes(garbage + hashlib.sha256(garbage).digest())
    found = hspace.open(AVATARS, engine=engine, precision="fp32").engine.run("encoder", {"x": x})[0]
    assert np.array_equal(found, expected)


def test_a_blob_cut_short_while_it_is_used(folder: Path) -> None:
    pytest.importorskip("openvino")
    code = f"""
import os, pathlib, hspace
image = {str(BUNDLES / "images/avatar016.png")!r}
for _ in range(2):  # compiled, then read
    editor = hspace.open({str(AVATARS)!r}, engine="openvino", precision="fp32")
before = editor.edit(image, {{"Dark_Skin": 0.5}}, steps=2)
for path in pathlib.Path({str(folder)!r}).glob("openvino/*"):
    os.truncate(path, 100)
print((editor.edit(image, {{"Dark_Skin": 0.5}}, steps=2) == before).all())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
