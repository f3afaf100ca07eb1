from __future__ import annotations

import contextlib
import hashlib
import http.server
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip import clip
from support.download import cache_folder, fetch
from tests.servers import running

ROOT = Path(__file__).parents[2]
CONTENT = hashlib.shake_256(b"checkpoint").digest(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@dataclass
class Reply:
    """How the server answers one request."""

    cut: int | None = None  # close the connection after so many bytes
    stall_s: float = 0.0  # wait so long before the second half
    ranges: bool = True
    status: int = 200
    shift: int = 0  # answer a range that begins so many bytes too late


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.on_request:
            server.on_request()
        replies = server.replies
        reply = replies.pop(0) if len(replies) > 1 else replies[0]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        start = start + reply.shift if reply.ranges else 0
        self.close_connection = True
        if reply.status != 200:
            self.send_error(reply.status)
            return
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        self.end_headers()
        body = body[: reply.cut]
        with contextlib.suppress(ConnectionError):  # the client may give up
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(reply.stall_s)
            self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(*replies, content=CONTENT):
    """A real HTTP server; replies are used one after another, the last one for all further."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.replies, server.content = list(replies) or [Reply()], content
    server.asked, server.on_request = [], None
    server.url = f"http://127.0.0.1:{server.server_port}/models/{SHA256}/model.pt"
    with running(server):
        yield server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "model.pt"


def get(server, path, **options):
    return fetch(server.url, path, SHA256, **{"backoff_s": 0.0, "timeout_s": 5.0} | options)


def test_download_once(tmp_path, capfd):
    with serving() as server:
        first = clip._download(server.url, tmp_path / "new" / "folder")
        assert Path(first) == tmp_path / "new" / "folder" / "model.pt"
        assert Path(first).read_bytes() == CONTENT
        assert not list(tmp_path.rglob("*.part"))
        assert "%" not in capfd.readouterr().err  # no progress bar where nobody looks
        assert clip._download(server.url, tmp_path / "new" / "folder") == first
        assert len(server.asked) == 1


def test_file_put_there_by_hand_needs_no_network(path):
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert clip._download(f"http://nowhere.invalid/{SHA256}/model.pt", path.parent) == str(path)


def test_broken_connection_is_resumed(path):
    with serving(Reply(cut=HALF), Reply()) as server:
        get(server, path)
        first, second = server.asked
    assert path.read_bytes() == CONTENT
    assert first is None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= HALF


def test_later_call_resumes(path):
    part = path.with_name("model.pt.part")
    with serving(Reply(cut=HALF)) as server, pytest.raises(RuntimeError, match="1 attempts"):
        get(server, path, attempts=1)
    kept = part.stat().st_size
    assert 0 < kept <= HALF and not path.exists()
    with serving() as server:
        get(server, path)
        assert server.asked == [f"bytes={kept}-"]
    assert path.read_bytes() == CONTENT and not part.exists()


def test_killed_process_leaves_a_part_to_resume(path):
    code = "import sys; from support.download import fetch; fetch(*sys.argv[1:])"
    part = path.with_name("model.pt.part")
    with serving(Reply(stall_s=60), Reply()) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, path, SHA256],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert part.stat().st_size > 0 and not path.exists()
        server.replies = [Reply()]
        get(server, path)
        assert server.asked[1].startswith("bytes=")
    assert path.read_bytes() == CONTENT


def test_server_without_ranges_starts_over(path):
    with serving(Reply(cut=HALF), Reply(ranges=False)) as server:
        get(server, path)
        assert len(server.asked) == 2 and server.asked[1]
    assert path.read_bytes() == CONTENT


def test_gives_up_when_it_gets_no_further(path):
    with serving(Reply(cut=HALF, ranges=False)) as server:
        with pytest.raises(RuntimeError, match="given up after 3 attempts"):
            get(server, path, attempts=3)
        assert len(server.asked) == 3
    assert not path.exists()


def test_many_interruptions_with_progress_are_no_failure(path):
    with serving(*[Reply(cut=100_000)] * 6, Reply()) as server:
        get(server, path, attempts=2)
        assert len(server.asked) == 7
    assert path.read_bytes() == CONTENT


def test_range_that_was_not_asked_for(path):
    with serving(Reply(cut=HALF), Reply(shift=10), Reply()) as server:
        get(server, path)
        assert server.asked[2] is None  # from the start
    assert path.read_bytes() == CONTENT


def test_stalling_server_is_an_interruption(path):
    with serving(Reply(stall_s=3), Reply()) as server:
        get(server, path, timeout_s=0.3)
        assert len(server.asked) == 2
    assert path.read_bytes() == CONTENT


def test_wrong_bytes(path):
    with serving(content=CONTENT[:-1] + b"?") as server:
        with pytest.raises(RuntimeError, match=r"SHA-256 [0-9a-f]{64}, expected " + SHA256):
            get(server, path)
        assert len(server.asked) == 1
    assert not path.exists() and not path.with_name("model.pt.part").exists()


def test_part_of_another_file_is_thrown_away(path):
    path.parent.mkdir()
    path.with_name("model.pt.part").write_bytes(b"old" * 1000)
    with serving() as server:
        get(server, path)
        assert server.asked == ["bytes=3000-", None]
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"too much"], ids=["complete", "too long"])
def test_part_with_nothing_left_to_ask_for(path, part):
    path.parent.mkdir()
    path.with_name("model.pt.part").write_bytes(part)
    with serving() as server:
        get(server, path)
        assert server.asked == [f"bytes={len(part)}-"] + [None] * (part != CONTENT)
    assert path.read_bytes() == CONTENT


def test_damaged_file_is_replaced_only_by_a_good_one(path):
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    seen = []
    with serving(Reply(cut=HALF), Reply()) as server:
        server.on_request = lambda: seen.append(path.read_bytes())
        with pytest.warns(UserWarning, match=r"model.pt has SHA-256 .*downloading it again"):
            get(server, path)
    assert seen == [b"damaged"] * 2
    assert path.read_bytes() == CONTENT

    path.write_bytes(b"damaged")
    with serving(Reply(status=404)) as server, pytest.warns(UserWarning):
        with pytest.raises(RuntimeError, match="404"):
            get(server, path)
    assert path.read_bytes() == b"damaged"


def test_without_a_network_the_error_is_one_line_on_the_file(path):
    with serving() as server:
        pass  # nobody listens there now
    with pytest.raises(RuntimeError) as caught:
        get(server, path, attempts=1)
    message = str(caught.value)
    assert "the connection to 127.0.0.1 failed" in message
    assert f"Put the file at {path} by hand" in message
    assert "\n" not in message
    assert not any(word in message for word in ("Pool", "retries", "Errno", "object at"))


def test_refusal_is_final_and_trouble_is_retried(path):
    with serving(Reply(status=403)) as server:
        with pytest.raises(RuntimeError, match="403"):
            get(server, path)
        assert len(server.asked) == 1
    with serving(Reply(status=503), Reply(status=429), Reply()) as server:
        get(server, path)
        assert len(server.asked) == 3
    assert path.read_bytes() == CONTENT


def test_no_connection_says_what_to_do(path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/{SHA256}/model.pt"
    with pytest.raises(RuntimeError) as caught:
        fetch(url, path, SHA256, backoff_s=0)
    message = str(caught.value)
    for part in (url, str(path), SHA256, "CLIP_CACHE", "by hand", "local checkpoint"):
        assert part in message
    assert not path.exists()


def test_cache_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with serving() as server, pytest.raises(RuntimeError, match="cannot store"):
        get(server, tmp_path / "file" / "model.pt")


def test_simultaneous_downloads_transfer_once(path):
    with serving(Reply(stall_s=0.5)) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=get, args=(server, path)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.asked) == 1
    assert path.read_bytes() == CONTENT


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(1, 300_000),
    cuts=st.lists(st.tuples(st.integers(0, 300_000), st.booleans()), max_size=4),
)
def test_any_sequence_of_interruptions(size, cuts):
    content = CONTENT[:size]
    sha256 = hashlib.sha256(content).hexdigest()
    replies = [Reply(cut=cut, ranges=ranges) for cut, ranges in cuts] + [Reply()]
    with tempfile.TemporaryDirectory() as folder, serving(*replies, content=content) as server:
        path = fetch(server.url, Path(folder, "f"), sha256, attempts=6, backoff_s=0)
        assert path.read_bytes() == content


def test_address_without_checksum(tmp_path):
    with pytest.raises(ValueError, match="must be the file's SHA-256"):
        clip._download("http://nowhere.invalid/model.pt", tmp_path)


def test_choice_of_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLIP_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "clip"
    monkeypatch.setenv("CLIP_CACHE", "~/weights")
    assert cache_folder() == tmp_path / "weights"
    assert cache_folder(tmp_path / "other") == tmp_path / "other"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.pt").write_bytes(CONTENT)
    url = f"http://nowhere.invalid/{SHA256}/model.pt"
    assert clip._download(url) == str(tmp_path / "weights" / "model.pt")


def test_official_addresses():
    urls = dict(clip._MODELS)
    for name in ("tiny", "tiny-2"):
        assert urls.pop(name) == f"embedded:{name}"
    assert list(urls) == [
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    ]
    for name, url in urls.items():
        base, folder, sha256, file = url.rsplit("/", 3)
        assert (base, folder) == ("https://openaipublic.azureedge.net/clip", "models")
        assert len(bytes.fromhex(sha256)) == 32
        assert file == name.replace("/", "-").replace("@", "-") + ".pt"


class Huge(http.server.BaseHTTPRequestHandler):
    """A file that no disk holds."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(10**17))
        self.end_headers()
        self.close_connection = True


def test_a_file_that_the_disk_does_not_hold(tmp_path):
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Huge)) as server:
        url = f"http://127.0.0.1:{server.server_port}/huge.pt"
        with pytest.raises(RuntimeError, match=r"cannot store .* 1e\+05 TB, and .* are free"):
            fetch(url, tmp_path / "huge.pt", SHA256)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".lock"}
