"""The memory that this process can still take.

A control group (of a container or a batch job) may allow less than the machine has:

    version 2    memory.max - memory.current              of the group and of all above it
    version 1    memory.limit_in_bytes - memory.usage_in_bytes

What either counts has the files that were read, which the kernel gives up for programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = "sys/fs/cgroup"
VERSIONS = (
    ("", "memory.max", "memory.current"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of control groups: the controller, and the files with the limit and with what is used."""


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that programs can still take; None where they cannot be read.

    Args:
        root: of the file system with `proc` and `sys`.
    """
    match = re.search(r"MemAvailable: *(\d+) kB", _read(root / "proc/meminfo"))
    machine = [int(match[1]) * 1024] if match else []
    return min([*machine, *_left_in_groups(root)], default=None)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield the bytes that each control group with a limit leaves."""
    for controller, limit_name, used_name in VERSIONS:
        top = root / CGROUPS / controller
        found = re.search(rf"^\d+:{controller}:/(.*)$", _read(root / "proc/self/cgroup"), re.M)
        own = top / found[1] if found else top

        for folder in (own, *own.parents):
            limit, used = _read(folder / limit_name).strip(), _read(folder / used_name).strip()
            if limit.isdigit() and used.isdigit():
                yield max(0, int(limit) - int(used) + _of_files(folder))
            if folder == top:
                break


def _of_files(folder: Path) -> int:
    """Return the bytes of files in memory that a control group counts as used."""
    stat: dict[str, str] = dict(re.findall(r"^(\w+) (\d+)$", _read(folder / "memory.stat"), re.M))
    names = ("active_file", "inactive_file")
    return sum(int(stat.get(f"total_{name}", stat.get(name, "0"))) for name in names)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError:
        return ""
