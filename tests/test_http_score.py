"""examples/http_score.py: a scorer that answers over HTTP, and one sentence for one that is down, slow or answers nonsense."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from saddlepoint.safediffusion.reward import load_plugin, scored
from saddlepoint.types import ForeignFault, NonFiniteError

PIL = pytest.importorskip("PIL.Image")
EXAMPLES = Path(__file__).parents[1] / "examples"
IMAGES = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a sign", "a naïve scene", "a red square"]


class Scorer(BaseHTTPRequestHandler):
    """Answers with ``body``, made of what it was sent; ``pause`` seconds after each of its bytes."""

    status, pause = 200, 0.0

    def body(self, asked) -> bytes:
        pictures = [np.asarray(PIL.open(io.BytesIO(base64.b64decode(each)))) for each in asked["images"]]
        scores = [float(picture.mean()) + len(prompt) for picture, prompt in zip(pictures, asked["prompts"], strict=True)]
        return json.dumps({"scores": scores}).encode()

    def do_POST(self) -> None:
        answer = self.body(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.end_headers()
        for i in range(len(answer)) if self.pause else ():
            time.sleep(self.pause)
            try:
                self.wfile.write(answer[i : i + 1])
            except OSError:
                return
        if not self.pause:
            self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def score(monkeypatch):
    """Of a scorer that is made of the given attributes: what a run makes of its answer."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    servers = []

    def of(**attributes) -> torch.Tensor:
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Scorer,), attributes)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        monkeypatch.setenv("SCORER", f"http://127.0.0.1:{servers[-1].server_port}/score")
        return scored(load_plugin("--reward", "http_score:HTTPScore"), "--reward", IMAGES, PROMPTS)

    yield of
    for server in servers:
        server.shutdown()
        server.server_close()
    sys.modules.pop("http_score", None)


def test_a_scorer_is_sent_the_pictures_and_their_prompts(score):
    wanted = (IMAGES * 255).round().mean((1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in PROMPTS])
    torch.testing.assert_close(score(), wanted, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(
    ("attributes", "fault", "words"),
    [
        ({"body": lambda self, asked: b"<html>busy</html>"}, ForeignFault, "gives no scores"),
        ({"body": lambda self, asked: b'{"scores": ["high", 1, 2]}'}, ForeignFault, "must answer"),
        ({"body": lambda self, asked: b'{"scores": [true, 1, 2]}'}, ForeignFault, "must answer"),
        ({"body": lambda self, asked: b"[1, 2, 3]"}, ForeignFault, "must answer"),
        ({"body": lambda self, asked: b'{"scores": [1, 2]}'}, ForeignFault, r"shape \(2,\) for 3 images"),
        ({"body": lambda self, asked: b'{"scores": [1, 2, NaN]}'}, NonFiniteError, "not finite"),
        ({"status": 503}, ForeignFault, "gives no scores .*503"),
    ],
)
def test_nonsense_is_one_sentence(score, attributes, fault, words):
    with pytest.raises(fault, match=words) as error:
        score(**attributes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attributes", [{"body": lambda self, asked: time.sleep(3) or b"{}"}, {"pause": 0.05}])
def test_a_slow_scorer_is_one_sentence_in_a_bounded_time(score, monkeypatch, attributes):
    monkeypatch.setenv("SCORER_SECONDS", "0.4")
    began = time.monotonic()
    with pytest.raises(ForeignFault, match=r"gives no scores within 0\.4 s \(.*(timed out|still answering)"):
        score(**attributes)
    assert time.monotonic() - began < 2.5


def test_a_scorer_that_is_down_is_one_sentence(score, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setenv("SCORER", "http://127.0.0.1:9/score")
    with pytest.raises(ForeignFault, match=r"gives no scores .*refused"):
        scored(load_plugin("--reward", "http_score:HTTPScore"), "--reward", IMAGES, PROMPTS)
