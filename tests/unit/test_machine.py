"""What there is of memory and processors: what the system tells, within what control groups leave."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dmax.machine import multiplies_bfloat16, processors, system_memory

MIB = 2**20
Write = Callable[..., None]


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 800 MiB available, whose processes are in no control group."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    lines = (
        f"MemTotal:  {2000 * 1024} kB\nMemFree: {100 * 1024} kB\nMemAvailable:   {800 * 1024} kB\nHugePages_Total: 0\n"
    )
    (tmp_path / "proc" / "meminfo").write_text(lines)
    return tmp_path / "proc"


@pytest.fixture
def group(tmp_path: Path) -> Callable[..., None]:
    """Writes the files of a control group: most bytes (a number of MiB, or a word), used, of which pages of files."""

    def write(path: str, most: float | str, used: int, files: tuple[int, int], version: int = 2) -> None:
        folder = tmp_path / "cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        (folder / names[0]).write_text(f"{most if isinstance(most, str) else int(most * MIB)}\n")
        (folder / names[1]).write_text(f"{used * MIB}\n")
        total = "" if version == 2 else "total_"
        statistics = f"anon 1\n{total}active_file {files[0] * MIB}\n{total}inactive_file {files[1] * MIB}\n"
        (folder / "memory.stat").write_text(statistics)

    return write


def left(proc: Path, membership: str) -> int:
    (proc / "self" / "cgroup").write_text(membership)
    return system_memory(proc, proc.parent / "cgroup") // MIB


def test_what_the_system_calls_available(proc: Path) -> None:
    assert system_memory(proc, proc.parent / "nowhere") == 800 * MIB


def test_a_group_leaves_its_limit_less_what_cannot_be_read_again(proc: Path, group: Write) -> None:
    group("a/b", 512, used=300, files=(40, 60))
    assert left(proc, "0::/a/b\n") == 512 - 300 + 100


def test_groups_around_it_count_too(proc: Path, group: Write) -> None:
    group("a/b", "max", used=300, files=(0, 0))
    group("a", 400, used=350, files=(0, 0))
    assert left(proc, "0::/a/b\n") == 50


def test_without_a_limit_the_machine_is_what_counts(proc: Path, group: Write) -> None:
    group("a", "max", used=300, files=(0, 0))
    assert left(proc, "0::/a\n") == 800


def test_inside_a_container_the_path_may_be_one_outside(proc: Path, group: Write) -> None:
    group("", 256, used=200, files=(0, 100))
    assert left(proc, "0::/docker/1234\n") == 156


def test_groups_of_the_first_version(proc: Path, group: Write) -> None:
    group("memory/jobs/7", 600, used=500, files=(10, 20), version=1)
    group("memory/jobs", 9223372036854771712 / MIB, used=700, files=(0, 0), version=1)
    assert left(proc, "12:cpu,cpuacct:/x\n4:memory:/jobs/7\n0::/\n") == 130


def test_a_group_that_is_over_its_limit_leaves_nothing(proc: Path, group: Write) -> None:
    group("a", 100, used=300, files=(0, 0))
    assert left(proc, "0::/a\n") == 0


@pytest.mark.parametrize(("most", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)])
def test_a_quota_of_processors_counts_and_a_part_of_one_as_one(
    most: str, expected: int | None, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    folder = proc.parent / "cgroup" / "a"
    folder.mkdir(parents=True)
    (folder / "cpu.max").write_text(f"{most}\n")
    (proc / "self" / "cgroup").write_text("0::/a\n")
    assert processors(proc, proc.parent / "cgroup") == (expected or 8)


def test_a_quota_of_the_first_version(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    folder = proc.parent / "cgroup" / "cpu" / "a"
    folder.mkdir(parents=True)
    for name, value in (("quota", 300_000), ("period", 100_000)):
        (folder / f"cpu.cfs_{name}_us").write_text(f"{value}\n")
    (folder.parent / "cpu.cfs_quota_us").write_text("-1\n")
    (proc / "self" / "cgroup").write_text("3:cpu,cpuacct:/a\n")
    assert processors(proc, proc.parent / "cgroup") == 3


def test_a_process_that_is_bound_has_no_more_than_that(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert processors(proc, proc.parent / "nowhere") == 1


def test_this_machine_has_some() -> None:
    assert 2**20 < system_memory() < 2**50
    assert 1 <= processors() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni", False),
        ("Features\t: fp asimd asimddp bf16", True),
        ("Features\t: fp asimd", False),
        ("", True),
    ],
)
def test_whether_a_processor_multiplies_in_bfloat16(line: str, has: bool, proc: Path) -> None:
    (proc / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    assert multiplies_bfloat16(proc) == has
