"""data.fetch: mirrors, budgets, checksums, and archives that want to write where they should not.

Servers run on 127.0.0.1 and serve small archives in the official layout; no test needs a network.
"""

import contextlib
import hashlib
import http.server
import io
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_data import SMALL, make_records, one_line, write

from decoupled import data

NAMES = [f"{data.FOLDER}/{name}" for name in (*data.BATCHES, "batches.meta.txt")]


def tar(members):
    """A .tar.gz of TarInfo with content, and its SHA-256."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


def good_members():
    contents = [part.tobytes() for part in make_records()] + ["\n".join(data.CLASSES).encode()]
    return [(tarfile.TarInfo(name), content) for name, content in zip(NAMES, contents, strict=True)]


class Server(http.server.ThreadingHTTPServer):
    """Serves `pages` by path; the other paths misbehave, for as long as `release` is not set."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.scripts: dict[str, Callable[[Handler], object]] = {}  # what else a path does
        self.hits: list[str] = []
        self.release = threading.Event()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.hits.append(self.path)
        try:
            if self.path == "/drip-headers":
                self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                self.drip(b"X-Wait: 1\r\n")
            elif self.path == "/redirect":
                self.send_response(302)
                self.send_header("Location", "http://192.0.2.1/archive.tar.gz")
                self.end_headers()
            elif self.path in ("/stall", "/drip"):
                self.send_response(200)
                self.send_header("Content-Length", "10000000")
                self.end_headers()
                self.wfile.write(bytes(1_000_000))
                self.server.release.wait(60) if self.path == "/stall" else self.drip(b"x")
            elif self.path in self.server.scripts:
                self.server.scripts[self.path](self)
            elif self.path in self.server.pages:
                self.send_response(200)
                self.send_header("Content-Length", str(len(self.server.pages[self.path])))
                self.end_headers()
                self.wfile.write(self.server.pages[self.path])
            else:
                self.send_error(404)
        except OSError:
            pass  # the client has gone

    def drip(self, part):
        while not self.server.release.wait(0.05):
            self.wfile.write(part)


@contextlib.contextmanager
def running(monkeypatch):
    """A server, small archives, and no way around it."""
    monkeypatch.setattr(data, "BATCH_IMAGES", SMALL)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("DATA_URL", raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch):
    with running(monkeypatch) as server:
        yield server


def refusing():
    """An address on this machine where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/archive"


def fails(folder, *mirrors, sha256="0" * 64, **options):
    """The text of the error of a fetch that must fail and leave nothing behind."""
    with pytest.raises(OSError) as error:
        data.fetch(folder, mirrors, sha256=sha256, **options)
    one_line(error, "could not be downloaded", "put the official binary files in data/raw", "DATA=")
    assert list(folder.iterdir()) == []
    return str(error.value)


def test_fetch_unpacks_what_read_wants(server, tmp_path, capsys):
    server.pages["/good"], sha256 = tar(good_members())
    folder = data.fetch(tmp_path / "raw", [server.url("/good")], sha256=sha256)
    assert folder == tmp_path / "raw" / data.FOLDER
    assert sorted(p.name for p in folder.iterdir()) == sorted(Path(name).name for name in NAMES)
    assert list((tmp_path / "raw").iterdir()) == [folder]
    assert data.read(tmp_path / "raw").fingerprint == data.read(write(tmp_path / "own", make_records())).fingerprint
    data.fetch(tmp_path / "raw", [server.url("/good")], sha256=sha256)
    assert server.hits == ["/good"]  # what is complete is not downloaded again
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown_on_a_terminal_only(server, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    server.pages["/good"], sha256 = tar(good_members())
    for progress, name in ((True, "a"), (False, "b")):
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        data.fetch(tmp_path / name, [server.url("/good")], sha256=sha256, progress=progress)
        assert ("cifar-10-binary.tar.gz" in terminal.getvalue()) == progress


@pytest.mark.faults
def test_dead_mirrors_are_passed_over(server, tmp_path):
    server.pages["/good"], sha256 = tar(good_members())
    server.pages["/page"] = b"<!DOCTYPE html><title>Please log in</title>"
    data.fetch(tmp_path, [refusing(), server.url("/nothing"), server.url("/page"), server.url("/good")], sha256=sha256)
    assert server.hits == ["/nothing", "/page", "/good"]
    assert data.read(tmp_path).source == "cifar10"


@pytest.mark.faults
def test_reasons_are_given_for_every_mirror(server, tmp_path):
    server.pages["/page"] = b"<!DOCTYPE html><title>Please log in</title>"
    text = fails(tmp_path, refusing(), server.url("/nothing"), server.url("/page"))
    assert "127.0.0.1 ([Errno" in text and "refused" in text
    assert "127.0.0.1 (404 Client Error: Not Found)" in text
    assert "127.0.0.1 (what it sent has another checksum than the archive)" in text


def test_data_url_comes_first(server, tmp_path, monkeypatch):
    server.pages["/good"], sha256 = tar(good_members())
    monkeypatch.setenv("DATA_URL", server.url("/good"))
    data.fetch(tmp_path / "a", [server.url("/nothing")], sha256=sha256)
    assert server.hits == ["/good"]
    monkeypatch.setenv("DATA_URL", "ftp://example.org/archive")
    data.fetch(tmp_path / "b", [server.url("/good")], sha256=sha256)
    assert "DATA_URL (not an https address)" in fails(empty(tmp_path / "c"))


@pytest.mark.parametrize("address", ["http://192.0.2.1/a", "http://127.0.0.1.example.org/a", "file:///etc/hosts", "x"])
def test_only_https(server, tmp_path, address):
    assert "not an https address" in fails(tmp_path, address)


@pytest.mark.faults
def test_redirect_to_http_is_refused(server, tmp_path):
    assert "not an https address" in fails(tmp_path, server.url("/redirect"))


def empty(folder):
    folder.mkdir()
    return folder


@pytest.mark.faults
@pytest.mark.parametrize("path", ["/stall", "/drip", "/drip-headers"])
def test_budget_ends_a_transfer_that_no_timeout_ends(server, tmp_path, path):
    text = fails(tmp_path, server.url(path), budget_s=1, connect_s=50)
    assert "127.0.0.1 (not finished within 1 s)" in text


@pytest.mark.faults
def test_stalled_mirror_leaves_time_and_no_thread(server, tmp_path):
    server.pages["/good"], sha256 = tar(good_members())
    data.fetch(tmp_path, [server.url("/stall"), server.url("/good")], budget_s=2, connect_s=50, sha256=sha256)
    assert server.hits == ["/stall", "/good"]
    for _ in range(100):  # the server still waits, so only our side can have ended it
        if all(thread.name != "download" for thread in threading.enumerate()):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the stalled transfer still has its thread")


@pytest.mark.faults
def test_silent_server_is_left_before_the_budget_is_spent(server, tmp_path):
    assert "127.0.0.1 (timed out)" in fails(tmp_path, server.url("/stall"), budget_s=50, connect_s=0.5)


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def hostile(name):
    """Members of an archive that must be refused, and a part of the reason."""
    members = good_members()
    if name == "missing":
        return members[:2] + members[3:], "the archive lacks data_batch_3.bin"
    if name == "other folder":
        members[1][0].name = "data_batch_2.bin"
        return members, "the archive lacks data_batch_2.bin"
    if name == "short file":
        members[1] = (members[1][0], members[1][1][:-1])
        return members, f"data_batch_2.bin has {SMALL * 3073 - 1} bytes, expected {SMALL * 3073}"
    if name == "long file":
        members[1] = (members[1][0], members[1][1] + b"x")
    else:
        kind = {"symbolic link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE}[name]
        members[1] = link(NAMES[1], NAMES[0] if kind == tarfile.LNKTYPE else "/etc/passwd", kind)
    return members, "data_batch_2.bin in the archive is not a file of CIFAR-10"


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", ["missing", "other folder", "short file", "long file", "symbolic link", "hard link", "fifo"]
)
def test_archive_with_wrong_members_is_refused(server, tmp_path, name):
    members, reason = hostile(name)
    server.pages["/bad"], sha256 = tar(members)
    assert reason in fails(tmp_path, server.url("/bad"), sha256=sha256)


@pytest.mark.faults
def test_other_members_are_not_unpacked(server, tmp_path):
    extra = [
        (tarfile.TarInfo("../escaped.bin"), b"x"),
        (tarfile.TarInfo(f"{data.FOLDER}/../../escaped.bin"), b"x"),
        (tarfile.TarInfo(str(tmp_path / "escaped.bin")), b"x"),
        (tarfile.TarInfo(f"{data.FOLDER}/readme.html"), b"x"),
        link(data.FOLDER, str(tmp_path), tarfile.SYMTYPE),
        link(f"{data.FOLDER}/link", "/etc/passwd", tarfile.SYMTYPE),
    ]
    again = [(tarfile.TarInfo(NAMES[0]), b"x"), link(NAMES[1], "/etc/passwd", tarfile.SYMTYPE)]  # second of their name
    server.pages["/odd"], sha256 = tar(extra + good_members() + again)
    folder = data.fetch(tmp_path / "a" / "raw", [server.url("/odd")], sha256=sha256)
    files = [p for p in tmp_path.rglob("*") if not p.is_dir()]
    assert sorted(files) == sorted(folder / Path(name).name for name in NAMES)
    assert not any(p.is_symlink() for p in files)
    assert (folder / data.BATCHES[0]).read_bytes() == make_records()[0].tobytes()


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["cut", "not gzip", "empty"])
def test_damaged_archive_with_its_own_checksum(server, tmp_path, damage):
    content, _ = tar(good_members())
    content = {"cut": content[: len(content) // 2], "not gzip": b"hello" * 1000, "empty": b""}[damage]
    server.pages["/bad"] = content
    fails(tmp_path, server.url("/bad"), sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.faults
def test_interrupted_fetch_leaves_nothing(server, tmp_path, monkeypatch):
    server.pages["/good"], sha256 = tar(good_members())
    unpack = data._unpack

    def interrupted(archive, folder):
        unpack(archive, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.fetch(tmp_path, [server.url("/good")], sha256=sha256)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_two_fetches_at_once(server, tmp_path, monkeypatch):
    server.pages["/good"], sha256 = tar(good_members())
    unpack = data._unpack

    def slow(archive, folder):
        unpack(archive, folder)
        if not (tmp_path / data.FOLDER).exists():  # the other fetch begins later and ends sooner
            write(tmp_path / data.FOLDER, make_records())

    monkeypatch.setattr(data, "_unpack", slow)
    assert data.fetch(tmp_path, [server.url("/good")], sha256=sha256) == tmp_path / data.FOLDER
    assert [p.name for p in tmp_path.iterdir()] == [data.FOLDER]


def test_fetch_does_not_overwrite_what_it_does_not_know(server, tmp_path):
    (write(tmp_path / data.FOLDER, make_records()) / "data_batch_2.bin").write_bytes(b"notes")
    with pytest.raises(OSError) as error:
        data.fetch(tmp_path, [server.url("/good")])
    one_line(error, "is in the way", "data_batch_2.bin has 5 bytes")
    assert (tmp_path / data.FOLDER / "data_batch_2.bin").read_bytes() == b"notes"
    assert server.hits == []
