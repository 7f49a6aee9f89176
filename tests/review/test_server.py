"""The server of a review: only the page with the token gets in, and every decision is written."""

from __future__ import annotations

import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnext.errors import CheckpointError, InputError
from resnext.neighbours import Neighbour
from resnext.review import decisions
from resnext.review.cases import Case
from resnext.review.decisions import Entry, LabelList
from resnext.review.map import Points
from resnext.review.server import ReviewServer
from resnext.review.session import Session


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ReviewServer]:
    """A review of three images: a doubt and two that look alike."""
    entries: list[Entry] = []
    for i, label in enumerate(("cat", "dog", "dog")):
        path = tmp_path / f"{i} & <b>.png"
        Image.fromarray(np.full((300, 2400, 3), 90 * i, np.uint8)).save(path)
        entries.append(Entry(str(path), label))
    a, b, c = (entry.path for entry in entries)
    cases = [
        Case("doubt", (a,), "score 0.98", "dog", (("dog", 0.98), ("cat", 0.02))),
        Case("duplicate", (b, c), "Equal files"),
    ]
    labels = LabelList(tmp_path / "labels.csv", entries)
    server = ReviewServer(Session("photos", cases, labels, ("cat", "dog", "fox")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def call(
    server: ReviewServer,
    place: str,
    body: Any = None,
    token: str | None = None,
    **headers: str,
) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    content = None if body is None else json.dumps(body)
    kind = {} if body is None else {"Content-Type": "application/json"}
    address = f"/{server.token if token is None else token}/{place}"
    connection.request("GET" if body is None else "POST", address, content, kind | headers)
    answer = connection.getresponse()
    result = answer.status, answer.read(), dict(answer.headers)
    connection.close()
    return result


def test_decisions_are_in_the_file_at_once(server: ReviewServer) -> None:
    """Nothing may be lost when the terminal is closed: the file is read after each answer."""
    file = server.session.labels.file

    def column() -> list[str]:
        return [line.rpartition(",")[2] for line in file.read_text().splitlines()[1:]]

    assert call(server, "decide", {"case": 0, "labels": ["dog"]})[0] == 200
    assert column() == ["changed", "", ""]
    assert json.loads(call(server, "decide", {"case": 1, "labels": ["dog", None]})[1]) == {
        "decided": 2
    }
    assert column() == ["changed", "kept", "left out"]
    assert json.loads(call(server, "undo", {})[1]) == {"case": 1, "decided": 1}
    assert column() == ["changed", "", ""]
    assert json.loads(call(server, "undo", {})[1])["case"] == 0
    assert json.loads(call(server, "undo", {})[1])["case"] is None
    assert column() == ["", "", ""]


def test_similar_images_are_sent_whole(server: ReviewServer) -> None:
    """The page may load nothing that is not in the answer; without an index there are none."""
    assert json.loads(call(server, "similar/0")[1]) == []
    session = server.session
    found = [Neighbour("a.jpg", "dog", 0.25, 3, b"jpeg")]
    similar = Session(
        "photos", session.cases, session.labels, session.classes, similar=lambda _: found
    )
    server.session = similar
    assert json.loads(call(server, "similar/1")[1]) == [
        {
            "name": "a.jpg",
            "label": "dog",
            "distance": 0.25,
            "image": "data:image/jpeg;base64,anBlZw==",
        }
    ]
    assert call(server, "similar/9")[0] == 404
    assert call(server, "similar/0", token="wrong")[0] == 403


def test_a_decision_is_not_asked_for_again(server: ReviewServer) -> None:
    """The next review goes on where this one ended."""
    session = server.session
    call(server, "decide", {"case": 0, "labels": ["cat"]})
    labels = LabelList(session.labels.file, [])
    again = Session("photos", session.cases, labels, session.classes)
    assert [case.kind for case in again.cases] == ["duplicate"]


@pytest.mark.parametrize(
    ("place", "options"),
    [
        ("", {"token": "wrong"}),
        ("", {"token": ""}),
        ("cases.json", {"Host": "example.org"}),
        ("cases.json", {"Host": "127.0.0.1"}),
        ("decide", {"body": {"case": 0, "labels": ["dog"]}, "Origin": "http://example.org"}),
        ("decide", {"body": {"case": 0, "labels": ["dog"]}, "Origin": "null"}),
        ("decide", {"body": {"case": 0, "labels": ["dog"]}, "token": "wrong"}),
    ],
)
def test_others_are_refused(server: ReviewServer, place: str, options: dict[str, Any]) -> None:
    """Other pages in the browser, and names that were rebound to this machine."""
    status, content, _ = call(server, place, **options)
    assert (status, content) == (403, b"Open the address that resnext review printed.")
    assert not server.session.labels.file.exists()


def test_the_page_loads_nothing_from_elsewhere(server: ReviewServer) -> None:
    """A strict policy, with a nonce that is new for each answer."""
    policies = set()
    for _ in range(2):
        status, page, headers = call(server, "", Origin=f"http://127.0.0.1:{server.server_port}")
        assert status == 200
        policy = headers["Content-Security-Policy"]
        policies.add(policy)
        assert "default-src 'none'" in policy
        nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
        assert page.count(f'nonce="{nonce}"'.encode()) == 2
        assert b"{{ nonce" not in page
        assert b"http" not in page
    assert len(policies) == 2
    assert server.server_address[0] == "127.0.0.1"


def test_pictures_are_sent_as_jpeg(server: ReviewServer) -> None:
    """Also of formats that no browser shows; never larger than a screen."""
    status, content, headers = call(server, "image/1/1")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert content[:2] == b"\xff\xd8"
    for place in ("image/1/2", "image/7/0", "image/-1/0", "image/0/../1", "labels.csv"):
        assert call(server, place)[0] == 404
    Path(server.session.cases[0].paths[0]).unlink()
    assert b"no such file" in call(server, "image/0/0")[1]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"case": 9, "labels": ["cat"]},
        {"case": 0, "labels": ["cow"]},
        {"case": 0, "labels": []},
    ],
)
def test_strange_decisions_are_refused(server: ReviewServer, body: Any) -> None:
    """A class that the data lacks would make the list useless."""
    assert call(server, "decide", body)[0] == 400
    assert not server.session.labels.file.exists()


def test_a_decision_that_cannot_be_written_says_so(
    server: ReviewServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: the page must not go on as if it were saved."""

    def full(*_: object) -> None:
        raise CheckpointError("labels.csv cannot be written: no space left.")

    monkeypatch.setattr(decisions, "write_bytes_atomically", full)
    status, content, _ = call(server, "decide", {"case": 0, "labels": ["dog"]})
    assert (status, content) == (500, b"labels.csv cannot be written: no space left.")
    assert server.session.decided == 0


def test_a_port_in_use_is_one_line(server: ReviewServer) -> None:
    """A traceback of socketserver says nothing about what to do."""
    with pytest.raises(InputError, match=rf"Port {server.server_port} cannot be used.*--port"):
        ReviewServer(server.session, server.server_port)
    with pytest.raises(InputError, match=r"Port 80000 cannot be used: .*must be 0-65535\. Give"):
        ReviewServer(server.session, 80_000)


def test_the_map_labels_many_at_once(server: ReviewServer) -> None:
    """Written at once, and taken back as one."""
    session = server.session
    assert call(server, "map")[0] == 404
    names = [entry.path for entry in session.labels.entries]
    n = len(names)
    places, whole = np.zeros((n, 2)), np.zeros(n, int)
    session.points = Points(
        places, names, session.classes, whole, whole, np.ones(n), ("train",), whole
    )
    status, page, headers = call(server, "map")
    nonce = headers["Content-Security-Policy"].partition("script-src 'nonce-")[2].partition("'")[0]
    assert status == 200
    assert page.count(f'nonce="{nonce}"'.encode()) == 4
    assert call(server, "picture/2")[2]["Content-Type"] == "image/jpeg"
    assert call(server, "picture/3")[0] == 404
    assert call(server, "label", {"images": [0, 2], "label": "fox"})[0] == 200
    rows = session.labels.file.read_text().splitlines()[1:]
    assert [row.split(",")[1:] for row in rows] == [
        ["fox", "changed"], ["dog", ""], ["fox", "changed"]
    ]  # fmt: skip
    assert call(server, "label", {"images": [1], "label": None})[0] == 200
    for bad in ({"images": [9], "label": "fox"}, {"images": [0], "label": "cow"}):
        assert call(server, "label", bad)[0] == 400
    for _ in range(2):
        call(server, "undo", {})
    assert [entry.decision for entry in session.labels.entries] == ["", "", ""]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Names of files are bytes; an answer that cannot be written would break the connection."""
    entry = Entry(os.fsdecode(b"%s/caf\xe9.png" % os.fsencode(tmp_path)), "cat")
    session = Session("photos", [Case("unsure", (entry.path,), "")], labels := LabelList(
        tmp_path / "labels.csv", [entry]
    ), ("cat", "dog"))  # fmt: skip
    server = ReviewServer(session)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        status, content, _ = call(server, "image/0/0")
        assert (status, b"no such file" in content) == (404, True)
        assert json.loads(call(server, "cases.json")[1])["cases"][0]["paths"] == [entry.path]
        assert call(server, "decide", {"case": 0, "labels": ["dog"]})[0] == 200
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert b"caf\xe9.png,dog,changed" in labels.file.read_bytes()
