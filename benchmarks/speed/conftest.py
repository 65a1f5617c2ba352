"""One thread for every speed test, and what pytest-benchmark stores: the hardware, but neither host name nor paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tenfold.shared.runs import environment


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Replace what the plugin collected by the provenance that run records have."""
    described = environment("benchmarks")
    machine_info.clear()
    machine_info.update(
        python_version=described["python"],
        system=described["platform"],
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        **described["hardware"],
    )


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Keep the commit, drop the name of the folder."""
    commit_info.pop("project", None)
