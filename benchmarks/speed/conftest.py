"""What pytest-benchmark stores: the hardware, but neither host name nor paths."""

from __future__ import annotations

from typing import Any

import torch

from tenfold.shared.runs import environment


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Replace what the plugin collected by the provenance that run records have."""
    machine_info.clear()
    described = environment("benchmarks")
    machine_info.update(
        python_version=described["python"],
        system=described["platform"],
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        **described["hardware"],
    )
