"""What the tests of all packages share: parity cases, the data root, a CPU Fabric, processes, and the ``gpu`` mark.

A parity case is ``<case>.json`` (what was done, with every argument) beside ``<case>.npz`` (what the reference
implementation returned). A test that takes the fixture ``parity_case`` runs once for each case in the folder
``cases`` beside it, and for each case of ``--parity-cases DIR``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric

ROOT = Path(__file__).parent

_spec = importlib.util.spec_from_file_location("parity_fill", ROOT / "tests" / "parity_fill.py")
assert _spec is not None and _spec.loader is not None
parity_fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(parity_fill)


@dataclass(frozen=True)
class ParityCase:
    """One case; ``case[...]`` is a field of its JSON."""

    path: Path

    @cached_property
    def fields(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return content

    def __getitem__(self, field: str) -> Any:
        return self.fields[field]

    @cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        """What the reference returned, by name."""
        with np.load(self.path.with_suffix(".npz"), allow_pickle=False) as archive:
            return dict(archive)

    def state_dict(self, field: str = "state_dict") -> dict[str, Tensor]:
        """The weights, regenerated from their keys and shapes."""
        return self.weights_of(self[field])

    def weights_of(self, shapes: dict[str, Any]) -> dict[str, Tensor]:
        """Weights that the case names by key, shape and type alone."""
        weights: dict[str, Tensor] = parity_fill.fill_state_dict(shapes)
        return weights

    def check(self, name: str, actual: Any, rtol: float | None = None, atol: float | None = None) -> None:
        """Compare one output with the reference's: the case's tolerances, by default rtol 1e-4 in fp32."""
        expected = torch.as_tensor(self.outputs[name])
        actual = torch.as_tensor(actual).detach().to(expected.dtype)
        torch.testing.assert_close(
            actual,
            expected,
            rtol=self.fields.get("rtol", 1e-4) if rtol is None else rtol,
            atol=self.fields.get("atol", 1e-6) if atol is None else atol,
            msg=lambda message: f"{self.path.stem}: {name}: {message}",
        )


def fill_input(spec: dict[str, Any]) -> Tensor:
    """An input from its JSON description: a seeded normal draw, scaled and transformed as it says."""
    if "normal_cdf_of_fill_input_seed" in spec:
        normal: Tensor = parity_fill.fill_input(spec["normal_cdf_of_fill_input_seed"], spec["shape"])
        uniform: Tensor = torch.special.ndtr(normal.double()).float()
        return uniform
    values: Tensor = spec.get("scale", 1.0) * parity_fill.fill_input(spec["fill_input_seed"], spec["shape"])
    transform = spec.get("transform")
    if transform is None:
        return values
    if transform == "softmax over dim 1":
        return values.softmax(dim=1)
    raise ValueError(f"unknown transform {transform!r} in a parity case")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-cases", type=Path, default=None, help="folder with further parity cases")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "parity_case" not in metafunc.fixturenames:
        return
    folders = [Path(metafunc.module.__file__).parent / "cases"]
    if (further := metafunc.config.getoption("--parity-cases")) is not None:
        if not further.is_dir():
            raise pytest.UsageError(f"--parity-cases: no folder {further}")
        folders.append(further)
    cases = [ParityCase(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    metafunc.parametrize("parity_case", cases, ids=[f"{c.path.parent.name}/{c.path.stem}" for c in cases])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture
def fill() -> Any:
    """Makes an input from its description in a parity case."""
    return fill_input


@pytest.fixture(scope="session")
def further_data() -> Path | None:
    """The folder with further real data: ``$TENFOLD_DATA``, else ``shared/data`` beside the checkout, else None."""
    root = Path(os.environ.get("TENFOLD_DATA", ROOT.parent / "shared" / "data"))
    return root.resolve() if root.is_dir() else None


@pytest.fixture(scope="session")
def data_root(further_data: Path | None) -> Path:
    """The same folder for tests that cannot do without it."""
    if further_data is None:
        pytest.skip("needs further data: set TENFOLD_DATA to its folder")
    return further_data


@pytest.fixture(scope="session")
def cpu() -> Fabric:
    """A launched Fabric of one process on the CPU."""
    return launch_fabric(AcceleratorConfig(device="cpu"))


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts Python with some arguments in a process of its own, on one thread."""

    def start_python(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("TENFOLD_DATA", None)
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start_python


@pytest.fixture(scope="session")
def kill_at(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., None]:
    """Starts Python as ``start`` does and kills it, with no chance to tidy up, as soon as a file is there.

    The file is a pattern below ``cwd``. Its wildcards may stand for names in folders that stay; ``**`` would also
    walk into those that the process is just moving.
    """

    def start_and_kill(file: str, *arguments: object, cwd: Path) -> None:
        process = start(*arguments, cwd=cwd)
        try:
            deadline = time.monotonic() + 240
            reached = False
            while not reached and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.002)
                reached = next(cwd.glob(file), None) is not None
        finally:
            process.kill()
            _, said = process.communicate()  # ends when the workers have ended too
        assert reached, f"{file} did not appear: {said}"
        assert process.returncode == -signal.SIGKILL, said

    return start_and_kill
