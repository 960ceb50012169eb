"""Faults between CIFAR-10 and a run: servers that misbehave, processes that are killed, disks that are full.

More of them, and the server, are in test_download.py; damaged files in test_data.py.
"""

import bz2
import contextlib
import gzip
import hashlib
import lzma
import re
import resource
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_data import SMALL, make_records, one_line, write
from test_download import empty, fails, good_members, running, tar

from decoupled import data

pytestmark = pytest.mark.faults


@pytest.fixture
def server(monkeypatch):
    with running(monkeypatch) as server:
        server.pages["/good"], server.sha256 = tar(good_members())
        yield server


def answer(*headers, status=200, body=b""):
    """A script for the server: this status, these headers, this body, and the end of the connection."""

    def script(handler):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return script


def reset(handler):
    """Half of what was promised, and then a TCP reset."""
    answer(("Content-Length", "1000"), body=bytes(500))(handler)
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def silence(handler):
    """Not even a status line; the connection ends."""


def flood(handler):
    """Bytes without an end."""
    answer()(handler)
    while not handler.server.release.is_set():
        handler.wfile.write(bytes(2**16))


# what the server does, and what is said about it
SCRIPTS = {
    "another archive": (answer(body=tar(good_members()[:3])[0]), "what it sent has another checksum than the archive"),
    "a page": (answer(("Content-Type", "text/html"), body=b"<html>"), "what it sent has another checksum"),
    "nothing": (answer(), "what it sent has another checksum"),
    "a loop": (answer(("Location", "/fault"), status=302), "Exceeded 30 redirects."),
    "a redirect to nowhere": (answer(("Location", "/nowhere"), status=301), "404 Client Error"),
    "a redirect to a file": (answer(("Location", "file:///etc/passwd"), status=302), "not an https address"),
    "a redirect to http": (answer(("Location", "//192.0.2.1/a"), status=307), "not an https address"),
    "an error of its own": (answer(status=503), "503 Server Error: Service Unavailable"),
    "a length that is no number": (answer(("Content-Length", "many")), "invalid literal"),
    "half of what it promised": (
        answer(("Content-Length", "1000"), body=bytes(500)),
        "500 bytes read, 500 more expected",
    ),
    "a reset": (reset, "reset by peer"),
    "silence": (silence, "closed connection without response"),
    "a flood": (flood, "it sends more than the archive has"),
}


@pytest.mark.parametrize(("script", "reason"), SCRIPTS.values(), ids=SCRIPTS)
def test_a_server_that_misbehaves_is_named_with_the_reason_and_passed_over(
    server, tmp_path, monkeypatch, script, reason
):
    monkeypatch.setattr(data, "ARCHIVE_BYTES", 10_000_000)
    server.scripts["/fault"] = script
    assert re.search(rf"127\.0\.0\.1 \(.*{reason}", fails(empty(tmp_path / "a"), server.url("/fault")))
    assert all(thread.name != "download" or until_dead(thread) for thread in threading.enumerate())
    folder = data.fetch(tmp_path / "b", [server.url("/fault"), server.url("/good")], sha256=server.sha256)
    assert server.hits[-1] == "/good" and data.read(folder).source == "cifar10"


def until_dead(thread):
    thread.join(30)
    return not thread.is_alive()


def test_a_name_that_nobody_knows_and_a_dead_proxy(server, tmp_path, monkeypatch):
    address = "https://mirror.invalid/a"  # RFC 6761: never resolves
    assert "mirror.invalid (" in fails(empty(tmp_path / "a"), address)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert "mirror.invalid (" in fails(empty(tmp_path / "b"), address)
    data.fetch(tmp_path / "c", [address, server.url("/good")], sha256=server.sha256)


def test_an_archive_with_a_label_that_does_not_exist_is_refused_by_the_reader(server, tmp_path):
    records = make_records()
    records[5, 3, 0] = 200
    members = good_members()
    members[5] = (members[5][0], records[5].tobytes())
    server.pages["/labels"], sha256 = tar(members)
    with pytest.raises(ValueError) as error:
        data.read(data.fetch(tmp_path, [server.url("/labels")], sha256=sha256))
    one_line(error, "test_batch.bin has the label 200, labels end at 9")


@pytest.mark.parametrize("form", [lzma.compress, bz2.compress, bytes])
def test_only_gzip_is_unpacked(server, tmp_path, form):
    """One decompressor is enough: a damaged xz, for one, raises what no other archive does."""
    server.pages["/other"] = form(gzip.decompress(server.pages["/good"]))
    sha256 = hashlib.sha256(server.pages["/other"]).hexdigest()
    assert "Not a gzipped file" in fails(tmp_path, server.url("/other"), sha256=sha256)


@contextlib.contextmanager
def files_end_at(size):
    """A disk on which no file can be longer than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1_000, SMALL * data.RECORD - 1])
def test_a_full_disk_is_the_reason_and_leaves_nothing(server, tmp_path, size):
    """It ends the download (first case) or the unpacking; with room again the same call works."""
    server.pages["/good"], server.sha256 = tar([(i, bytes(len(c))) for i, c in good_members()])  # packs to little
    assert SMALL * data.RECORD > len(server.pages["/good"]) > 500
    if size == 1_000:
        server.pages["/good"], server.sha256 = tar(good_members())
    with files_end_at(size):
        assert "File too large" in fails(tmp_path, server.url("/good"), sha256=server.sha256)
    data.fetch(tmp_path, [server.url("/good")], sha256=server.sha256)


def test_what_cannot_be_written_to_is_one_line(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "raw"):
        with pytest.raises(OSError) as error:
            data.fetch(folder, [server.url("/good")], sha256=server.sha256)
        one_line(error, "file")
    assert (tmp_path / "file").read_text() == "mine" and server.hits == []


KILLED = """
import signal
from decoupled import data
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
data.fetch({folder!r}, [{address!r}], budget_s=60, connect_s=60)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_download_restarts_cleanly(server, tmp_path, how):
    code = KILLED.format(folder=str(tmp_path), address=server.url("/stall"))
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(1200):
                if sum(path.stat().st_size for path in tmp_path.glob(".fetch-*/tmp*")) > 900_000:  # of 1,000,000
                    break
                time.sleep(0.05)
            else:
                pytest.fail("the download did not begin")
        finally:
            process.send_signal(how)
        assert process.wait(60) != 0
    left = list(tmp_path.glob(".fetch-*"))
    assert len(left) == (0 if how == signal.SIGINT else 1)  # SIGINT lets it tidy up itself
    data.fetch(tmp_path, [server.url("/good")], sha256=server.sha256)
    assert [path.name for path in tmp_path.iterdir()] == [data.FOLDER]
    assert data.read(tmp_path).fingerprint == data.read(write(tmp_path / "own", make_records())).fingerprint


def test_a_download_does_not_touch_another_that_still_runs(server, tmp_path):
    texts = []
    slow = threading.Thread(target=lambda: texts.append(reason_of(tmp_path, server.url("/stall"))))
    slow.start()
    while not (parts := list(tmp_path.glob(".fetch-*/tmp*"))):
        time.sleep(0.01)
    data.fetch(tmp_path, [server.url("/good")], sha256=server.sha256)
    assert parts[0].exists()
    server.release.set()  # the slow one ends: half a file, as its server promised more
    slow.join(60)
    assert "bytes read" in texts[0] and [path.name for path in tmp_path.iterdir()] == [data.FOLDER]


def reason_of(folder, address):
    try:
        return data.fetch(folder, [address], budget_s=60, connect_s=60)
    except OSError as error:
        return str(error)


# --- https --------------------------------------------------------------------------------------------------------


@pytest.fixture
def secure(server, tmp_path_factory, monkeypatch):
    """A second server, which speaks https, beside one that does not; and the certificate to trust it by."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    line = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -days 2 -subj /CN=mirror"
    line += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *line.split()], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with running(monkeypatch) as other:
        other.pages |= server.pages
        other.socket = context.wrap_socket(other.socket, server_side=True)
        yield other, certificate


def test_an_https_mirror_works_where_its_certificate_is_trusted_only(server, secure, tmp_path, monkeypatch):
    other, certificate = secure
    address = other.url("/good").replace("http://", "https://")
    assert "CERTIFICATE_VERIFY_FAILED" in fails(empty(tmp_path / "a"), address, sha256=server.sha256)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    data.fetch(tmp_path / "b", [address], sha256=server.sha256)


@pytest.mark.parametrize("hops", [1, 2])
def test_an_https_mirror_that_leads_to_http_is_refused(server, secure, tmp_path, monkeypatch, hops):
    """Even to http on this machine, and even with the right archive there."""
    other, certificate = secure
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    other.scripts["/1"] = answer(("Location", server.url("/good")), status=302)
    other.scripts["/2"] = answer(("Location", "/1"), status=302)
    text = fails(tmp_path, other.url(f"/{hops}").replace("http://", "https://"), sha256=server.sha256)
    assert "127.0.0.1 (not an https address)" in text
    assert server.hits == [] and len(other.hits) == hops


def test_every_mirror_is_https_and_a_file_url_is_not_read(tmp_path):
    assert all(mirror.startswith("https://") for mirror in data.MIRRORS)
    archive = tmp_path / "archive"
    archive.write_bytes(tar(good_members())[0])
    assert "not an https address" in fails(empty(tmp_path / "raw"), archive.as_uri())


def test_the_published_archive_is_the_one_that_is_asked_for():
    """SHA-256 and size of the official archive; other projects (DataDeps.jl among them) ask for the same."""
    assert len(bytes.fromhex(data.SHA256)) == 32
    assert data.SHA256.startswith("c4a38c50a1bc5f3a") and data.ARCHIVE_BYTES == 170_052_171
    assert data.fetch.__defaults__ is not None and data.SHA256 in data.fetch.__defaults__
    assert Path(data.MIRRORS[0]).name == data.ARCHIVE
