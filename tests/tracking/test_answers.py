"""answers: whatever a server answers, training begins and ends, in bounded time and memory; 401 and 403 stop it."""

import http.server
import resource
import threading
import time

import pytest
import requests

from sft.tracking import answers, sync
from sft.tracking import store as store_of_runs
from sft.tracking.answers import AnswerError, bound_answers
from sft.tracking.journal import Journal
from tests.support.tracked_run import begin, log_step


class Server(http.server.ThreadingHTTPServer):
    """Answers every request in one way."""

    daemon_threads = True

    def __init__(self, answer):
        self.answer, self.requests = answer, 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            self.server.answer(self)
        except OSError:
            pass  # the client closed the connection

    do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_):
        pass

    def send(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def endless(handler, status=200):
    handler.send(status, Content_Length=str(1 << 40))
    while True:
        handler.wfile.write(b" " * (1 << 20))


def slow(handler):
    handler.send(200, Content_Length="1000")
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(1)


def silent(handler):
    time.sleep(900)


def closed(handler):
    handler.connection.close()


ANSWERS = {
    "empty": lambda handler: handler.send(200),
    "empty object": lambda handler: handler.send(200, b"{}"),
    "list": lambda handler: handler.send(200, b"[]"),
    "page": lambda handler: handler.send(200, b"<html>Welcome</html>"),
    "bytes": lambda handler: handler.send(200, b"\xff\xfe\x00\x1b[31m"),
    "cut": lambda handler: handler.send(200, b'{"experiment": {', Content_Length="100"),
    "null": lambda handler: handler.send(200, b'{"experiment": null, "runs": null, "run": null}'),
    "other types": lambda handler: handler.send(200, b'{"experiment": 3, "runs": {"a": 1}, "run": [1]}'),
    "empty experiment": lambda handler: handler.send(200, b'{"experiment": {}, "runs": [{}], "run": {}}'),
    "no run": lambda handler: handler.send(200, b'{"experiment": {"experiment_id": "1"}, "run": {"info": {}}}'),
    "moved in a circle": lambda handler: handler.send(302, Location=handler.path),
    "not found": lambda handler: handler.send(404),
    "not found, JSON": lambda handler: handler.send(404, b'{"error_code": "ENDPOINT_NOT_FOUND"}'),
    "error": lambda handler: handler.send(500, b"x" * 10_000),
    "unavailable": lambda handler: handler.send(503),
    "teapot": lambda handler: handler.send(418, b'{"error_code": "NO_SUCH_CODE", "message": 7}'),
    "closed": closed,
    "endless": endless,
    "endless error": lambda handler: endless(handler, 503),
    "slow": slow,
    "silent": silent,
}
REFUSALS = {
    "401": lambda handler: handler.send(401, b"no"),
    "403": lambda handler: handler.send(403, b"no"),
    "403, JSON": lambda handler: handler.send(403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}'),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sync, "PATIENCE", 0.0)
    monkeypatch.setattr(answers, "MAX_BYTES", 4 << 20)


@pytest.fixture
def quick(small, monkeypatch):
    monkeypatch.setattr(sync, "LONGEST_SYNC", 2.0)
    monkeypatch.setattr(answers, "MAX_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")


@pytest.mark.parametrize("name", ANSWERS)
def test_training_begins_and_ends_whatever_the_server_answers(tmp_path, quick, monkeypatch, capsys, name):
    server = Server(ANSWERS[name])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    run_journal = begin(tmp_path)
    run, began = run_journal.folder.parent, time.monotonic()
    sync.check_server(run)
    with sync.sync_at_exit(run) as message, sync.sync_in_background(run):
        log_step(run_journal, 1, 1.0)
        time.sleep(0.3)
    server.shutdown()
    assert server.requests > 0
    assert time.monotonic() - began < 200, "a tenth of what the slowest answer takes"
    output = capsys.readouterr()
    assert server.url in output.out
    assert "Traceback" not in output.err
    assert "\x1b" not in output.out
    assert "pending" in message.text or "kept" in message.text
    assert Journal(run).pending(server.url) > 0


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_user_stops_training_at_its_beginning_only(tmp_path, small, monkeypatch, name):
    server = Server(REFUSALS[name])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    run_journal = begin(tmp_path)
    with pytest.raises(store_of_runs.NoAccessError, match="MLFLOW_TRACKING_USERNAME"):
        sync.check_server(run_journal.folder.parent)
    with sync.sync_at_exit(run_journal.folder.parent) as message, sync.sync_in_background(run_journal.folder.parent):
        log_step(run_journal, 1, 1.0)
    assert "refuses" in message.text


def test_an_endless_answer_is_not_read_into_memory(small):
    bound_answers()
    server = Server(endless)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AnswerError, match="4 MiB"):
        requests.get(server.url, timeout=60)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    server.shutdown()


@pytest.mark.parametrize("chunked", [False, True])
def test_an_ordinary_answer_is_read_as_before(small, chunked):
    def answer(handler):
        if chunked:
            handler.protocol_version = "HTTP/1.1"
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        else:
            handler.send(200, b"abcde")

    bound_answers()
    bound_answers()
    server = Server(answer)
    assert requests.get(server.url, timeout=60).text == "abcde"
    server.shutdown()
