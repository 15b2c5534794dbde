"""Who may ask the local page for what."""

import http.client
import json

import pytest

from spr.core.local_server import HOST, LARGEST


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from workflows.conftest import made_run

    return made_run(tmp_path_factory.mktemp("made"), 2).write()


@pytest.fixture
def served(run, serve):
    return serve(run, "ana", token="secret")  # noqa: S106


def ask(served, method="GET", path="/secret/", body=None, **headers):
    connection = http.client.HTTPConnection(HOST, served.server.server_port, timeout=20)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in names)
    if body is not None:
        names = {"Content-Type": "application/json", "Content-Length": str(len(body))} | names
    for name, value in names.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    reply = connection.getresponse()
    data = reply.read()
    connection.close()
    return reply, data


def decide(served, **fields):
    body = {"pair": 0, "reviewer": "ana", "action": "accept"} | fields
    reply, data = ask(served, "POST", "/secret/decide", json.dumps(body).encode())
    return reply.status, json.loads(data)


def test_the_page_and_its_files_come_with_a_strict_policy(served):
    for path in (
        "",
        "review.js",
        "editor.js",
        "pair.js",
        "report.css",
        "review.css",
        "index",
        "state/ana",
        "pair/1/ana",
    ):
        reply, data = ask(served, path=f"/secret/{path}")
        assert (reply.status, bool(data)) == (200, True), path
        policy = reply.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert not [name for name in reply.headers if name.lower().startswith("access-control")]
    assert ask(served, path="/secret/image/0")[0].headers["Content-Type"] == "image/png"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/secret",
        "/secre/",
        "/wrong/",
        "/secret/../",
        "/secret/review.py",
        "/secret/templates/review.html",
        "/secret/pair/2/ana",
        "/secret/pair/-1/ana",
        "/secret/pair/9999999999999/a",
        "/secret/image/x",
    ],
)
def test_without_the_token_or_elsewhere_there_is_nothing(served, path):
    # Without the final slash it is the page too; nothing else is found.
    assert ask(served, path=path)[0].status == (200 if path == "/secret" else 404)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:80", None])
def test_other_names_for_this_machine_are_refused(served, host):
    assert ask(served, Host=host)[0].status == 403


def test_both_names_of_this_machine_are_fine(served):
    assert ask(served, Host=f"localhost:{served.server.server_port}")[0].status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": None}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": str(LARGEST + 1)}, 413),
        ({"Content_Length": "9" * 50}, 413),
    ],
)
def test_requests_that_change_something_must_be_json_of_this_page(served, headers, status):
    body = json.dumps({"pair": 0, "reviewer": "ana", "action": "accept"}).encode()
    assert ask(served, "POST", "/secret/decide", body, **headers)[0].status == status
    assert (served.run / "reviews.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b"[" * 5000,
        b'{"pair": 0}',
        b'{"pair": "0", "reviewer": "a", "action": "burn"}',
        b'{"pair": 7, "reviewer": "a", "action": "accept"}',
        b'{"pair": 0, "reviewer": "", "action": "accept"}',
        b'{"pair": 0, "reviewer": "a\\u0007", "action": "accept"}',
        b'{"pair": 0, "reviewer": 3, "action": "accept"}',
        b'{"pair": 0, "reviewer": "a", "action": ["accept"]}',
        b'{"pair": 0, "reviewer": "a", "action": "edit"}',
        b'{"pair": 0, "reviewer": "a", "action": "edit", "text": "x", "boxes": [["1"]]}',
        b'{"pair": 0, "reviewer": "a", "action": "edit", "text": "[x](1)", "boxes": [[1, 2]]}',
        b'{"pair": 0, "reviewer": "a", "action": "edit", "answer": "unknown"}',
        b'{"pair": 0, "reviewer": "a", "action": "edit", "answer": ["unknown"]}',
        b'{"pair": 0, "reviewer": "a", "action": "edit", "text": "[a](1)", "boxes": [[NaN, 0, 1, 1]]}',
    ],
)
def test_what_is_no_decision_is_refused_with_a_reason(served, body):
    reply, data = ask(served, "POST", "/secret/decide", body)
    assert reply.status == 422
    assert json.loads(data)["problem"]
    assert (served.run / "reviews.jsonl").read_bytes() == b""


def test_a_decision_is_on_disk_when_it_is_answered_and_others_are_shown_after_ones_own(served):
    assert decide(served)[0] == 200
    assert len((served.run / "reviews.jsonl").read_text().splitlines()) == 1
    for path, others in (("pair/0/ben", {}), ("pair/0/ana", {})):
        assert json.loads(ask(served, path=f"/secret/{path}")[1])["others"] == others
    status, reply = decide(served, reviewer="ben", action="reject")
    assert (status, reply["outcome"], reply["others"]) == (200, "conflict", {"ana": "accept"})
    state = json.loads(ask(served, path="/secret/state/b%65n")[1])
    assert state["outcomes"] == ["conflict", "undecided"]
    assert [own and own["action"] for own in state["mine"]] == ["reject", None]
    (served.run / "reviews.jsonl").write_text("")


def test_an_edit_that_changes_nothing_is_an_acceptance(served):
    pair = json.loads(ask(served, path="/secret/pair/1/ana")[1])
    assert pair["edit"]["text"] == "[a cup](1) and [a second cup](2)"
    _, reply = decide(served, pair=1, action="edit", **pair["edit"])
    assert reply["mine"]["action"] == "accept"
    (served.run / "reviews.jsonl").write_text("")


def test_what_can_not_be_saved_is_said_to_be_not_saved(served):
    (served.run / "reviews.jsonl").unlink()
    status, reply = decide(served)
    assert status == 503
    assert "can't be written" in reply["problem"]
