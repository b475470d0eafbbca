"""A reward, cost or utility of pictures that another program answers over HTTP, such as a large model with a GPU of its own:

    SCORER=http://localhost:8000/score saddlepoint train safediffusion --reward http_score:HTTPScore ...

It is sent {"images": [a PNG in base64, ...], "prompts": [...]} and answers {"scores": [a number for each picture]}.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import time
import urllib.request
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from saddlepoint.types import ForeignFault


class HTTPScore:
    """Built anew by each process, from the environment: SCORER is the address, SCORER_SECONDS how long it may take."""

    def __init__(self) -> None:
        self.address = os.environ.get("SCORER", "http://localhost:8000/score")
        self.seconds = float(os.environ.get("SCORER_SECONDS", "60"))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(batch, 3, height, width) in [0, 1] -> (batch,). Raises ``ForeignFault``: the run then ends in one sentence,
        with a checkpoint to resume from."""
        content = json.dumps({"images": [png(image) for image in images], "prompts": list(prompts)}).encode()
        try:
            answer = json.loads(self._post(content))
        except (OSError, ValueError, http.client.HTTPException) as error:  # what is down, slow, refuses, or answers something else than JSON
            raise ForeignFault(
                f"the scorer {self.address} gives no scores within {self.seconds:g} s ({error}): see to it, then resume."
            ) from error
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list) or not all(type(score) in (int, float) for score in scores):
            raise ForeignFault(f'the scorer {self.address} must answer {{"scores": [numbers]}}, not {str(answer)[:80]}.')
        return torch.tensor(scores, dtype=torch.float32)  # how many they are, and whether finite, is looked at outside

    def _post(self, content: bytes) -> bytes:
        """The whole answer, in ``seconds``: a time limit of urllib is one for each piece of it."""
        until = time.monotonic() + self.seconds
        request = urllib.request.Request(self.address, content, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=self.seconds) as reply:
            pieces = []
            while piece := reply.read1(65536):
                pieces.append(piece)
                if time.monotonic() > until:
                    raise TimeoutError("it is still answering")
        return b"".join(pieces)


def png(image: Tensor) -> str:
    """(3, height, width) in [0, 1] as a PNG in base64."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
