"""What a server promises: the answers of `leandetr predict` in the field names of others, and one sentence for everything else,
whatever is sent and however much."""

import asyncio
import json
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import ExifTags, Image

from leandetr.deployment.predict import predict_sources
from leandetr.serving.app import application
from leandetr.serving.limits import HELD, ServerLimits
from leandetr.structures import ClassMap


def bytes_of(kind, mode="RGB", size=(90, 60), **options):
    """The bytes of a noisy picture."""
    channels = {"RGBA": (4,), "CMYK": (4,), "RGB": (3,)}.get(mode, ())
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    image = Image.fromarray(noise.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(noise, mode)
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def png_head(width, height):
    """A PNG that says its size and holds no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + head
        + struct.pack(">I", zlib.crc32(head))
        + struct.pack(">I", 9)
        + b"IDAT"
    )


PHOTOGRAPHS = {
    "plain.jpg": bytes_of("JPEG"),
    "turned.jpg": bytes_of("JPEG", exif=turned(6)),
    "mirrored.png": bytes_of("PNG", exif=turned(4)),
    "deep.png": bytes_of("PNG", "I;16"),
    "clear.webp": bytes_of("WEBP", "RGBA"),
    "print.jpg": bytes_of("JPEG", "CMYK"),
}


@pytest.fixture
def predicted(runtime, tmp_path):
    """What `leandetr predict --format coco` writes of each photograph."""
    names = list(PHOTOGRAPHS)
    for name, content in PHOTOGRAPHS.items():
        (tmp_path / name).write_bytes(content)
    categories = [{"id": i, "name": n} for i, n in zip(runtime.class_map.dataset_ids, runtime.class_map.names)]
    images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    sources = [tmp_path / name for name in names]
    file = predict_sources(runtime, sources, tmp_path / "out", form="coco", annotations=tmp_path / "truth.json", pictures=False)
    rows = json.loads(file.read_text())
    return {name: [row for row in rows if row["image_id"] == number] for number, name in enumerate(names)}


def test_answers_are_those_of_predict_however_a_photograph_is_sent(serve, runtime, predicted):
    client, names = serve(), dict(zip(runtime.class_map.dataset_ids, runtime.class_map.names))
    batch = client.post("/detect/batch", files=[("any", (name, content)) for name, content in PHOTOGRAPHS.items()]).json()
    assert [row.pop("file") for row in batch] == list(PHOTOGRAPHS)
    for (name, content), several in zip(PHOTOGRAPHS.items(), batch, strict=True):
        raw = client.post("/detect", content=content).json()
        form = client.post("/detect", files={"file": (name, content)}).json()
        assert raw["detections"] == form["detections"] == several["detections"]
        assert len(raw["detections"]) == 12
        assert raw["image"] == ({"width": 60, "height": 90} if name == "turned.jpg" else {"width": 90, "height": 60})
        expected = [{key: value for key, value in row.items() if key != "image_id"} for row in predicted[name]]
        assert raw["detections"] == [row | {"category_name": names[row["category_id"]]} for row in expected]


def test_the_other_form_is_read_by_roboflows_own_reader(serve, runtime):
    answer = serve().post("/detect?format=roboflow", content=PHOTOGRAPHS["turned.jpg"]).json()
    read = sv.Detections.from_inference(answer)
    expected = runtime.predict(Image.open(BytesIO(PHOTOGRAPHS["turned.jpg"])).transpose(Image.Transpose.ROTATE_270), 0)
    assert np.allclose(read.xyxy, expected.boxes.numpy(), atol=1e-4)
    assert np.allclose(read.confidence, expected.scores.numpy())
    assert read.class_id.tolist() == expected.labels.tolist()
    assert read.data["class_name"].tolist() == [runtime.class_map.names[label] for label in expected.labels]
    assert answer["image"] == {"width": 60, "height": 90}
    assert answer["time"] > 0


def test_the_threshold_is_the_servers_where_a_request_does_not_say(serve):
    client, photograph = serve(threshold=1.0), PHOTOGRAPHS["plain.jpg"]
    assert client.post("/detect", content=photograph).json()["detections"] == []
    scores = [row["score"] for row in client.post("/detect?threshold=0", content=photograph).json()["detections"]]
    middle = sorted(scores)[6]
    found = client.post(f"/detect?threshold={middle}", content=photograph).json()["detections"]
    assert sorted(row["score"] for row in found) == sorted(scores)[6:]


def test_of_several_frames_the_first_is_looked_at_and_that_is_said(serve):
    frames, out = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")], BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert serve().post("/detect", content=out.getvalue()).json()["image"] == {
        "width": 64,
        "height": 48,
        "several_frames": True,
    }


def form(**files):
    return {"files": [("file", (name, content)) for name, content in files.items()]}


JPEG = PHOTOGRAPHS["plain.jpg"]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.mark.parametrize(
    ("path", "sent", "status", "sentence"),
    [
        ("/detect", {"content": b""}, 400, "the request is empty; send a photograph"),
        ("/detect", {"content": JPEG[:-200]}, 400, "the photograph cannot be decoded .*truncated"),
        ("/detect", form(a=JPEG[:300]), 400, "a cannot be decoded"),
        ("/detect", {"content": b"no image"}, 415, "the photograph is not an image that is read here; send one of JPEG, PNG"),
        ("/detect", {"content": EPS}, 415, "not an image that is read here"),
        ("/detect", form(a=JPEG, b=JPEG), 413, "more than 1 photograph; send several to /detect/batch"),
        ("/detect", {"data": {"threshold": "0.5"}, **form(a=JPEG)}, 400, r"field 'threshold' is no file; .* \?threshold=0.5"),
        ("/detect", {"content": b"abc", "headers": {"Content-Type": "multipart/form-data"}}, 400, "the form cannot be taken"),
        ("/detect", {"content": png_head(6000, 6000)}, 413, "6000 x 6000 pixels, more than 20 million; send a smaller one"),
        ("/detect", {"content": png_head(20000, 20000)}, 413, "more than 178 million pixels"),
        ("/detect", {"content": b"\0" * 1_000_001}, 413, "the request has more than 1 MB"),
        ("/detect", form(a=b"\0" * 1_000_000), 413, "the request has more than 1 MB"),
        ("/detect/batch", form(a=JPEG, b=JPEG, c=JPEG), 413, "more than 2 photographs; send them in several requests"),
        ("/detect/batch", form(**dict.fromkeys("abcdefgh", JPEG)), 413, "Too many files"),
        ("/detect?treshold=0.5", {"content": JPEG}, 400, "unknown parameter 'treshold': did you mean 'threshold'"),
        ("/detect?threshold=2", {"content": JPEG}, 400, "threshold: input should be less than or equal to 1"),
        ("/detect?format=voc", {"content": JPEG}, 400, "format: input should be 'coco' or 'roboflow'"),
        ("/detects", {"content": JPEG}, 404, "POST /detects is not answered here; known are"),
    ],
)
def test_what_is_not_answered_is_one_sentence(serve, path, sent, status, sentence):
    answer = serve(megabytes=1, megapixels=20, batch=2).post(path, **sent)
    assert answer.status_code == status
    (error,) = answer.json().values()
    assert re.search(sentence, error)
    assert "\n" not in error


def test_one_bad_file_of_a_batch_is_refused_alone(serve):
    rows = serve().post("/detect/batch", **form(a=JPEG, b=b"no image", c=JPEG)).json()
    assert [row["file"] for row in rows] == ["a", "b", "c"]
    assert rows[1]["status"] == 415
    assert "b is not an image" in rows[1]["error"]
    assert rows[0]["detections"] == rows[2]["detections"]


def call(app, messages, **headers):
    """One request by hand -> status, and how many messages of its body were read; after the last one the client is gone."""
    sent, read = [], 0

    async def receive():
        nonlocal read
        read += 1
        return messages(read)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/detect", "raw_path": b"/detect", "query_string": b"", "root_path": "",
        "scheme": "http", "http_version": "1.1", "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], read


def test_no_more_is_read_than_the_limit(runtime):
    app = application(runtime, 0.3, ServerLimits(megabytes=2))

    def endless(number):
        return {"type": "http.request", "body": b"\0" * 500_000, "more_body": True}

    assert call(app, endless) == (413, 5)
    assert call(app, endless, **{"content-length": "2000001"}) == (413, 0)


def test_nothing_is_looked_at_for_a_client_that_is_gone(runtime, monkeypatch):
    looked = []
    monkeypatch.setattr(type(runtime), "predict", lambda *arguments: looked.append(arguments))

    def gone(number):
        return {"type": "http.request", "body": JPEG, "more_body": False} if number == 1 else {"type": "http.disconnect"}

    call(application(runtime, 0.3, ServerLimits()), gone)
    assert not looked


class Held:
    """A runtime that waits, at its every photograph, until it is let go."""

    def __init__(self, runtime):
        self.runtime, self.begun, self.go = runtime, threading.Semaphore(0), threading.Event()

    def __getattr__(self, name):
        return getattr(self.runtime, name)

    def predict(self, image, threshold):
        self.begun.release()
        assert self.go.wait(30)
        return self.runtime.predict(image, threshold)


def test_what_is_too_much_at_once_is_told_to_come_again_and_nothing_is_lost(serve, runtime):
    held = Held(runtime)
    client = serve(runtime=held, requests=3)
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(client.post, "/detect", content=JPEG) for _ in range(3)]
        assert held.begun.acquire(timeout=30)
        while client.get("/health").json()["requests"] < 3:
            time.sleep(0.01)
        refused = client.post("/detect", content=JPEG)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert "3 requests are being answered already; send it again" in refused.json()["error"]
        held.go.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 3
    assert client.get("/health").json()["requests"] == 0
    assert client.post("/detect", content=JPEG).status_code == 200


def test_bytes_that_wait_are_bounded_as_requests_are(serve, runtime):
    """Whoever does not say how much it sends may send as much as is allowed."""
    held = Held(runtime)
    client = serve(runtime=held, megabytes=1)
    with ThreadPoolExecutor(HELD) as threads:
        large = JPEG + bytes(950_000)
        waiting = [threads.submit(client.post, "/detect", content=large) for _ in range(HELD)]
        assert held.begun.acquire(timeout=30)
        while client.get("/health").json()["requests"] < HELD:
            time.sleep(0.01)
        assert client.post("/detect", content=iter([JPEG])).status_code == 503
        small = threads.submit(client.post, "/detect", content=JPEG)
        held.go.set()
        assert {answer.result().status_code for answer in [*waiting, small]} == {200}


def test_a_detector_that_fails_is_said_and_the_next_photograph_is_answered(serve, runtime, monkeypatch, caplog):
    client, predict = serve(), runtime.predict
    monkeypatch.setattr(runtime, "predict", lambda *_: torch.zeros(2) @ torch.zeros(3))
    answer = client.post("/detect", content=JPEG)
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "the detector failed on the photograph; the server's log says why"},
    )
    assert "RuntimeError" in caplog.text
    monkeypatch.setattr(runtime, "predict", predict)
    assert client.post("/detect", content=JPEG).status_code == 200


def test_health_says_what_is_served(serve, runtime):
    about = serve(threshold=0.4, batch=7).get("/health").json()
    assert about["ready"] is True
    assert (about["model"], about["engine"], about["image_size"]) == ("tiny", "pytorch", {"height": 128, "width": 128})
    assert about["classes"][4] == {"id": 90, "name": runtime.class_map.names[4]}
    assert (about["threshold"], about["limits"]["batch"]) == (0.4, 7)


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "action")]


def test_the_page_loads_nothing_and_takes_names_as_text(serve, runtime, monkeypatch):
    monkeypatch.setattr(type(runtime), "class_map", ClassMap(("</script><h6>", "<img src=x>"), (1, 2)))
    runtime.artifact = "<h5>.onnx"
    answer = serve().get("/")
    page = Tags(answer.text)
    assert not {"img", "h5", "h6"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert page.loaded == ["data:,"]
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
