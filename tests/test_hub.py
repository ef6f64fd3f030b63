"`fetch` against a small hub of this machine: what arrives, the commit that is noted, a second call, a damaged file."
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

COMMIT, LATER = "1" * 40, "2" * 40


def zipped(files):
    "The bytes of a zip file of `files`: name -> bytes."
    with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
        for name, content in files.items(): archive.writestr(name, content)
    return stream.getvalue()


class Hub(BaseHTTPRequestHandler):
    "What a download asks of the hub: the commit of a revision, its files, and each file at that commit."
    def send(self, body, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": len(body), **headers}.items(): self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET": self.wfile.write(body)

    def do_GET(self):
        self.server.seen.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            commit, _, name = path.partition("/resolve/")[2].partition("/")
            body = self.server.files[name]
            return self.send(body, ETag=f'"{hashlib.sha256(body).hexdigest()}"', X_Repo_Commit=commit)
        *_, kind, revision = path.split("/")
        sizes = {file: len(body) for file, body in self.server.files.items()}
        answer = dict(id="", sha=self.server.commit if revision == "main" else revision, private=False, siblings=[dict(rfilename=file, size=n) for file, n in sizes.items()])
        if kind == "tree": answer = [dict(type="file", path=file, size=n, oid=hashlib.sha1(self.server.files[file]).hexdigest()) for file, n in sizes.items()]
        self.send(json.dumps(answer).encode(), Content_Type="application/json")

    do_HEAD = do_GET

    def log_message(self, *args): pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.commit, server.files = [], COMMIT, {}
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def fetch(hub, name, folder):
    "`fetch` in a process of its own, since the hub's address is read at import."
    environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    code = f"from world2vlm.evaluation.benchmarks.hub import fetch; fetch({name!r}, {str(folder)!r})"
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_a_benchmark_is_fetched_unpacked_and_its_commit_noted(hub, tmp_path):
    hub.files = {"QA.zip": zipped({"QA/questions.jsonl": b"{}\n"}), "README.md": b"not asked for"}
    run = fetch(hub, "enact", tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "QA/questions.jsonl").read_bytes() == b"{}\n" and not (tmp_path / "README.md").exists()
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["benchmark"], stats["repository"], stats["revision"]) == ("enact", "MLL-Lab/ENACT", COMMIT)


def test_a_second_fetch_keeps_the_commit_of_the_first(hub, tmp_path):
    hub.files = {"QA.zip": zipped({"QA/questions.jsonl": b"{}\n"})}
    assert fetch(hub, "enact", tmp_path).returncode == 0
    hub.commit, hub.seen = LATER, []
    assert fetch(hub, "enact", tmp_path).returncode == 0
    assert json.loads((tmp_path / "stats.json").read_text())["revision"] == COMMIT
    assert all(COMMIT in request for request in hub.seen) and not any(request.startswith("GET") and "/resolve/" in request for request in hub.seen)


def test_a_known_commit_is_asked_for_and_a_damaged_archive_named(hub, tmp_path):
    hub.files = {"MMSI_Bench.parquet": b"PAR1", "other.parquet": b""}
    assert fetch(hub, "mmsi", tmp_path / "mmsi").returncode == 0
    assert all("/ec7c92bfaf7728fcca1d61e3e224e190af309436" in request for request in hub.seen)
    hub.files = {"QA.zip": b"no archive"}
    run = fetch(hub, "enact", tmp_path / "enact")
    assert run.returncode and "QA.zip" in run.stderr.splitlines()[-1] and "fetch it again" in run.stderr.splitlines()[-1]
    assert not (tmp_path / "enact/stats.json").exists()
    hub.files = {"QA.zip": zipped({"QA/questions.jsonl": b"{}\n"})}  # mended at the hub
    assert fetch(hub, "enact", tmp_path / "enact").returncode == 0
