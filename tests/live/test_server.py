"""What browsers are told, and who is told nothing."""

import http.client
import json
import socket
import threading

import pytest

from s2vfast.errors import ConfigError
from s2vfast.live import feed as feeds
from s2vfast.live.feed import Feed
from s2vfast.live.server import Server


def look(second, number=0):
    return [second, number, [[0, 0.75]]]


def test_who_comes_late_gets_the_last_seconds():
    feed = Feed(seconds=10)
    for second in range(30):
        feed.publish(second, {"frames": second, "bodies": [[second]]}, [look(second)], [[second, "no frame"]])
    feed.publish(29.5, {"waiting": 1})
    number, [text] = feed.read(None, 0)
    update = json.loads(text)
    assert update["reset"]
    assert [second for second, *_ in update["looks"]] == list(range(20, 30))
    assert [line for line, _ in update["broken"]] == list(range(22, 30))
    assert update["state"] == {"frames": 29, "bodies": [[29]], "waiting": 1}
    assert update["now"] == 29.5
    assert feed.read(number, 0.01) == (number, [])
    feed.publish(31, {"frames": 30}, [look(31)])
    feed.publish(32, {"frames": 31}, [look(32)])
    number, texts = feed.read(number, 0)
    assert [json.loads(text)["looks"] for text in texts] == [[look(31)], [look(32)]]
    assert all("reset" not in json.loads(text) for text in texts)


def test_a_slow_reader_loses_no_look():
    feed = Feed()
    feed.publish(0, {})
    number, _ = feed.read(None, 0)
    for second in range(2 * feeds._UPDATES):
        feed.publish(second / 100, {}, [look(second / 100)])
    number, [text] = feed.read(number, 0)
    assert json.loads(text)["reset"]
    assert len(json.loads(text)["looks"]) == 2 * feeds._UPDATES
    assert feed.read(number, 0.01)[1] == []


def test_a_reader_waits_for_what_is_new():
    feed = Feed()
    number, _ = feed.read(None, 0)
    threading.Timer(0.05, lambda: feed.publish(1, {"frames": 1})).start()
    _, [text] = feed.read(number, 30)
    assert json.loads(text)["state"] == {"frames": 1}


@pytest.fixture
def server():
    made = Server("<p>page</p>", Feed())
    yield made
    made.stop()


def ask(server, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()


def test_the_server_is_this_machines_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    port = server.server_address[1]
    with pytest.raises(OSError):  # noqa: PT011 - another of this machine's addresses
        socket.create_connection(("127.0.0.2", port), timeout=5)
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        response = ask(server, Host=host)
        assert (response.status, response.read()) == (200, b"<p>page</p>")
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in response.headers
        assert "Python" not in response.headers.get("Server", "")


@pytest.mark.parametrize("path", ["/", "/events"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Host": "127.0.0.1:{port}", "Origin": "http://evil.example"},
        {"Host": "127.0.0.1:{port}", "Origin": "null"},
    ],
    ids=str,
)
def test_a_foreign_name_reads_nothing(server, path, headers):
    port = server.server_address[1]
    response = ask(server, path, **{name: value.format(port=port) for name, value in headers.items()})
    text = response.read().decode()
    assert response.status == 403
    assert text == f"this server answers to 127.0.0.1:{port} and localhost:{port} alone\n"


def test_there_is_nothing_else(server):
    host = server.url.removeprefix("http://").rstrip("/")
    for path in ("/etc/passwd", "/../", "/?", "/events/", f"http://{host}/"):
        assert ask(server, path, Host=host).status == 404
    connection = http.client.HTTPConnection(host, timeout=30)
    connection.request("POST", "/")
    assert connection.getresponse().status == 501


def test_events_come_until_the_end(server, watch):
    server.feed.publish(1, {"frames": 1}, [look(1)])
    early = watch(server.url)
    early.until(lambda update: "reset" in update)
    server.feed.publish(2, {"frames": 2}, [look(2)])
    early.until(lambda update: update["state"].get("frames") == 2)
    late = watch(server.url, {"Origin": server.url.rstrip("/")})
    assert len(late.until(lambda update: "reset" in update)["looks"]) == 2
    assert late.response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    server.feed.publish(3, {"ended": "stopped"})
    server.feed.close()
    for reader in (early, late):
        reader.wait_for_end()
        assert reader.state()["ended"] == "stopped"
    assert early.looks() == [look(1), look(2)]
    assert {update["session"] for update in early.updates} == {server.feed._session}


def test_a_browser_that_goes_away_is_forgotten(server, capfd):
    host = server.url.removeprefix("http://").rstrip("/")
    browser = socket.create_connection(server.server_address, timeout=30)
    browser.sendall(f"GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert browser.recv(20).startswith(b"HTTP/1.1 200")
    feed = server.feed
    with feed._changed:
        assert feed._changed.wait_for(lambda: feed._readers == 1, 30)
    browser.close()
    for second in range(100):  # the first write after it tells nothing yet
        feed.publish(second, {"bodies": [[0.5] * 2000]})
        with feed._changed:
            if feed._changed.wait_for(lambda: not feed._readers, 0.3):
                break
    assert feed._readers == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("port", [-1, 2**16])
def test_a_port_that_is_none(port):
    with pytest.raises(ConfigError, match="--port: .*; a number from 0 to 65535 is expected"):
        Server("", Feed(), port)


def test_a_port_that_is_taken(server):
    with pytest.raises(ConfigError, match=r"--port: \d+ cannot be used \(Address already in use\); another, or 0"):
        Server("", Feed(), server.server_address[1])
