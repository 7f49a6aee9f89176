"""What each route answers, over a real socket."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fakes import CARD, DIM, LABELS, Fake
from helpers import wait_until
from PIL import Image
from sample_images import png_that_claims
from serving_cases import Gated, Served, form, photo, served

from resnext.neighbours.index import Neighbour
from resnext.neighbours.unknown import UnknownScore
from resnext.prediction.images import predict
from resnext.serving.guard import LOG
from resnext.serving.run import logging_to_stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as one:
        yield one


@pytest.mark.parametrize("path", ["/v1/predict", "/predict"])
@pytest.mark.parametrize(
    "kind", ["image/png", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_an_image_as_the_body(server: Served, path: str, kind: str) -> None:
    """`curl --data-binary` sends the last of these types."""
    image = photo(140)
    status, got = server.ask(f"{path}?top=3", image, Content_Type=kind)
    (wanted,) = predict(Fake(), [image], top=3)
    (result,) = got["results"]
    assert status == 200
    assert [one["label"] for one in result["top"]] == list(wanted.labels)
    shares = [one["probability"] for one in result["top"]]
    assert shares == pytest.approx(wanted.probabilities, abs=1e-6)
    assert (result["label"], result["probability"]) == (wanted.label, shares[0])
    assert (result["unsure"], result["unknown"]) == (not wanted.sure, None)
    assert set(got["model"]) == {"name", "version"}
    assert "embedding" not in result


def test_curl_with_the_wrong_option(server: Served) -> None:
    """`curl -d @photo.jpg` sends what is left of the file without zero bytes and line ends."""
    rest = photo().translate(None, b"\r\n\0")
    kind = "application/x-www-form-urlencoded"
    status, problem = server.ask("/v1/predict", rest, Content_Type=kind)
    assert (status, problem["type"]) == (422, "urn:resnext:damaged-image")
    assert "--data-binary" in problem["detail"]


def test_an_image_without_a_type(server: Served) -> None:
    status, got = server.ask("/v1/predict", photo(), Content_Type="")
    assert (status, len(got["results"][0]["top"])) == (200, 5)


def test_several_images_in_order(server: Served) -> None:
    """One of them is damaged, which is its own error."""
    levels = [0, 50, 100, 150, 200, 250]
    images = [*map(photo, levels)]
    images.insert(2, b"no image")
    body, kind = form(images)
    status, got = server.ask("/v1/predict?top=1&embedding=true", body, Content_Type=kind)
    assert status == 200
    bad = got["results"].pop(2)
    assert [one["label"] for one in got["results"]] == list(LABELS)
    assert [round(one["embedding"][0]) for one in got["results"]] == levels
    assert bad["error"]["status"] == 422
    assert set(bad["error"]) == {"type", "title", "status", "detail"}
    assert "not a readable image" in bad["error"]["detail"]


def test_no_image_is_good(server: Served) -> None:
    body, kind = form([b"one", photo()[:60]])
    status, got = server.ask("/v1/predict", body, Content_Type=kind)
    assert (status, len(got["results"])) == (422, 2)
    status, got = server.ask("/v1/predict", b"one")
    assert (status, got["type"]) == (422, "urn:resnext:damaged-image")
    assert "results" not in got


def test_embeddings(server: Served) -> None:
    """As JSON, or as bytes with their shape."""
    body, kind = form([photo(10), photo(20)])
    _, got = server.ask("/v1/embed", body, Content_Type=kind)
    accept = "application/octet-stream, application/json;q=0.5"
    status, headers, content = server.send("/v1/embed", body, Content_Type=kind, Accept=accept)
    rows = np.frombuffer(content, "<f4").reshape(2, DIM)
    assert (status, headers["x-shape"], headers["x-dtype"]) == (200, f"2,{DIM}", "float32")
    assert [one["embedding"] for one in got["results"]] == rows.tolist()
    body, kind = form([photo(10), b"bad"])
    refused, _ = server.ask("/v1/embed", body, Content_Type=kind, Accept=accept)
    assert refused == 422  # whose row would be missing


def test_a_model_without_maps_explains_nothing(server: Served) -> None:
    status, got = server.ask("/v1/explain", photo())
    assert (status, got["type"]) == (404, "urn:resnext:no-maps")


def test_the_model(server: Served) -> None:
    _, got = server.ask("/v1/model")
    assert (got["labels"], got["threshold"]) == (list(LABELS), CARD.threshold)
    assert got["preprocessing"]["size"] == 8
    assert got["limits"] == {
        "bytes": 20_000_000,
        "pixels": 50_000_000,
        "images": 16,
        "top": len(LABELS),
        "seconds": 30.0,
    }


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_probes(server: Served, path: str) -> None:
    assert server.send(path)[0] == 200


BIG = png_that_claims(10_000, 5_001)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "kind"),
    [
        ("/nowhere", None, {}, 404, "about:blank"),
        ("/v1/predict", None, {}, 405, "about:blank"),
        ("/v1/predict?top=0", photo(), {}, 422, "urn:resnext:parameter"),
        ("/v1/predict?top=7", photo(), {}, 422, "urn:resnext:parameter"),
        ("/v1/predict?top=%D9%A3", photo(), {}, 422, "urn:resnext:parameter"),
        ("/v1/predict?embedding=maybe", photo(), {}, 422, "urn:resnext:parameter"),
        ("/v1/predict", photo(), {"Accept": "text/html"}, 406, "urn:resnext:accept"),
        ("/v1/predict", photo(), {"Accept": "*/*;q=0"}, 406, "urn:resnext:accept"),
        ("/v1/predict", b"{}", {"Content-Type": "application/json"}, 415, "urn:resnext:media-type"),
        ("/v1/predict", photo(), {"Content-Encoding": "gzip"}, 415, "urn:resnext:encoding"),
        ("/v1/predict", b"", {}, 422, "urn:resnext:damaged-image"),
        ("/v1/predict", BIG, {}, 422, "urn:resnext:damaged-image"),
        ("/v1/predict", photo(kind="PNG")[:70], {}, 422, "urn:resnext:damaged-image"),
        ("/v1/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, 422, None),
        (
            "/v1/predict",
            b"x",
            {"Content-Type": "multipart/form-data"},
            400,
            "urn:resnext:multipart",
        ),
    ],
)
def test_errors(
    server: Served, path: str, body: bytes | None, headers: dict[str, str], status: int, kind: str
) -> None:
    """Each has its status, and says what to do."""
    got, problem = server.ask(path, body, **headers)
    assert got == problem["status"] == status
    assert kind is None or problem["type"] == kind
    assert problem["detail"]


def test_methods_are_named(server: Served) -> None:
    assert server.send("/v1/predict")[1]["allow"] == "POST"
    assert server.send("/v1/model", b"")[1]["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (form([photo()] * 17)[0], 422),
        (form([])[0], 422),
        (form([photo()], "file")[0], 400),
        (form([photo()])[0][:-30], 400),
        (b"nothing of a form", 400),
        (b"--edge\r\n\r\nx\r\n--edge--\r\n", 400),
        (b"", 400),
        (b"x\r\n" + form([photo()])[0], 400),
        (b"\r\n" + form([photo()])[0] + b"what follows is not read", 200),
        (form([photo()])[0].replace(b'"images"', b"images"), 200),
        (form([photo()])[0].replace(b"secret name", b"a; name=other"), 200),
        (form([photo()])[0].replace(b"Content-Type", b"X: " + b"y" * 9000 + b"\r\nA"), 400),
        (form([photo(kind="JPEG")])[0].replace(b"--edge--", b"--edges--"), 400),
        (b"--edge\r\n" * 100_000, 400),
    ],
)
def test_damaged_forms(server: Served, body: bytes, status: int) -> None:
    got, _ = server.ask("/v1/predict", body, Content_Type="multipart/form-data; boundary=edge")
    assert got == status


def test_what_is_no_http(server: Served) -> None:
    with server.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00 hello\r\n\r\n")
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["status"] == 400


def test_an_image_at_the_limit_is_read() -> None:
    """The limit counts the pixels of the file."""
    with served(pixels=40 * 40) as server:
        assert server.ask("/v1/predict", photo(side=40))[0] == 200
        assert server.ask("/v1/predict", photo(side=41))[0] == 422


def test_security_headers(server: Served) -> None:
    for path in ("/healthz", "/nowhere"):
        _, headers, _ = server.send(path)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_one_line_in_the_log(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    """It has no names of files and no contents, nor what was asked in the address."""
    body, kind = form([photo()])
    with caplog.at_level(logging.INFO, "resnext.serving"):
        server.ask("/v1/predict?top=2&secret=name", body, Content_Type=kind)
        server.ask("/secret", None)
        server.ask("/v1/predict", b"--edgy secret", Content_Type=kind)
        wait_until(lambda: len(caplog.records) == 3)
    first, second, third = (record.getMessage() for record in caplog.records)
    assert third.startswith("POST /v1/predict 400 ")
    assert first.startswith("POST /v1/predict 200 ")
    assert second.startswith("GET other 404 ")
    assert "secret" not in first + second


def test_the_log_of_a_server_ends_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A program may serve twice, or log otherwise afterwards."""
    for _ in range(2):
        with logging_to_stderr():
            LOG.info("a line")
    assert capsys.readouterr().err.count("a line") == 2
    assert not LOG.handlers
    assert LOG.propagate


def test_images_like_none_and_like_others() -> None:
    """With an index: whether an image is unknown, and its neighbours, without their names."""

    class Index:
        def nearest(self, embeddings: np.ndarray, k: int) -> list[list[Neighbour]]:
            assert embeddings.shape == (1, DIM)
            one = Neighbour("/home/me/secret.jpg", "snow", 0.12345678, 3, b"\xff\xd8")
            return [[one] * k]

    with served() as server:
        model: Any = server.service.model
        embedding = Gated().pixels(np.full((1, 8, 8, 3), 200, np.uint8))[1][0]
        bank = np.stack([embedding / np.linalg.norm(embedding)] * 5)
        model.index, model.unknown = Index(), UnknownScore(bank, 1e-3)
        body, kind = form([photo(200), b"bad", photo(0)])
        _, got = server.ask("/v1/predict?neighbours=2", body, Content_Type=kind)
        known, bad, new = got["results"]
        assert (known["unknown"], new["unknown"]) == (False, True)
        wanted = {"label": "snow", "distance": 0.123457, "jpeg": "/9g="}
        assert known["neighbours"] == new["neighbours"] == [wanted, wanted]
        assert set(bad) == {"error"}
        assert server.metric("resnext_unknown_total") == 1
        assert "neighbours" not in server.ask("/v1/predict", photo())[1]["results"][0]


def test_metrics() -> None:
    with served() as server:
        body, kind = form([photo(0), photo(0), photo(250), b"bad"])
        server.ask("/v1/predict", body, Content_Type=kind)
        server.ask("/v1/predict", b"bad")
        wanted = {
            'resnext_images_total{outcome="answered"}': 3,
            'resnext_images_total{outcome="damaged"}': 2,
            'resnext_predictions_total{label="coal"}': 2,
            'resnext_predictions_total{label="été"}': 1,
            'resnext_requests_total{route="/v1/predict",code="200"}': 1,
            'resnext_requests_total{route="/v1/predict",code="422"}': 1,
            'resnext_stage_seconds_count{stage="decode"}': 5,
            'resnext_stage_seconds_count{stage="queue"}': 3,
            'resnext_stage_seconds_count{stage="read"}': 2,
            "resnext_batch_images_sum": 3,
            "resnext_queue_images": 0,
            "resnext_queue_bytes": 0,
            "resnext_ready": 1,
        }
        assert {name: server.metric(name) for name in wanted} == wanted


def test_outputs_that_are_no_numbers() -> None:
    """They were probabilities of NaN, which is not JSON."""

    class Sick(Gated):
        def pixels(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            logits, embeddings = super().pixels(x)
            logits[x.mean((1, 2, 3)) > 200] = np.nan
            return logits, embeddings

    with served(Sick()) as server:
        body, kind = form([photo(0), photo(250)])
        status, got = server.ask("/v1/predict", body, Content_Type=kind)
        assert (status, got["results"][1]["error"]["status"]) == (200, 503)
        assert server.ask("/v1/predict", photo(250))[0] == 503


def test_grey_images_of_16_bits(server: Served) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9), 51_200, np.uint16)).save(buffer, "PNG")
    _, got = server.ask("/v1/predict", buffer.getvalue())
    assert got["results"][0]["label"] == "snow"
