"""publish: what goes to a hub on loopback, byte for byte; what stops it before anything is sent."""

import base64
import hashlib
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sft.cli import InputError
from sft.files import read_json
from sft.lineage import publish
from tests.support.finished_project import make_recorded

TOKEN = "hf_of_a_test"
CARD = "---\nlicense: mit\n---\nOf run {key}.\n"


class Hub(http.server.ThreadingHTTPServer):
    """Takes uploads; weights as large files, all others within the commit."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Upload)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.created, self.files, self.large = {}, {}, {}
        self.refuses = False


class Upload(http.server.BaseHTTPRequestHandler):
    def log_message(self, *parts):
        pass

    def do_PUT(self):
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self):
        body, hub = self.body(), self.server
        if hub.refuses:
            self.answer({"error": "no right to write"}, 403)
        elif self.path.endswith("/repos/create"):
            hub.created = json.loads(body)
            self.answer({"url": f"{hub.url}/own/model"})
        elif "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular"}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
        elif self.path.endswith("/objects/batch"):
            objects = [
                {**file, "actions": {"upload": {"href": f"{hub.url}/put/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
            self.answer({"commitUrl": f"{hub.url}/own/model/commit/1", "commitOid": "1"})
        else:
            self.answer({"errors": [], "warnings": []})  # is the card's front matter valid?

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, value, status=200):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_recorded(tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)  # read when huggingface_hub is imported: by another process
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # a protocol that only the real hub speaks
    yield server
    server.shutdown()
    server.server_close()


def write_card(project: Path, key: str) -> None:
    (project / "reports/card.md").write_text(CARD.format(key=key))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "sft.lineage.publish", "--repo", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def test_what_lineage_lists_goes_with_the_card_of_this_model_and_nothing_else(project, hub):
    final = project / "models/final"
    (final / "mine.txt").write_text("notes")
    write_card(project, key := read_json(final / "lineage.json")["lineage_key"])

    asked = run("own/model")
    assert asked.returncode == 1
    assert "YES=1" in asked.stderr
    assert not hub.created, "nobody said yes"

    sent = run("own/model", "--yes")
    assert sent.returncode == 0, sent.stderr
    assert hub.files == {
        "model.safetensors": (final / "model.safetensors").read_bytes(),
        "lineage.json": (final / "lineage.json").read_bytes(),
        "README.md": CARD.format(key=key).encode(),
    }
    assert hub.created["visibility"] == "private"
    assert sent.stdout.index("model.safetensors") < sent.stdout.index("/commit/1"), "shown first"
    assert "Apache-2.0; MIT and CC-BY-4.0" in sent.stdout


def test_the_card_of_another_model_stays_here(project):
    write_card(project, "ffffffffffffffff")
    files, _ = publish.find_files(publish.FINAL)
    assert set(files) == {"model.safetensors", "lineage.json"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda final: (final / "model.safetensors").write_text("other"), r"model\.safetensors: sha256 is .* changed"),
        (lambda final: (final / "model.safetensors").unlink(), r"model\.safetensors: not found"),
        (lambda final: (final / "lineage.json").unlink(), r"models/final is no trained model"),
    ],
)
def test_a_folder_that_is_not_what_was_trained_is_not_sent(project, damage, message):
    damage(project / "models/final")
    with pytest.raises(InputError, match=message):
        publish.main("own/model", publish.FINAL, yes=True)


def test_a_refusal_of_the_hub_and_a_wrong_name_are_errors_without_the_token(project, hub, monkeypatch):
    hub.refuses = True
    refused = run("own/model", "--yes")
    assert refused.returncode == 1
    assert "hf://models/own/model: cannot upload to the hub: " in refused.stderr
    assert "403" in refused.stderr
    assert TOKEN not in refused.stderr + refused.stdout
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "0")
    hub.refuses = False
    assert "cannot upload to the hub: " in run("own/model", "--yes").stderr, "a server without xet"
    with pytest.raises(InputError, match="REPO=model: expected"):
        publish.main("model", publish.FINAL, yes=True)
