"Linux and macOS, with a GPU or without: the pinned packages, and what the two systems count differently."
import os
import re
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from world2vlm.core.runs import count_cores, peak_memory

ROOT = Path(__file__).resolve().parent.parent
MACOS = default_environment() | dict(sys_platform="darwin", platform_system="Darwin", platform_machine="arm64", os_name="posix")
LINUX = MACOS | dict(sys_platform="linux", platform_system="Linux", platform_machine="x86_64")
GPU = re.compile(r"nvidia-(?!ml-py)|cuda-|triton")


def pinned(name: str, machine: dict) -> dict[str, str]:
    "Package -> version that the list `name` installs on a `machine`."
    lines = re.findall(r"^([a-z0-9][^\n\\]+?)\s*\\$", (ROOT / name).read_text(), re.M)
    wanted = [r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate(machine)]
    return {r.name: str(r.specifier) for r in wanted}


@pytest.mark.parametrize("list_of_packages,machine,has_gpu_packages", [
    ("requirements.lock", LINUX, True), ("requirements.lock", MACOS, False), ("requirements-cpu.lock", LINUX, False)])
def test_gpu_packages_are_for_linux_with_a_gpu(list_of_packages, machine, has_gpu_packages):
    assert any(map(GPU.match, pinned(list_of_packages, machine))) == has_gpu_packages


def test_the_list_without_gpu_packages_differs_in_nothing_else():
    "What it lacks beside them is torch, which `make CPU=1` installs first, at the version of the other list."
    whole, without_gpu = pinned("requirements.lock", LINUX), pinned("requirements-cpu.lock", LINUX)
    assert without_gpu.items() <= whole.items()
    assert {name for name in whole.keys() - without_gpu.keys() if not GPU.match(name)} == {"torch", "torchvision"}


def test_no_list_names_an_index():
    assert not any("://" in line for p in ROOT.glob("requirements*.lock") for line in p.read_text().splitlines())


def test_cores_and_memory_where_the_system_has_no_affinity(monkeypatch):
    "macOS has no `os.sched_getaffinity`, and counts memory in bytes where Linux counts KiB."
    on_linux = peak_memory()["peak_gb"]
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr("sys.platform", "darwin")
    assert count_cores() == os.cpu_count() and peak_memory()["peak_gb"] == pytest.approx(on_linux / 1024, rel=.5)
