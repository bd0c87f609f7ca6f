"""What the process promises, and the page in a browser: `leandetr serve` as it is started, spoken to over its port."""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from urllib.request import urlopen

import numpy as np
import psutil
import pytest
from PIL import ExifTags, Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def start(detector, tmp_path):
    """start("--max-batch", 3) -> the process and its port, once it answers."""
    processes = []
    detector.save(tmp_path / "tiny")

    def call(*options):
        command = [sys.executable, "-c", "from leandetr.cli import main; main()", "serve", tmp_path / "tiny", "--port", "0"]
        process = subprocess.Popen(
            [*map(str, command), "--threshold", "0", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        line = process.stdout.readline()
        found = re.fullmatch(r".*/tiny on pytorch: http://127\.0\.0\.1:(\d+) \(Ctrl-C stops it\)\n", line)
        assert found, line + process.stderr.read()
        return process, int(found[1])

    yield call
    for process in processes:
        process.kill()
        process.communicate()


def picture(size, kind="JPEG", **options):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    out = BytesIO()
    Image.fromarray(noise).resize(size).save(out, kind, **options)
    return out.getvalue()


def post(port, content, path="/detect"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        connection.request("POST", path, content)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_it_stops_when_it_is_told_to_once_all_is_answered(start, run):
    process, port = start()
    photograph = picture((3000, 2000))
    with ThreadPoolExecutor(6) as threads:
        answers = [threads.submit(post, port, photograph) for _ in range(6)]
        while json.load(urlopen(f"http://127.0.0.1:{port}/health"))["requests"] < 3:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert {answer.result()[0] for answer in answers} == {200}
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def test_a_port_that_is_taken_is_one_sentence(run, detector, tmp_path):
    detector.save(tmp_path / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, out, err = run("serve", tmp_path / "tiny", "--port", taken.getsockname()[1])
    assert (status, out) == (2, "")
    assert re.search(r"^error: cannot listen on 127.0.0.1 port \d+ \(Address already in use\); name another", err)


@pytest.mark.slow
def test_a_hundred_at_once_with_bad_and_huge_files_are_all_answered_in_bounded_memory(start):
    """Photographs of 48 million pixels among them; one takes 144 MB as RGB, and no more than two are ever decoded."""
    process, port = start()
    memory = psutil.Process(process.pid)
    small, large, deep = picture((640, 480)), picture((8000, 6000)), picture((5000, 4000), "PNG")
    sent = {
        200: [small] * 60 + [large] * 8 + [deep] * 2,
        413: [picture((9000, 6000)), bytes(33_000_000)] * 5,
        415: [bytes(20_000_000), b"no image"] * 5,
        400: [b"", small[:5000]] * 5,
    }
    jobs = [(status, content) for status, contents in sent.items() for content in contents]
    order = np.random.default_rng(0).permutation(len(jobs)).tolist()
    assert post(port, small)[0] == 200
    before, peak = memory.memory_info().rss, 0
    with ThreadPoolExecutor(len(jobs)) as threads:
        answers = [(jobs[number][0], threads.submit(until_answered, port, jobs[number][1])) for number in order]
        while not all(answer.done() for _, answer in answers):
            peak = max(peak, memory.memory_info().rss)
            time.sleep(0.02)
    found = Counter((status, answer.result()[0]) for status, answer in answers)
    assert found == {(status, status): len(contents) for status, contents in sent.items()}
    assert peak - before < 1_500_000_000, f"{(peak - before) / 1e6:.0f} MB"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped\n", "")


def until_answered(port, content):
    """As a client does that is told to come again."""
    while (answer := post(port, content))[0] == 503:
        time.sleep(1)
    return answer


@contextmanager
def browser(folder):
    """ask(method, **parameters) -> the answer of a headless Chromium with one page, in its developer tools' protocol, which
    it speaks on file descriptors 3 and 4."""
    orders, put = os.pipe()
    take, answers = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{orders} 4>&{answers}', "bash", CHROMIUM, *flags, f"--user-data-dir={folder}"],
        pass_fds=(orders, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(orders), os.close(answers)
    number, session = 0, {}

    def ask(method, **parameters):
        nonlocal number
        number += 1
        os.write(put, json.dumps({"id": number, "method": method, "params": parameters} | session).encode() + b"\0")
        while (answer := json.loads(read())).get("id") != number:
            pass
        assert "result" in answer, answer
        return answer["result"]

    def read():
        text = bytearray()
        while (byte := stream.read(1)) != b"\0":
            assert byte, "the browser is gone"
            text += byte
        return text

    with os.fdopen(take, "rb") as stream:
        try:
            target = ask("Target.createTarget", url="about:blank")["targetId"]
            session["sessionId"] = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            yield ask
        finally:
            process.kill()
            process.wait()
            os.close(put)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_page_draws_the_boxes_of_a_photograph_in_a_browser(start, tmp_path):
    """Of one that is stored lying on its side: browsers turn it, and so do the boxes' coordinates."""
    _, port = start()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    (tmp_path / "turned.jpg").write_bytes(picture((400, 300), exif=exif))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    _, expected = post(port, (tmp_path / "turned.jpg").read_bytes())
    with browser(tmp_path / "profile") as ask:

        def look(expression):
            answer = ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
            assert "exceptionDetails" not in answer, answer
            return answer["result"].get("value")

        def choose(name):
            document = ask("DOM.getDocument")["root"]["nodeId"]
            chosen = ask("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
            ask("DOM.setFileInputFiles", nodeId=chosen, files=[str(tmp_path / name)])
            end = time.monotonic() + 60
            while name not in (said := look("document.querySelector('#said').textContent")) or "looking" in said:
                assert time.monotonic() < end, said
                time.sleep(0.05)
            return said

        ask("Page.enable")
        ask("Page.navigate", url=f"http://127.0.0.1:{port}/")
        while look("document.readyState") != "complete" or not look("!!document.querySelector('#file')"):
            time.sleep(0.05)
        assert re.fullmatch(r"turned.jpg: 300 × 400 pixels, \d+ ms", choose("turned.jpg"))
        look("(part => { part.value = 0; part.dispatchEvent(new Event('input')); })(document.querySelector('#threshold'))")
        kept = [row for row in expected["detections"] if row["score"] >= 0.05]
        assert kept
        drawn = "[...document.querySelectorAll('svg rect[stroke]')].map(box => ['x', 'y', 'width', 'height'].map(side => "
        assert np.allclose(look(f"{drawn} +box.getAttribute(side)))"), [row["bbox"] for row in reversed(kept)])
        assert look("document.querySelector('svg').getAttribute('viewBox')") == "0 0 300 400"
        texts = look("[...document.querySelectorAll('svg text')].map(text => text.textContent)")
        assert texts == [f"{row['category_name']} {row['score']:.2f}" for row in reversed(kept)]
        size = (
            "(async () => { const i = new Image(); i.src = document.querySelector('svg image').href.baseVal; await i.decode();"
        )
        assert look(f"{size} return [i.naturalWidth, i.naturalHeight]; }})()") == [300, 400]
        assert "broken.jpg is" not in choose("broken.jpg")
        assert look("document.querySelector('#said').className") == "error"
        if folder := os.environ.get("SCREENSHOTS"):
            choose("turned.jpg")
            picture_of = ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
            with open(os.path.join(folder, "page.png"), "wb") as file:
                file.write(base64.b64decode(picture_of))


def test_no_answer_waits_for_an_acknowledgement():
    """A head and its body go out at once; else every answer takes 40 ms more."""
    from leandetr.serving.server import _listening

    with _listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
