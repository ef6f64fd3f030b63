"A student behind an OpenAI-compatible server answers as it does here; a busy server is asked again, a refusal is one clear error."
import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from test_answering import without_time
from world2vlm.core.config import repo_root
from world2vlm.dataset.synthesis import Imagine, Scenes, Supervise
from world2vlm.evaluation.benchmarks.base import ask_benchmark
from world2vlm.evaluation.benchmarks.rooms import load_rooms, make_rooms_benchmark, RoomsBenchmark
from world2vlm.evaluation.view_search import ask_with_search, ViewSearch
from world2vlm.students.models import open_student, Prompt
from world2vlm.teachers.base import load_teacher


def read_part(part: dict):
    "A part of a message as a piece of a prompt."
    if part["type"] == "text": return part["text"]
    return np.array(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))


class Server(BaseHTTPRequestHandler):
    "The base student behind the interface; `refusals` are sent first."
    student, refusals, asked, lock = None, [], [], threading.Lock()

    def log_message(self, *args): pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.asked.append((self.path, self.headers.get("Authorization"), body))
            if self.refusals: return self.send(self.refusals.pop(0), {"error": "busy"})
            system = "".join(m["content"] for m in body["messages"] if m["role"] == "system")
            prompt = Prompt([*map(read_part, body["messages"][-1]["content"])], system)
            words = () if not body.get("logprobs") else tuple("0123456789") if "scores imagined images" in system else ("true", "false")
            [reply] = self.student.reply([prompt], body["max_tokens"], words)
        likely = [dict(token=word, logprob=float(np.log(p))) for word, p in zip(words, reply.probabilities)]
        choice = {"message": {"content": reply.text}, "logprobs": {"content": [{"top_logprobs": likely}]} if words else None}
        self.send(200, {"choices": [choice], "usage": {"total_tokens": reply.tokens}})

    def send(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    out = tmp_path_factory.mktemp("server") / "rooms"
    make_rooms_benchmark(RoomsBenchmark(Scenes(n=1, first=970_000, seed=3, per_shard=1), Imagine(presets={"single": 2}), Supervise(per_scene=1)), out)
    return load_rooms(str(out))[:6]


@pytest.fixture(scope="module")
def direct(): return open_student(repo_root() / "data/base")


@pytest.fixture
def student(direct, monkeypatch):
    Server.student, Server.refusals, Server.asked = direct, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "a secret")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    yield open_student("base", "openai")
    server.shutdown()


def test_it_answers_as_it_does_here(items, direct, student, tmp_path):
    fields = lambda rows: [{name: value for name, value in row.items() if name != "key"} for row in without_time(rows)]
    served = ask_benchmark(student, "rooms", items, tmp_path / "a.jsonl", batch_size=4)
    assert fields(served) == fields(ask_benchmark(direct, "rooms", items, batch_size=1))
    assert {path for path, *_ in Server.asked} == {"/v1/chat/completions"} and {head for _, head, _ in Server.asked} == {"Bearer a secret"}
    assert all(body["temperature"] == 0 and body["model"] == "base" for *_, body in Server.asked)
    assert "secret" not in (tmp_path / "a.jsonl").read_text() + repr(student)


def test_probabilities_of_first_words(items, direct, student):
    prompt = Prompt([*items[0].images[:1], "Is there a chair?"])
    ours, theirs = (s.reply([prompt], 2, ("true", "false"))[0].probabilities for s in (direct, student))
    assert np.allclose(ours, theirs)


def test_a_server_searches_as_the_student_does_here(items, direct, student):
    config, worldmodel = ViewSearch(depth=1, likeliest_scores=True), load_teacher("reprojection")
    ours, theirs = (ask_with_search(s, worldmodel, "rooms", items[:2], config=config) for s in (direct, student))
    same = lambda rows: [(row["id"], row["response"], row["evidence"], row["guessed"]) for row in rows]
    assert same(ours) == same(theirs) and all(row["calls"] == 1 + row["views"] for row in theirs)


def test_a_busy_server_is_asked_again(items, student):
    Server.refusals = [503, 429, 502]
    assert student.reply([Prompt(["Where?"])], 2)[0].tokens > 0 and len(Server.asked) == 4


@pytest.mark.parametrize("refusals,asked", [([401], 1), ([404], 1), ([503] * 9, 5)])
def test_a_refusal_is_one_error(student, refusals, asked):
    Server.refusals = list(refusals)
    with pytest.raises(ValueError, match=f"status {refusals[0]}.*OPENAI_API_KEY.*base"): student.reply([Prompt(["Where?"])], 2)
    assert len(Server.asked) == asked


def test_pictures_are_shrunk_to_max_pixels(student):
    small = open_student("base", "openai", max_pixels=100)
    small.reply([Prompt([np.zeros((40, 80, 3), np.uint8), np.zeros((3, 64, 64, 3), np.uint8), "Where?"])], 2)
    pictures = [read_part(part) for part in Server.asked[-1][2]["messages"][-1]["content"][:-1]]
    assert [picture.shape for picture in pictures] == [(7, 14, 3), *[(10, 10, 3)] * 3]
