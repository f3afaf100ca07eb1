"""Transfers of data sets that go wrong, and Google Drive."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import shutil
import ssl
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from datasets.preparation.fetching import Options, obtain, problem_of
from datasets.preparation.sources import RemoteFile
from tests.datasets.mirror import md5_of, pack, rows
from tests.servers import running
from tests.support.test_download import Handler, Reply


def test_broken_off_transfer_goes_on(published, command, mirror):
    options = published("dtd")
    path = "/dtd/dtd-r1.0.1.tar.gz"
    half = (mirror.folder / path[1:]).stat().st_size // 2
    mirror.faults[path] = [Reply(cut=half), Reply()]
    assert command("dtd", *options)[0] == 0
    first, second = mirror.asked[:2]
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= half


def test_silent_server(published, command, mirror):
    options = published("dtd")
    mirror.faults["/dtd/dtd-r1.0.1.tar.gz"] = [Reply(stall_s=3), Reply()]
    begin = time.monotonic()
    assert command("dtd", "--timeout", "0.3", *options)[0] == 0
    assert time.monotonic() - begin < 3
    assert mirror.paths.count("/dtd/dtd-r1.0.1.tar.gz") == 2


def test_wrong_checksum_stops_one_data_set_only(published, command, mirror, tmp_path):
    options = published("dtd", "eurosat")
    archive = mirror.folder / "dtd" / "dtd-r1.0.1.tar.gz"
    expected = md5_of(archive)
    archive.write_bytes(archive.read_bytes() + b"?")
    status, out, err = command("dtd", "eurosat", *options)
    assert status == 1
    assert err.count("error: ") == 1
    assert f"has MD5 {md5_of(archive)}, expected {expected}" in err
    assert str(tmp_path / "root" / "downloads" / "dtd" / "dtd-r1.0.1.tar.gz") in err
    assert "incomplete: not there: images" in rows(out)["dtd"]
    assert " ready " in rows(out)["eurosat"]
    assert "python -m datasets.prepare dtd --root" in out
    # the split file, which came, is kept
    assert (tmp_path / "root" / "dtd" / "split_zhou_DescribableTextures.json").is_file()


@pytest.mark.parametrize("published_checksum", [True, False])
def test_damaged_file_in_the_downloads_is_replaced(
    published_checksum, published, command, tmp_path
):
    options = published("dtd")
    if not published_checksum:
        table = yaml.safe_load((tmp_path / "sources.yaml").read_text())
        del table["dtd"]["files"][0]["md5"]
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
    target = tmp_path / "root" / "downloads" / "dtd" / "dtd-r1.0.1.tar.gz"
    target.parent.mkdir(parents=True)
    target.write_bytes((tmp_path / "mirror" / "dtd" / target.name).read_bytes()[:-40])
    with pytest.warns(UserWarning, match="damaged or another file"):
        assert command("dtd", *options)[0] == 0


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a/a.zip", b"<html>quota exceeded</html>", "no intact zip"),
        ("a/a.tar.gz", b"<html>quota exceeded</html>", "no intact tar.gz"),
        ("a/a.json", b"<html>quota exceeded</html>", "no intact json"),
        ("a/a.mat", b"<html>quota exceeded</html>", "no intact mat"),
        ("a/a.txt", b"<html>quota exceeded</html>", "a web page"),
        ("a/a.txt", b"", "empty"),
        ("a/a.txt", b"\xff\xfe", "no intact txt"),
    ],
)
def test_file_without_published_checksum_must_be_intact(name, content, reason, tmp_path):
    (tmp_path / "x").write_bytes(content)
    assert reason in problem_of(tmp_path / "x", RemoteFile(name))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_archive_without_published_checksum_that_is_cut_or_altered(name, tmp_path):
    file = RemoteFile(f"a/{name}")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x").write_bytes(hashlib.shake_256(b"x").digest(30_000))
    pack(tmp_path, ["images"], tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    assert problem_of(tmp_path / name, file) is None
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert problem_of(tmp_path / name, file)
    if name != "a.tar":  # a plain tar archive has no checksums of its content
        altered = bytearray(whole)
        altered[len(whole) // 2] ^= 1
        (tmp_path / name).write_bytes(altered)
        assert problem_of(tmp_path / name, file)


def test_next_address_is_tried(published, command, mirror, tmp_path):
    options = published("dtd")
    table = yaml.safe_load((tmp_path / "sources.yaml").read_text())
    archive = table["dtd"]["files"][0]
    (mirror.folder / archive["file"]).rename(mirror.folder / "elsewhere.tar.gz")
    archive["urls"] = [f"{mirror.url}/gone.tar.gz", f"{mirror.url}/elsewhere.tar.gz"]
    (tmp_path / "sources.yaml").write_text(yaml.safe_dump(table))
    assert command("dtd", *options)[0] == 0
    assert mirror.paths[:3] == [f"/{archive['file']}", "/gone.tar.gz", "/elsewhere.tar.gz"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_downloading(published, command, tmp_path):
    options = published("dtd", "eurosat")
    downloads = tmp_path / "root" / "downloads" / "dtd"
    downloads.mkdir(parents=True)
    part = downloads / "dtd-r1.0.1.tar.gz.part"
    part.symlink_to("/dev/full")  # every write to it fails as on a full disk
    status, out, err = command("dtd", "eurosat", *options)
    assert status == 1
    assert err.count("error: ") == 1
    assert "No space left on device" in err and "Traceback" not in err
    assert "incomplete: not there: images" in rows(out)["dtd"]
    assert " ready " in rows(out)["eurosat"]
    part.unlink()
    assert command("dtd", *options)[0] == 0


# --- Google Drive ---------------------------------------------------------------------------


class DriveHandler(Handler):
    """A proxy whose tunnels all end here, at a stand-in for Drive with the formats gdown reads."""

    def do_CONNECT(self):
        self.close_connection = False
        super().send_response(200)
        super().end_headers()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")

    def do_GET(self):
        self.server.paths.append(self.path)
        with contextlib.suppress(OSError):  # the client may give up
            super().do_GET()
            self.wfile.flush()

    def end_headers(self):
        kind = "text/html" if self.server.quota else "application/octet-stream"
        self.send_header("Content-Type", kind)
        if not self.server.quota:
            self.send_header("Content-Disposition", 'attachment; filename="file"')
        super().end_headers()


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """Stand-in for drive.google.com, reached through a proxy and verified as the real one is."""
    if not shutil.which("openssl"):
        pytest.skip("needs openssl for a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        + ["-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=drive"]
        + ["-addext", "subjectAltName=DNS:drive.google.com"],
        check=True,
        capture_output=True,
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), DriveHandler)
    server.daemon_threads = True
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate, key)
    server.replies, server.content, server.quota = (
        [Reply()],
        b'{"a": "%s"}' % (b"b" * 90_000),
        False,
    )
    server.paths, server.asked, server.on_request = [], [], None
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with running(server):
        yield server


DRIVE_FILE = RemoteFile("dtd/split.json", drive="1" * 33)


def test_file_of_drive(drive, tmp_path):
    path = obtain(DRIVE_FILE, tmp_path, Options())
    assert path == tmp_path / "dtd" / "split.json"
    assert path.read_bytes() == drive.content
    assert drive.paths == [f"/uc?id={'1' * 33}"]
    assert sorted(os.listdir(path.parent)) == ["split.json"]


def test_broken_off_transfer_of_drive_goes_on(drive, tmp_path):
    drive.content = b'"%s"' % (b"b" * 1_500_000)
    drive.replies = [Reply(cut=800_000), Reply()]
    path = obtain(DRIVE_FILE, tmp_path, Options())
    assert path.read_bytes() == drive.content
    assert drive.asked[-1].startswith("bytes=")


def test_part_that_drive_does_not_continue_is_given_up(drive, tmp_path):
    part = tmp_path / "dtd" / "split.json.drive12345678.part"
    part.parent.mkdir()
    part.write_bytes(drive.content[:1000])
    drive.replies = [Reply(ranges=False)]
    with pytest.raises(RuntimeError, match="byte range"):
        obtain(DRIVE_FILE, tmp_path, Options())
    path = obtain(DRIVE_FILE, tmp_path, Options())
    assert path.read_bytes() == drive.content


def test_part_of_a_former_call_goes_on(drive, tmp_path):
    part = tmp_path / "dtd" / "split.json.drive12345678.part"
    part.parent.mkdir()
    part.write_bytes(drive.content[:1000])
    path = obtain(DRIVE_FILE, tmp_path, Options())
    assert path.read_bytes() == drive.content
    assert drive.asked[-1] == "bytes=1000-"


def test_drive_that_refuses(drive, tmp_path):
    drive.quota = True
    drive.content = b'<html><p class="uc-error-subcaption">Too many users</p></html>'
    with pytest.raises(RuntimeError) as caught:
        obtain(DRIVE_FILE, tmp_path, Options())
    for part in ("Too many users", DRIVE_FILE.addresses[0], str(tmp_path / "dtd" / "split.json")):
        assert part in str(caught.value)


def test_drive_that_sends_something_else(drive, tmp_path):
    drive.content = b"no JSON"
    with pytest.raises(RuntimeError, match="what it sends is no intact json file"):
        obtain(DRIVE_FILE, tmp_path, Options())
    assert not os.listdir(tmp_path / "dtd")


def test_mirror_comes_before_drive(drive, mirror, tmp_path):
    target = mirror.folder / DRIVE_FILE.file
    target.parent.mkdir(parents=True)
    target.write_bytes(drive.content)
    obtain(DRIVE_FILE, tmp_path / "root", Options(mirror=mirror.url + "/"))
    assert mirror.paths == ["/dtd/split.json"]
    assert not drive.paths
