"""Free memory, of the machine and of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from burnish.diffusion.memory import free_memory

GROUPS = "sys/fs/cgroup"
MEMINFO = {"proc/meminfo": "MemTotal: 900 kB\nMemAvailable:    500 kB\n"}
UNLIMITED = str(2**63 - 4096)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMINFO, 512_000),
        (
            {**MEMINFO, f"{GROUPS}/memory.max": "max\n", f"{GROUPS}/memory.current": "7\n"},
            512_000,
        ),
        (
            {**MEMINFO, f"{GROUPS}/memory.max": "9000\n", f"{GROUPS}/memory.current": "7000\n"},
            2000,
        ),
        (  # the files that were read can be given up
            {
                f"{GROUPS}/memory.max": "9000\n",
                f"{GROUPS}/memory.current": "7000\n",
                f"{GROUPS}/memory.stat": "anon 3900\nactive_file 100\ninactive_file 3000\n",
            },
            5100,
        ),
        (  # the group above allows less
            {
                "proc/self/cgroup": "0::/jobs/one\n",
                f"{GROUPS}/jobs/one/memory.max": "max\n",
                f"{GROUPS}/jobs/one/memory.current": "10\n",
                f"{GROUPS}/jobs/memory.max": "400\n",
                f"{GROUPS}/jobs/memory.current": "100\n",
            },
            300,
        ),
        (  # version 1; a group of the host is not seen in a container, whose own is the top
            {
                **MEMINFO,
                "proc/self/cgroup": "4:memory:/docker/one\n0::/\n",
                f"{GROUPS}/memory/memory.limit_in_bytes": "8000\n",
                f"{GROUPS}/memory/memory.usage_in_bytes": "5000\n",
                f"{GROUPS}/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 50\n",
            },
            3050,
        ),
        (
            {
                **MEMINFO,
                f"{GROUPS}/memory/memory.limit_in_bytes": f"{UNLIMITED}\n",
                f"{GROUPS}/memory/memory.usage_in_bytes": "5000\n",
            },
            512_000,
        ),
        ({f"{GROUPS}/memory.max": "5\n", f"{GROUPS}/memory.current": "9\n"}, 0),
    ],
)
def test_the_least_of_what_machine_and_groups_leave(
    files: dict[str, str], free: int | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == free
