"""Serves a reward over HTTP to Burnish's reward `remote`: for rewards whose dependencies do not go
with Burnish's.

    python examples/reward_server.py my_rewards.py:redness          # Burnish need not be installed
    python examples/reward_server.py clip_similarity '{"model": "zoo:emoji-clip"}'     # where it is
    burnish train demo --set 'rewards=[{use="remote", url="http://127.0.0.1:8000"}]'

Only the standard library, numpy, Pillow and torch. The protocol is described in docs/rewards.md.
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
    """The reward: by Burnish's catalog where it is installed, otherwise `file.py:name`."""
    if importlib.util.find_spec("burnish"):
        from burnish import catalog

        return catalog.build("reward", {"use": use, **arguments})

    path, _, name = use.rpartition(":")
    return runpy.run_path(path)[name]


def picture(file: str) -> torch.Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def serve(reward: Callable[..., Any], port: int = 8000) -> ThreadingHTTPServer:
    """A server on this machine only; call its `serve_forever`."""
    # one batch after the other: few models may be called from several threads at once
    lock = Lock()

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status = 400  # a request that cannot be read is not worth sending again

            try:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if asked["version"] != 1:
                    raise ValueError(f"this server speaks version 1, not {asked['version']}")

                images = torch.stack([picture(file) for file in asked["images"]])
                pairs = zip(asked["prompts"], asked["metadata"], strict=True)
                prompts = [
                    SimpleNamespace(text=text, metadata=metadata) for text, metadata in pairs
                ]
                status = 500

                with lock, torch.no_grad():
                    values = torch.as_tensor(reward(images, prompts)).tolist()

                scores = [None if value != value else value for value in values]  # JSON has no NaN
                status = 200
                answer = json.dumps({"scores": scores}, allow_nan=False)
            except Exception as error:  # it goes to the one who asked
                answer = f"{type(error).__name__}: {error}"

            self.send_response(status)
            self.send_header("Content-Length", str(len(answer.encode())))
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *words: object) -> None:
            """Quiet: Burnish reports what failed."""

    return ThreadingHTTPServer(("127.0.0.1", port), Answers)


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    server = serve(load(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) == 3 else {}))
    print(f"{sys.argv[1]} at http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
