"""Hostile programs, each against its verdict and against what it may have done to the machine.

All of them run at once, a few at a time, so that the sandbox is used from several threads and the suite stays short.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmax.evaluation import sandbox
from dmax.evaluation.sandbox import Limits, SandboxError, SandboxResult, available_isolation, host, run_program
from dmax.evaluation.sandbox.launch import launch, remove_tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's walls are those of Linux")

AT_ONCE = 10
SECRET = "correct-horse-battery-staple"
CANARY = "the canary sings"


@dataclass(frozen=True)
class Hostile:
    program: str
    reasons: str
    """The reasons that may be given, separated by ``|``."""
    tests: str = "assert False"
    limits: dict[str, Any] = field(default_factory=dict)


PROGRAMS = tomllib.loads(Path(__file__).with_name("hostile_programs.toml").read_text())
HOSTILE = {name: Hostile(**entry) for name, entry in PROGRAMS["hostile"].items()}
HOSTILE["not even text"] = Hostile("x = '\ud800'\0", "failed")


class Harm:
    """What a program may try to harm: files outside, a listening port, this process's limits."""

    def __init__(self, folder: Path) -> None:
        self.boxes = folder / "boxes"
        self.outside = folder / "outside"
        self.boxes.mkdir()
        self.outside.mkdir()
        self.canary = self.outside / "canary.txt"
        self.canary.write_text(CANARY)
        self.canary.chmod(0o644)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.packages = Path(np.__file__).parents[1]
        self.before = self._state()

    def _state(self) -> tuple[object, ...]:
        status = self.canary.stat()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE), os.getpriority(os.PRIO_PROCESS, 0)
        return CANARY, stat.filemode(status.st_mode), status.st_mtime_ns, status.st_uid, limits

    def processes(self) -> list[str]:
        """Command lines of this sandbox's processes; those that were forked in it have that of the warden."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(self.boxes) in line:
                found.append(line)
        return found

    def assert_none(self) -> None:
        for _ in range(50):  # the kernel may take a moment to take a killed process off its list
            if not self.processes():
                break
            time.sleep(0.02)
        assert self.processes() == []
        assert list(self.boxes.iterdir()) == []
        assert [path.name for path in self.outside.iterdir()] == [self.canary.name]
        assert self.canary.read_text() == CANARY
        assert self._state() == self.before
        assert not list(self.packages.glob("dmax_canary*"))
        with pytest.raises(BlockingIOError):
            self.listener.accept()


@pytest.fixture(scope="module", params=["namespaces", "plain"])
def harm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harm]:
    """A machine with, and as it were one without namespaces, and a look at what is left of it in the end."""
    namespaces = request.param == "namespaces"
    if namespaces and not available_isolation().namespaces:
        pytest.skip("no namespaces on this machine")
    if not namespaces and not available_isolation().seccomp:
        pytest.skip("neither namespaces nor seccomp: not to be tried on a machine that is needed")
    with pytest.MonkeyPatch.context() as patch:
        harm = Harm(tmp_path_factory.mktemp("sandbox"))
        patch.setattr(tempfile, "tempdir", str(harm.boxes))
        patch.setattr(host, "namespaces_work", lambda: namespaces)
        patch.setenv("DMAX_TEST_SECRET", SECRET)
        yield harm
        harm.assert_none()
        harm.listener.close()


@pytest.fixture(scope="module")
def verdicts(harm: Harm) -> dict[str, SandboxResult]:
    """Every hostile program's verdict, after a look at what they did."""

    def run(hostile: Hostile) -> SandboxResult:
        return run_program(hostile.program, hostile.tests, Limits(**hostile.limits))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = dict(zip(HOSTILE, pool.map(run, HOSTILE.values()), strict=True))
    harm.assert_none()
    return results


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_program_passes(verdicts: dict[str, SandboxResult], name: str) -> None:
    result = verdicts[name]
    assert not result.passed
    assert result.reason in HOSTILE[name].reasons.split("|"), result
    assert len(result.detail) <= 200 and (result.detail.isprintable() or not result.detail)
    assert result.seconds < Limits(**HOSTILE[name].limits).wall_seconds + 5


@pytest.mark.parametrize("name", PROGRAMS["thwarted"])
def test_what_a_program_tries_outside_fails(harm: Harm, name: str) -> None:
    program = PROGRAMS["thwarted"][name]["program"]
    for word, value in {
        "canary": str(harm.canary),
        "packages": str(harm.packages),
        "secret": SECRET,
        "port": harm.listener.getsockname()[1],
        "host": os.getpid(),
        "uid": os.getuid(),
    }.items():
        program = program.replace(f"<{word}>", repr(value))
    result = run_program(program, "assert not done, done")
    assert result.passed, result
    harm.assert_none()


HONEST = {
    "plain": ("def add(a, b): return a + b", "assert add(2, 3) == 5"),
    "numpy in the tests": ("def total(x): return sum(x)", "import numpy as np\nassert total(np.arange(4)) == 6"),
    "a file in the temporary folder": (
        "import os\nempty = os.listdir() == []",
        "import shutil, tempfile\nassert empty\nwith tempfile.TemporaryDirectory() as d:\n"
        "    open(d + '/a', 'w').write('ä')\n    shutil.copy2(d + '/a', 'b')\nassert open('b').read() == 'ä'",
    ),
    "dataclasses with postponed annotations": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int",
        "import pickle\nassert pickle.loads(pickle.dumps(A(3))) == A(3)",
    ),
    "threads and asyncio": (
        "import asyncio\nfrom concurrent.futures import ThreadPoolExecutor\n"
        "def f():\n    with ThreadPoolExecutor(4) as pool: return sum(pool.map(abs, range(5)))\n"
        "async def g(): return await asyncio.sleep(0.01, 7)",
        "assert f() == 10 and asyncio.run(g()) == 7",
    ),
    "a main block and input": (
        "if __name__ == '__main__': raise ValueError\ntry:\n    input()\nexcept EOFError:\n    silent = True",
        "assert silent",
    ),
    "a thread that is still running": (
        "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()",
        "",
    ),
    "long tests": ("def f(x): return x", f"assert f(1) == 1\ntext = '{'x' * 300_000}'"),
}


@pytest.fixture(scope="module")
def honest(harm: Harm) -> dict[str, SandboxResult]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(HONEST, pool.map(lambda one: run_program(*one), HONEST.values()), strict=True))


@pytest.mark.parametrize("name", HONEST)
def test_honest_programs_pass(honest: dict[str, SandboxResult], name: str) -> None:
    assert honest[name].passed, honest[name]
    assert (honest[name].reason, honest[name].detail) == ("passed", "")


def test_a_failed_test_says_which(harm: Harm) -> None:
    result = run_program("def add(a, b): return a - b", "x = 1\nassert add(2, 3) == 5")
    assert result.reason == "failed"
    assert result.detail == "AssertionError (tests line 2: assert add(2, 3) == 5)"


def test_a_hash_is_the_same_in_every_run(harm: Harm) -> None:
    details = {run_program("raise SystemExit(hash('a'))", "").detail for _ in range(2)}
    assert len(details) == 1


def test_what_a_daemon_does_after_its_parent_has_passed_is_nothing(harm: Harm) -> None:
    program = "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(60)"
    result = run_program(program, "", Limits(subprocesses=True))
    namespaces = host.namespaces_work()
    assert result.reason == ("passed" if namespaces else "failed"), result
    harm.assert_none()


def test_a_killed_judge_is_a_crash_of_the_program(harm: Harm) -> None:
    done: list[SandboxResult] = []
    thread = threading.Thread(target=lambda: done.append(run_program("import time; time.sleep(30)", "")))
    thread.start()
    while not (running := _wardens(harm.boxes)):
        time.sleep(0.02)
    os.kill(running[0], 9)
    thread.join(30)
    assert done[0].reason == "crashed"
    harm.assert_none()


def _wardens(boxes: Path) -> list[int]:
    """Children of this process that run a sandbox."""
    children = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    return [pid for pid in children if str(boxes).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_what_is_missing_is_said() -> None:
    isolation = available_isolation()
    assert isolation is available_isolation()
    assert str(isolation).startswith("Sandbox on Linux")
    assert isolation.namespaces or any("No namespaces" in sentence for sentence in isolation.missing)
    assert isolation.landlock or any("No Landlock" in sentence for sentence in isolation.missing)
    assert "wall_seconds" in isolation.limits and "cpu_seconds" in isolation.limits


def test_namespaces_that_do_not_work_are_an_error_of_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmax.evaluation.sandbox.launch._BOOT", "import sys; print('{'); sys.exit(3)")
    with pytest.raises(SandboxError, match="exit code 3"):
        launch("", "", Limits(), namespaces=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("cpu_seconds", 0), ("wall_seconds", float("inf")), ("memory_mib", 1.5), ("processes", -1), ("file_mib", "16")],
)
def test_limits_are_checked(name: str, value: object) -> None:
    with pytest.raises(SandboxError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]


def test_a_tree_deeper_than_a_path_can_be_long_is_removed(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (box / "link").symlink_to(tmp_path)
    here = os.open(box, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o000, dir_fd=here))
        os.fchmod(here, 0o300)
        os.close(here)
        here = deeper
    os.close(here)
    remove_tree(box)
    assert list(tmp_path.iterdir()) == []


def test_without_file_rules_nothing_can_be_written(tmp_path: Path) -> None:
    """The filter that takes over where there are neither namespaces nor Landlock, by itself."""
    canary = tmp_path / "canary"
    canary.write_text(CANARY)
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from jail import kernel, seccomp
kernel.gain_no_privileges()
seccomp.restrict(subprocesses=False, namespaces=False, file_rules=False)
canary = sys.argv[2]
attempts = [
    lambda: open(canary, "w"), lambda: open(canary, "a"), lambda: open(canary, "r+"), lambda: os.unlink(canary),
    lambda: os.rename(canary, canary + "2"), lambda: os.truncate(canary, 0), lambda: os.mkdir(canary + "3"),
    lambda: os.open(os.path.dirname(canary), os.O_TMPFILE | os.O_WRONLY), lambda: os.symlink("/", canary + "4"),
]
for number, attempt in enumerate(attempts):
    try:
        attempt()
        sys.exit(f"attempt {number} succeeded")
    except PermissionError:
        pass
print(open(canary).read())
"""
    folder = str(Path(sandbox.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, folder, str(canary)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, CANARY), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["canary"]


@pytest.mark.parametrize(
    "tests",
    [
        "assert f(1) == 1",
        "from __future__ import annotations\nx = 1; y = 2\nassert f(x) == 1 and f(y) == 2",
        "\"\"\"Doc.\"\"\"\ndef check(c):\n    '''Doc.'''\n    for i in range(3):\n        assert c(i) == i\n"
        "    if c(1): return\n    assert False\n\ncheck(f)",
        "def twice(c):\n    assert c(1) == 1\ntwice(f)\ntwice(f)",
        "try:\n    f(1)\nexcept ValueError:\n    raise\nassert f(\n    2\n) == 2",
        "def gen(c):\n    yield c(1)\ngen(f)",
        "def maybe(c):\n    assert c(1) == 1\nif f(1) == 2: maybe(f)",
        "é = 'ä'; assert f(é) == é",
        "",
    ],
)
def test_marks_change_no_verdict(tests: str) -> None:
    assert run_program("def f(x): return x", tests).passed


def test_nothing_runs_unprotected_unless_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = replace(available_isolation(), file_system="open", missing=("No walls.",))
    monkeypatch.setattr("dmax.evaluation.sandbox.isolation.available_isolation", lambda: bare)
    with pytest.raises(SandboxError, match=r"unprotected.*No walls\..*--unprotected"):
        run_program("x = 1", "assert x")
    assert run_program("x = 1", "assert x", unprotected=True).passed
