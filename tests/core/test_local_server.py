"""The local server answers only its own page: by address, host and origin, and for requests of a limited size."""

import http.client
import threading

import pytest

from spr.core.errors import ConfigError
from spr.core.local_server import LocalServer, Reply, problem


@pytest.fixture
def server():

    def answer(method, path, request):
        if (method, path) == ("GET", ""):
            return Reply(b"page", "text/html")
        if (method, path) == ("POST", "ask"):
            return Reply(request.body + request.query["q"].encode())
        return problem(404, "not found")

    made = LocalServer(answer, largest=10)
    with made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def send(server, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    names = {"Host": f"127.0.0.1:{server.server_port}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    connection.request(method, path, body, names)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    return reply.status, content, dict(reply.getheaders())


def test_the_page_and_its_routes_are_served_with_strict_headers(server):
    status, content, headers = send(server, "GET", f"/{server.token}/")
    assert (status, content) == (200, b"page")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "spr" in headers["Server"]
    assert "Python" not in headers["Server"]
    assert send(server, "POST", f"/{server.token}/ask?q=%20you", b"hello")[:2] == (200, b"hello you")


def test_everything_else_is_refused(server):
    page = f"/{server.token}/"
    assert send(server, "GET", "/")[0] == 404
    assert send(server, "GET", "/wrong/")[0] == 404
    assert send(server, "GET", f"/{server.token[:-1]}/")[0] == 404
    assert send(server, "GET", page + "../../etc/passwd")[0] == 404
    assert send(server, "POST", page)[0] == 404
    assert send(server, "PUT", page)[0] == 501
    # Another name for this machine, and a page of another site.
    assert send(server, "GET", page, Host=f"evil.example:{server.server_port}")[0] == 403
    assert send(server, "GET", page, Host="127.0.0.1")[0] == 403
    assert send(server, "POST", page + "ask?q=", b"", Origin="http://evil.example")[0] == 403
    assert send(server, "POST", page + "ask?q=", b"", Origin="null")[0] == 403
    own = f"http://localhost:{server.server_port}"
    assert send(server, "POST", page + "ask?q=", b"", Origin=own, Host=own.removeprefix("http://"))[0] == 200


def test_large_bodies_are_refused_without_reading_them(server):
    page = f"/{server.token}/ask?q="
    assert send(server, "POST", page, b"0123456789")[0] == 200
    assert send(server, "POST", page, Content_Length="11")[0] == 413
    assert send(server, "POST", page, Content_Length="-1")[0] == 411
    assert send(server, "POST", page, Content_Length="9" * 50)[0] == 413


def test_an_error_in_a_route_is_answered_and_the_server_goes_on(server):
    assert send(server, "POST", f"/{server.token}/ask")[:2] == (500, b'{"problem":"KeyError: \'q\'"}')
    assert send(server, "GET", f"/{server.token}/")[0] == 200


def test_a_port_in_use_is_a_clear_error(server):
    with pytest.raises(ConfigError, match=f"Port {server.server_port} can't be used"):
        LocalServer(lambda *_: None, server.server_port)


def test_it_listens_on_this_machine_alone_and_tokens_differ(server):
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 32
    with LocalServer(lambda *_: None) as other:
        assert other.token != server.token


def test_after_a_shutdown_the_port_is_free():
    made = LocalServer(lambda *_: Reply(b"page", "text/html"))
    thread = threading.Thread(target=made.serve)
    thread.start()
    assert send(made, "GET", f"/{made.token}/")[0] == 200
    made.shutdown()
    thread.join(10)
    assert not thread.is_alive()
    with LocalServer(lambda *_: None, made.server_port) as again:
        assert again.server_port == made.server_port
