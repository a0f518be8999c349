"""`burnish studio`: the address, the key, and the server itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import uvicorn

from burnish.studio.app import application
from burnish.studio.folder import RunsFolder
from burnish.studio.safety import LOOPBACK, Access, new_token
from burnish.terminal import say

KEY = "BURNISH_STUDIO_KEY"
"""The environment variable with the key, where one is to stay the same."""

SHORTEST = 16


def access_to(host: str) -> Access:
    """Return who may ask a server that listens on an address.

    Raises:
        ValueError: the key in the environment is too short.
    """
    if host in LOOPBACK:
        return Access(host)

    key = os.environ.get(KEY) or new_token()
    if len(key) < SHORTEST or not all(letter.isalnum() or letter in "-_" for letter in key):
        raise ValueError(f"{KEY} needs {SHORTEST} letters, digits, - or _ at least")
    return Access(host, key)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        OSError: it cannot; the message says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"the studio cannot listen on {host}, port {port} ({error.strerror}); choose another "
            "by --port, or --port 0 for any that is free"
        ) from error


def serve(runs: Path, host: str, port: int, allow_code: bool) -> None:
    """Serve the studio until Ctrl+C; trainings that it has started go on.

    Raises:
        ValueError, OSError: the folder is a run, or the address cannot be used.
    """
    folder = RunsFolder.open(runs)
    access = access_to(host)
    shown = f"[{host}]" if ":" in host else host
    key = f"?key={access.key}" if access.key else ""

    config = uvicorn.Config(
        application(folder, access, allow_code),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    listening = listen(host, port)
    # not by `say`, which hides what looks like a key
    print(f"Burnish studio: http://{shown}:{listening.getsockname()[1]}/{key}", flush=True)
    say(f"runs: {folder.root}; Ctrl+C ends the studio, and trainings go on")
    server.run(sockets=[listening])
