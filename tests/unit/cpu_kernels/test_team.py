"""The team of threads: the same bits whoever computes what, from any thread, and in a process that was forked."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmax.kernels import cpu
from dmax.kernels.cpu.experts import CpuExperts, down_in_panels, gate_up_in_panels
from dmax.kernels.cpu.library import compile_library, set_team

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

KERNELS = Path(cpu.__file__).parent
EXPERTS, WIDTH, HIDDEN, TOKENS = 8, 48, 64, 33


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of this module's own, whose team no other test counts on."""
    path = tmp_path_factory.mktemp("team") / "kernels.so"
    compile_library(path)
    return path


class Layer:
    """A layer of experts, all of which some tokens go to."""

    def __init__(self, library: Path) -> None:
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.kernel = CpuExperts(library, torch.float32)
        self.x = draw(TOKENS, HIDDEN)
        self.weights = draw(TOKENS, EXPERTS).relu()
        self.gate_up = gate_up_in_panels(draw(EXPERTS * WIDTH, HIDDEN), draw(EXPERTS * WIDTH, HIDDEN), WIDTH)
        self.down = down_in_panels(draw(HIDDEN, EXPERTS * WIDTH), WIDTH)

    def __call__(self) -> Tensor:
        return self.kernel(self.x, self.weights, self.gate_up, self.down)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("spin", [0.0, 60.0])
def test_any_number_of_threads_gives_the_same_bits(library: Path, threads: int, spin: float) -> None:
    layer = Layer(library)
    set_team(library, 1)
    expected = layer()
    set_team(library, threads, spin)
    for _ in range(200):
        assert torch.equal(layer(), expected)
    set_team(library, 2, spin)  # fewer than there are by now
    assert torch.equal(layer(), expected)


def test_several_threads_may_call_at_a_time(library: Path) -> None:
    layer = Layer(library)
    set_team(library, 3)
    expected = layer()
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: [layer() for _ in range(50)], range(4)))
    assert all(torch.equal(result, expected) for each in results for result in each)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_has_a_team_of_its_own(library: Path) -> None:
    layer = Layer(library)
    set_team(library, 3)
    expected = layer()
    child = os.fork()
    if child == 0:
        os._exit(0 if all(torch.equal(layer(), expected) for _ in range(50)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(layer(), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "nanoseconds"), [(2, 0), (4, 0), (4, 20_000), (6, 5_000)])
def test_no_index_is_lost_or_done_twice_and_no_memory_is_raced_for(
    threads: int, nanoseconds: int, tmp_path: Path
) -> None:
    source, program = Path(__file__).with_name("team_stress.cpp"), tmp_path / "stress"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{KERNELS}"]
    made = subprocess.run(["g++", *flags, str(source), "-o", str(program)], capture_output=True, check=False, text=True)
    if made.returncode and "tsan" in made.stderr:
        pytest.skip("ThreadSanitizer is not installed")
    assert made.returncode == 0, made.stderr
    done = subprocess.run([program, str(threads), str(nanoseconds)], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
