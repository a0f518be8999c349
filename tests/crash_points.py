"""Kill a run before each call that touches the disk, resume it, and compare all of its files.

    python -m tests.crash_points                     # every kind of run, every call
    python -m tests.crash_points ddpo guard --every 5
    python -m tests.crash_points ddpo --full         # from that call on the disk is full

After a call the disk is as it is before the next one, so a kill before each call and one in the
middle of each write are all there are. The resumed run is killed once more, at a call drawn from a
seed, and resumed again. Then every file must be that of a run that nobody interrupted, but for the
seconds in the log. Processes are forked from a warm one, so a point takes about a second.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))  # conftest, whether pytest runs or not

import safetensors.torch
import tomli_w
from conftest import build_controlnet, build_lcm, build_pipeline
from PIL import Image

from burnish import config as configuration
from burnish.config import Config
from burnish.runs import Run
from burnish.training.loop import train

KILLED = 137
FAILED = 3  # with one sentence about the disk
BROKEN = 4

REWARDS = """
def brightness(images, prompts):
    return images.mean((1, 2, 3))
def darkness(images, prompts):
    return -images.mean((1, 2, 3))
"""

TEXTS = ["a cat", "a dog"]

SMALL: dict[str, Any] = {
    "iterations": 3,
    "model": {"device": "cpu"},
    "sampler": {"steps": 2, "guidance": {"use": "cfg", "weight": 2.0}},
    "prompts": {"use": "list", "texts": TEXTS},
    "rewards": [{"use": "HERE/reward.py:brightness"}],
    "optimizer": {"lr": 1e-3},
    "batch": {"prompts": 2, "images_per_prompt": 2, "minibatches": 1},
    "evaluation": {"images_per_prompt": 2, "every": 2},
    "run": {"sample_every": 1, "sample_prompts": 2, "keep": 1},
}

GUARD: dict[str, Any] = {
    "iterations": 8,
    "model": {"train": "full"},
    "optimizer": {"lr": 3e-3, "ema": 0.5},
    "batch": {"images_per_prompt": 8, "sample_batch": 16, "train_batch": 32},
    "evaluation": {"images_per_prompt": 4, "every": 1},
    "guard": {
        "action": "rollback",
        "drop": 0.5,
        "panel": [{"use": "HERE/reward.py:darkness"}],
    },
    "run": {"sample_every": 4},
}
"""Brightness is rewarded and darkness watched, so that success is a fall."""

IDENTIFIERS = [{"use": "HERE/reward.py:brightness"}, {"use": "compressibility"}]

KINDS: dict[str, dict[str, Any]] = {
    "ddpo": {"advantage": {"use": "tracker", "buffer": 8, "min_count": 2}},
    "sparse": {"iterations": 5, "run": {"checkpoint_every": 2, "keep": 2, "sample_every": 2}},
    "identifiers": {
        "rewards": IDENTIFIERS,
        "sampler": {"identifiers": "tokens"},
        "batch": {"images_per_prompt": 4},
    },
    "ema": {"optimizer": {"ema": 0.9}},
    "guard": GUARD,
    "stop": {**GUARD, "guard": {**GUARD["guard"], "action": "stop"}},
    "expander": {
        "expander": {"model": "HERE/language", "rank": 2, "lr": 1e-2, "tokens": 4, "expansions": 2},
        "batch": {"images_per_prompt": 4},
    },
    "controlnet": {
        "model": {"controlnet": "HERE/controlnet", "trainable_parts": "both"},
        "prompts": {"use": "jsonl", "path": "HERE/prompts.jsonl"},
        "curriculum": {
            "use": "gated",
            "first": 2.0,
            "last": 0.5,
            "reward": "brightness",
            "above": 0.1,
            "below": 0.0,
            "by": 0.25,
            "smoothing": 0,
        },
    },
    "rlcm": {
        "model": {"id": "HERE/lcm"},
        "sampler": {"kernel": {"use": "lcm"}, "guidance": {"use": "embedded"}},
    },
}
"""By name, what a kind of run adds to `SMALL`."""


# A disk on which calls are counted ----------------------------------------------------------------


class Disk:
    """Counts the calls that touch a folder, and ends the process before one of them.

    Args:
        folder: whose files count.
        at: the number of the call, from 1; 0 only counts.
        half: end in the middle of what the call writes.
        full: do not end the process; from the call on nothing can be written.
    """

    def __init__(
        self, folder: Path, at: int = 0, *, half: bool = False, full: bool = False
    ) -> None:
        self.folder = str(folder)
        self.at = at
        self.half = half
        self.full = full
        self.calls: list[str] = []

    def reached(self, name: str, path: Any, writes: bool = True) -> bool:
        """Count a call; end the process, or return True if this call is to write half."""
        if isinstance(path, (str, os.PathLike)) and os.path.isabs(path):
            if not str(path).startswith(self.folder):
                return False
        elif isinstance(path, (str, os.PathLike)) and not name.endswith("_at"):
            return False

        self.calls.append(name)
        count = len(self.calls)
        if self.full:
            if self.at and count >= self.at and writes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return False
        if count == self.at and not self.half:
            os._exit(KILLED)
        return count == self.at

    def install(self) -> None:
        """Replace the calls in this process, which is not to be used for anything else."""
        for name in ("mkdir", "rmdir", "unlink", "remove", "replace", "rename", "fsync", "symlink"):
            setattr(os, name, self._watched(name, getattr(os, name)))

        opened = builtins.open
        builtins.open = io.open = self._watched_open(opened)  # type: ignore[assignment]
        safetensors.torch.serialize_file = self._watched_tensors(safetensors.torch.serialize_file)

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, *rest: Any, **options: Any) -> Any:
            at = "_at" if options.get("dir_fd") is not None else ""
            self.reached(name + at, path, writes=name in ("mkdir", "fsync"))
            return call(path, *rest, **options)

        return watched

    def _watched_open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if not set(mode) & set("wax+"):
                return call(path, mode, *rest, **options)

            self.reached("open", path)
            file = call(path, mode, *rest, **options)
            return WatchedFile(file, self, path) if str(path).startswith(self.folder) else file

        return watched

    def _watched_tensors(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(tensors: Any, path: Any, **options: Any) -> None:
            half = self.reached("serialize", path)
            call(tensors, path, **options)
            if half:
                os.truncate(path, os.path.getsize(path) // 2)
                os._exit(KILLED)

        return watched


class WatchedFile:
    """A file whose writes are counted."""

    def __init__(self, file: Any, disk: Disk, path: Any) -> None:
        self._file = file
        self._disk = disk
        self._path = path

    def write(self, content: Any) -> int:
        """Write, or only half of it."""
        if self._disk.reached("write", self._path):
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            os._exit(KILLED)
        return int(self._file.write(content))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> WatchedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


# A run, interrupted and resumed -------------------------------------------------------------------


def recipe(kind: str, here: Path) -> Config:
    """Return the configuration of a kind of run; its models are made in the folder `here`."""
    tree = {**SMALL, "model": {**SMALL["model"], "id": str(here / "model")}}
    for name, table in KINDS[kind].items():
        old = tree.get(name, {})
        merges = isinstance(table, dict) and "use" not in table
        tree[name] = {**old, **table} if merges else table

    (here / "reward.py").write_text(REWARDS, "utf-8")
    pipe: Any = build_pipeline("v_prediction")
    pipe.save_pretrained(here / "model")
    if kind == "controlnet":
        build_controlnet(pipe).save_pretrained(here / "controlnet")
        rows = [{"prompt": text, "control": f"{here / text[-3:]}.png"} for text in TEXTS]
        (here / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        for number, row in enumerate(rows):
            Image.new("RGB", (32, 32), (80 * number, 90, 200)).save(row["control"])
    if kind == "rlcm":
        build_lcm().save_pretrained(here / "lcm")  # type: ignore[attr-defined]
    if kind == "expander":
        from test_expander import build_language

        for part in build_language():
            part.save_pretrained(here / "language")

    path = here / "recipe.toml"
    path.write_text(tomli_w.dumps(tree).replace("HERE", str(here)), "utf-8")
    return configuration.load(path)


def fork() -> int:
    """Fork, although pytest may have a thread of its own, which has nothing to do in the child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def in_a_fork(config: Config, folder: Path, disk: Disk | None = None) -> int:
    """Train in a forked process, going on where there is a run; return its exit code."""
    pid = fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)

    code = BROKEN
    try:
        warnings.simplefilter("ignore")
        if disk is not None:
            disk.install()
        train(config, folder, resume=Run(folder).exists())
        code = 0
    except OSError as error:
        code = FAILED if "the disk is full" in str(error) and "\n" not in str(error) else BROKEN
        if code == BROKEN:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)


def counted_calls(config: Config, folder: Path) -> list[str]:
    """Return the calls of an uninterrupted run in `folder`, in their order."""
    names = folder.with_name("calls.txt")
    pid = fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0, "an uninterrupted run fails"
        return names.read_text("utf-8").split()

    warnings.simplefilter("ignore")
    disk = Disk(folder)
    disk.install()
    train(config, folder)
    names.write_text(" ".join(disk.calls), "utf-8")
    os._exit(0)


def contents(folder: Path) -> dict[str, Any]:
    """Return the content of every file of a run, without what differs between equal runs."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == "lock":
            continue
        if name == "log.jsonl":
            found[name] = [
                {key: value for key, value in record.items() if not key.startswith("seconds_")}
                for record in Run(folder).records()
            ]
        else:
            found[name] = path.read_bytes()

    return found


def differences(expected: dict[str, Any], folder: Path) -> list[str]:
    """Return the names of the files that a run lacks, has too many, or has with other content."""
    actual = contents(folder)
    return sorted(
        f"{name} {'is missing' if name not in actual else 'is another'}"
        if name in expected
        else f"{name} is left over"
        for name in expected.keys() | actual.keys()
        if expected.get(name) != actual.get(name)
    )


def interrupt(
    config: Config, folder: Path, expected: dict[str, Any], disk: Disk, again: int = 0
) -> list[str]:
    """Return what is wrong after a run was interrupted at a call and resumed.

    Args:
        config: of the run.
        folder: where it goes.
        expected: the files of an uninterrupted run.
        disk: interrupts it.
        again: the call at which the resumed run is killed once more; 0: it is not.
    """
    code = in_a_fork(config, folder, disk)
    if code not in (0, KILLED, FAILED):
        return [f"it ended with exit code {code}"]
    if again and code:
        in_a_fork(config, folder, Disk(folder, again))
    if not (folder / "guard.json").exists() and (code := in_a_fork(config, folder)):
        return [f"the resumed run ended with exit code {code}"]

    return differences(expected, folder)


Points = Callable[[list[str]], list[tuple[int, bool]]]
"""(names of all calls) -> the (number of a call, whether half of it is done) of each point."""


def check(kind: str, points: Points, full: bool = False) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the (number, call, faults) of each point of a kind of run at which it is interrupted.

    Args:
        kind: of `KINDS`.
        points: chooses where.
        full: the disk is full from there on; otherwise the process is killed.
    """
    with tempfile.TemporaryDirectory(prefix=f"crash-{kind}-") as name:
        here = Path(name)
        config = recipe(kind, here)
        train(config, here / "uninterrupted")  # in this process, which is warm afterwards
        expected = contents(here / "uninterrupted")
        calls = counted_calls(config, here / "counted")
        draw = random.Random(kind)

        for number, half in points(calls):
            folder = here / f"run-{number}{'-half' if half else ''}"
            disk = Disk(folder, number, half=half, full=full)
            faults = interrupt(config, folder, expected, disk, draw.randint(1, len(calls)))
            yield number, calls[number - 1] + (" (half)" if half else ""), faults
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


def points_at(shares: list[float]) -> Points:
    """Return a function that chooses the calls at these shares of all."""
    return lambda calls: [(max(1, round(share * len(calls))), False) for share in shares]


def all_points(every: int, full: bool) -> Points:
    """Return a function that chooses every n-th call, and the middle of those that write."""

    def chosen(calls: list[str]) -> list[tuple[int, bool]]:
        numbers = range(1, len(calls) + 1, every)
        halves = [(n, True) for n in numbers if calls[n - 1] in ("write", "serialize") and not full]
        return sorted([*((n, False) for n in numbers), *halves])

    return chosen


def main(argv: list[str] | None = None) -> int:
    """Check the kinds named on the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--every", type=int, default=1, help="only every n-th call")
    parser.add_argument("--full", action="store_true", help="a full disk instead of a kill")
    options = parser.parse_args(argv)
    failures = 0

    for kind in options.kinds or KINDS:
        began = time.monotonic()
        count = 0
        for number, call, faults in check(
            kind, all_points(options.every, options.full), options.full
        ):
            count += 1
            failures += bool(faults)
            if faults:
                print(f"{kind}, call {number} ({call}): {'; '.join(faults)}", flush=True)
        print(f"{kind}: {count} points in {time.monotonic() - began:.0f} s", flush=True)

    print(f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
