"""Serve a vision-language model behind OpenAI's chat completions.

It runs on this machine, and the server needs only the standard library.

    python examples/vlm_server.py                              # zoo:emoji-captioner on port 8000
    python examples/vlm_server.py llava-hf/llava-1.5-13b-hf --port 8001

    [[rewards]]
    use = "caption"
    model = "http://127.0.0.1:8000"

The model runs in a process of its own: if it does not fit beside the generator, it gets a GPU of
its own. One image and one question a request; requests are answered one after the other. For many
GPUs, batches and keys take vLLM or the like.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

import torch

from burnish.images import read_image
from burnish.rewards.vlm import Local

MAX_BYTES = 32_000_000  # of a request


def reply(model: Local, request: dict) -> dict:
    """Return the answer to one request in OpenAI's form.

    Raises:
        ValueError, KeyError, TypeError: the request has another form.
    """
    parts = [
        part
        for message in request["messages"]
        for part in message["content"]
        if isinstance(part, dict)
    ]
    question = " ".join(part["text"] for part in parts if part["type"] == "text")
    (url,) = (part["image_url"]["url"] for part in parts if part["type"] == "image_url")

    if not url.startswith("data:image/"):
        raise ValueError("the image must be a data: URL")

    file = base64.b64decode(url.partition(",")[2], validate=True)
    image = read_image(io.BytesIO(file), "the image of the question")
    text = model(image[None], [question])[0] or ""
    message = {"role": "assistant", "content": text}

    return {
        "object": "chat.completion",
        "model": request.get("model", ""),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


def server(model: Local, port: int = 8000) -> ThreadingHTTPServer:
    """Return a server on this machine's own address; call its `serve_forever`.

    Port 0 takes a free one.
    """
    lock = Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                if self.path != "/v1/chat/completions" or not 0 < length <= MAX_BYTES:
                    raise ValueError("POST one request to /v1/chat/completions")

                request = json.loads(self.rfile.read(length))
                with lock:
                    self._send(200, reply(model, request))
            except (ValueError, KeyError, TypeError, OSError) as error:
                self.close_connection = True  # unread bytes of the request may still come
                self._send(400, {"error": {"message": f"{type(error).__name__}: {error}"}})

        def _send(self, status: int, answer: dict) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing: Burnish reports failures."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", default="zoo:emoji-captioner", help="a hub id, a folder or the zoo's"
    )
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    with server(Local.load(options.model, options.device), options.port) as serving:
        print(f"{options.model} answers at http://127.0.0.1:{serving.server_port}/v1", flush=True)
        serving.serve_forever()


if __name__ == "__main__":
    main()
