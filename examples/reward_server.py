"""Serve a reward over HTTP to Burnish's reward `remote`.

It is for rewards whose dependencies conflict with Burnish's.

    python examples/reward_server.py my_rewards.py:redness    (Burnish need not be installed here)
    python examples/reward_server.py clip_similarity '{"model": "zoo:emoji-clip"}'   (with Burnish)
    burnish train demo --set 'rewards=[{use="remote", url="http://127.0.0.1:8000"}]'

Where Burnish is installed, it serves any reward that Burnish can name. Only the standard library,
numpy, Pillow and torch. The protocol is described in docs/rewards.md.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import runpy
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image


def load(use: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    """Return a reward: by Burnish's catalog where it is installed, otherwise `file.py:name`."""
    if importlib.util.find_spec("burnish"):
        from burnish import catalog

        return catalog.build("reward", {"use": use, **arguments})

    path, _, name = use.rpartition(":")
    return runpy.run_path(path)[name]


def decode_image(file: str) -> torch.Tensor:
    """Return the image (3, H, W) in [0, 1] of a file in base64."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def parse(request: dict[str, Any]) -> tuple[torch.Tensor, list[SimpleNamespace]]:
    """Return the images (B, 3, H, W) and the prompts of a request."""
    if request["version"] != 1:
        raise ValueError(f"this server speaks version 1, not {request['version']}")

    images = torch.stack([decode_image(file) for file in request["images"]])
    pairs = zip(request["prompts"], request["metadata"], strict=True)
    return images, [SimpleNamespace(text=text, metadata=metadata) for text, metadata in pairs]


def serve(reward: Callable[..., Any], port: int = 8000) -> ThreadingHTTPServer:
    """Return a server on this machine only; call its `serve_forever`."""
    # one batch after the other: few models may be called from several threads at once
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = 400  # a request that cannot be read is not worth sending again

            try:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                images, prompts = parse(json.loads(body))
                status = 500

                with lock, torch.no_grad():
                    values = torch.as_tensor(reward(images, prompts)).tolist()

                scores = [None if value != value else value for value in values]  # JSON has no NaN
                status = 200
                answer = json.dumps({"scores": scores}, allow_nan=False)
            except Exception as error:  # the client gets it as the answer
                answer = f"{type(error).__name__}: {error}"

            self.send_response(status)
            self.send_header("Content-Length", str(len(answer.encode())))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *arguments: object) -> None:
            """Print nothing: Burnish reports failures."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)

    arguments = json.loads(sys.argv[2]) if len(sys.argv) == 3 else {}
    server = serve(load(sys.argv[1], arguments))
    print(f"{sys.argv[1]} at http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
