"""The service: a real process on this machine, asked over HTTP and by a browser."""

from __future__ import annotations

import base64
import contextlib
import io
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import serve
from benchmarks import serving
from tests.conftest import CLASSNAMES, ROOT
from trainers import Predictor

httpx = pytest.importorskip("httpx", reason="needs requirements-dev.txt")
for package in ("fastapi", "uvicorn", "multipart", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="needs requirements-deploy.txt")


@contextlib.contextmanager
def served(*words: object) -> Iterator[tuple[str, subprocess.Popen]]:
    """A service in a process of its own: its address, and the process."""
    command = [sys.executable, ROOT / "serve.py", "--port", 0, *words]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + process.stderr.read()
        yield found[0], process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def service(tiny_run) -> Iterator[str]:
    words = ["--model-dir", tiny_run, "--max-images", 3, "--max-mb", 1, "--max-megapixels", 2]
    with served(*words, "--device", "cpu") as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def paths(data_root) -> list[Path]:
    folder = data_root / "test-images" / "test"
    return [folder / "cat" / "0.png", folder / "tree" / "1.png"]


def encoded(image: Image.Image, kind: str = "PNG", **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def files(*contents: bytes) -> list[tuple]:
    return [("file", (f"{i}.png", content)) for i, content in enumerate(contents)]


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_labels_of_several_pictures(client, tiny_run, paths):
    answer = client.post("/predict?top_k=2", files=files(*(path.read_bytes() for path in paths)))
    assert answer.status_code == 200
    expected = Predictor.load(tiny_run, device="cpu").predict(paths, top_k=2)
    for found, labels in zip(answer.json()["predictions"], expected, strict=True):
        assert [entry["label"] for entry in found["labels"]] == [label.name for label in labels]
        for entry, label in zip(found["labels"], labels, strict=True):
            assert entry["probability"] == pytest.approx(label.probability, abs=1e-5)


def test_attention_is_a_map_of_the_patches(client, paths):
    answer = client.post("/predict?attention=true", files=files(paths[0].read_bytes()))
    (found,) = answer.json()["predictions"]
    grid = np.array(found["attention"])
    assert grid.ndim == 2
    assert grid.shape[0] == grid.shape[1] > 1
    assert 0 < grid.sum() <= 1


def test_health_and_info(client):
    assert client.get("/health").json() == {"status": "ok"}
    info = client.get("/info").json()
    assert (info["method"], info["backbone"], info["labels"]) == (
        "MMLoP",
        "tiny-2",
        list(CLASSNAMES),
    )
    assert info["limits"] == {"picture_bytes": 1_000_000, "pictures": 3, "pixels": 2_000_000}
    assert info["attention"] is True


def test_what_is_no_picture_is_named_and_the_others_are_answered(client, paths):
    good = paths[0].read_bytes()
    wide = encoded(Image.new("RGB", (2000, 2)))
    floats = encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF")
    for content, part in (
        (b"hello", "no picture"),
        (b"", "empty"),
        (good[:80], "cannot be read"),
        (bomb(60_000, 60_000), "pixels are too many"),
        (bomb(1500, 1400), "pixels are too many"),
        (wide, "too narrow"),
        (floats, "floating-point"),
    ):
        answer = client.post("/predict", files=files(good, content))
        first, second = answer.json()["predictions"]
        assert answer.status_code == 200
        assert first["labels"]
        assert part in second["error"]
        assert client.post("/predict", files=files(content)).status_code == 422


@pytest.mark.parametrize(
    ("how", "status", "part"),
    [
        ({}, 422, "multipart/form-data"),
        ({"content": b"x", "headers": {"content-type": "image/png"}}, 422, "multipart/form-data"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "form"),
        ({"data": {"a": "b"}, "files": {}}, 422, "form"),
        ({"files": files(b"x" * 1_100_000)}, 413, "at most 1 MB"),
        ({"files": files(*[b"x"] * 4)}, 413, "at most 3"),
        ({"files": files(b"x" * 5_000_000)}, 413, "too large"),
        ({"params": {"top_k": 0}}, 422, "top_k"),
        ({"params": {"top_k": "x"}}, 422, "top_k is 'x': use a whole number, 1 or more"),
        ({"params": {"attention": "x"}}, 422, "attention is 'x': use true or false"),
        (
            {"params": {"topk": 2}},
            422,
            "no option 'topk': there are top_k and attention; did you mean top_k?",
        ),
        ({"data": {"top_k": "2"}, "files": files(b"x")}, 422, "/predict?top_k=2"),
    ],
)
def test_bad_requests_get_a_status_and_a_text(client, how, status, part):
    answer = client.post("/predict", **how)
    assert answer.status_code == status
    assert part in answer.json()["error"]
    assert client.get("/health").status_code == 200


def test_a_body_without_a_length_is_bounded(client):
    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 50_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/predict", content=endless(), headers=headers)
    assert answer.status_code == 413


def test_other_sites_cannot_use_it_under_their_names(client):
    for host in ("evil.example", "localhost.evil.example", "[::1]x", "x@localhost"):
        answer = client.get("/info", headers={"host": host})
        assert answer.status_code == 400
        assert "this service answers as 127.0.0.1, localhost, ::1" in answer.json()["error"]
    for host in ("LocalHost", "[::1]:80", "127.0.0.1:1"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    assert client.get("/nothing").json() == {"error": "Not Found"}


def test_many_at_once_get_their_own_answers(service, tiny_run, data_root):
    paths = sorted((data_root / "test-images" / "test").glob("*/*.png"))[::2]
    labels = Predictor.load(tiny_run, device="cpu").predict(paths, top_k=1)
    answers: dict[int, dict] = {}

    def ask(start: int) -> None:
        with httpx.Client(base_url=service, timeout=120) as client:
            for number in range(start, len(paths), 4):
                answer = client.post("/predict", files=files(paths[number].read_bytes()))
                answers[number] = answer.json()["predictions"][0]["labels"][0]

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, ((name, probability),) in enumerate(labels):
        assert answers[number]["label"] == name
        assert answers[number]["probability"] == pytest.approx(probability, abs=1e-5)


def test_the_load_test_counts_what_goes_wrong(service, tiny_run, paths):
    labels = Predictor.load(tiny_run, device="cpu").predict(paths, top_k=1)
    pictures = [
        (path.read_bytes(), label.name) for path, (label,) in zip(paths, labels, strict=True)
    ]
    found = serving.load_test(service, pictures, count=20, clients=4)
    assert [found[key] for key in ("lost", "wrong", "bad", "bad_sent")] == [0, 0, 2, 2]
    assert 0 < found["p50_ms"] <= found["p99_ms"]
    found = serving.load_test(service, [(pictures[0][0], "another label")], count=4, clients=1)
    assert (found["lost"], found["wrong"]) == (0, 4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        number = silent.getsockname()[1]
    found = serving.load_test(f"http://127.0.0.1:{number}", pictures, count=4, clients=2)
    assert (found["lost"], found["wrong"]) == (4, 0)
    assert "| run      | 8" in serving.table([{**found, "served": "run", "clients": 8, "load": 1}])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bundle_is_served_and_ends_when_told(tiny_bundle, tiny_run, paths, number):
    with served("--bundle", tiny_bundle) as (address, process):
        answer = httpx.post(f"{address}/predict", files=files(paths[1].read_bytes()), timeout=60)
        (found,) = answer.json()["predictions"]
        ((first, *_),) = Predictor.load(tiny_run, device="cpu").predict([paths[1]])
        assert found["labels"][0]["label"] == first.name
        assert found["labels"][0]["probability"] == pytest.approx(first.probability, abs=1e-4)
        asked = httpx.post(f"{address}/predict?attention=1", files=files(b"x"), timeout=60)
        assert (asked.status_code, "no attention map" in asked.text) == (422, True)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "either --model-dir RUN, or --bundle DIR"),
        (["--model-dir", "a", "--bundle", "b"], "either --model-dir RUN, or --bundle DIR"),
        (["--model-dir", "absent"], "absent does not exist"),
        (["--bundle", "."], "no bundle.json"),
        (["--bundle", ".", "--device", "cpu"], "go with --model-dir"),
        (["--model-dir", "a", "--max-waiting", "4"], "--max-waiting is 4"),
    ],
)
def test_bad_options_get_one_line(tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    assert serve.main(words) == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("error: ") == 1


def test_a_port_that_is_taken_gets_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match=r"choose another --host or --port"):
            serve.listen("127.0.0.1", taken.getsockname()[1])


def test_answers_do_not_wait_for_receipts():
    with serve.listen("127.0.0.1", 0) as listening:
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


#: drops files of these contents (base64) on the page, as a hand does
DROP = """contents => {
    const held = new DataTransfer();
    for (const [name, text] of contents) {
        const bytes = Uint8Array.from(atob(text), sign => sign.charCodeAt(0));
        held.items.add(new File([bytes], name));
    }
    document.querySelector("#drop").dispatchEvent(
        new DragEvent("drop", { dataTransfer: held, bubbles: true, cancelable: true })
    );
}"""


@pytest.mark.parametrize("width", [1280, 360])
def test_a_picture_that_is_dropped_or_chosen_shows_its_labels(browser, service, paths, width):
    said: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.set_default_timeout(90_000)
    page.goto(service)
    page.get_by_text("MMLoP on tiny").wait_for()
    name = "<img src=x onerror=alert(1)>.txt"
    contents = [("cat.png", paths[0].read_bytes()), (name, b"no picture")]
    page.evaluate(DROP, [(name, base64.b64encode(data).decode()) for name, data in contents])
    page.locator(".picture .bad").wait_for()
    assert page.locator(".picture").count() == 2
    assert page.locator(".picture h2").all_text_contents() == ["cat.png", name]
    words = page.locator(".picture li span:first-child").all_text_contents()
    assert set(words) == {name.replace("_", " ") for name in CLASSNAMES}
    assert page.locator(".picture canvas").count() == 2, "the picture, and the attention map"
    bars = page.locator(".picture li b").evaluate_all("bars => bars.map(b => b.offsetWidth)")
    assert bars == sorted(bars, reverse=True)
    page.set_input_files("#files", paths[1])
    page.get_by_text("1.png").wait_for()
    assert page.locator(".picture").count() == 1
    page.uncheck("#attention")
    page.get_by_text("where the class token looks").wait_for(state="detached")
    page.get_by_text("what the model sees").wait_for()

    def ask_for_three(route) -> None:
        route.continue_(url=route.request.url.replace("top_k=5", "top_k=3"))

    page.route("**/predict?*", ask_for_three)
    page.set_input_files("#files", paths[1])
    page.get_by_text("2 other classes").wait_for()
    shares = page.locator(".picture li span:last-child").all_text_contents()
    total = sum(float(share.removesuffix(" %")) for share in shares)
    assert len(shares) == 4 and total == pytest.approx(100, abs=0.3)
    page.set_input_files("#files", [paths[0]] * 4)
    page.get_by_text("at most 3").wait_for()
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "nothing stands out of the page"
    # the browser's own note on the status 413 is no fault of the page
    strange = [text for text in said if not text.startswith(service) and "413" not in text]
    assert strange == []
    page.close()
