"""What the tests of RELIANT share: graphs, and runs below a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch_geometric.utils import to_undirected

from tenfold.reliant.config import TeacherConfig
from tenfold.reliant.datasets import load_dataset
from tenfold.reliant.graphs import FairGraph, with_self_loops
from tenfold.reliant.node_output import NodeOutput
from tenfold.reliant.training import train_teacher
from tenfold.shared.runs import Run, RunKey


def random_graph(num_nodes: int = 60, seed: int = 0, num_groups: int = 2, num_classes: int = 2) -> FairGraph:
    """A sparse graph whose labels follow from the features and whose groups are drawn."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_nodes, 7, generator=generator)
    scores = features[:, 0] + 0.3 * torch.randn(num_nodes, generator=generator)
    labels = torch.bucketize(scores, scores.quantile(torch.arange(1, num_classes) / num_classes))
    sensitive = torch.randint(0, num_groups, (num_nodes,), generator=generator)
    edges = torch.randint(0, num_nodes, (2, 3 * num_nodes), generator=generator)
    order = torch.randperm(num_nodes, generator=generator)
    half, three_quarters = num_nodes // 2, 3 * num_nodes // 4
    return FairGraph(
        "random",
        features,
        labels,
        sensitive,
        with_self_loops(to_undirected(edges), num_nodes),
        order[:half],
        order[half:three_quarters],
        order[three_quarters:],
    )


@pytest.fixture(scope="session")
def german() -> FairGraph:
    return load_dataset("german")


@pytest.fixture(scope="session")
def small() -> FairGraph:
    return random_graph()


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Makes a run below the test's folder, by name; a checkpoint is due whenever one can be made."""

    def make(name: str, checkpoint_seconds: float = 0.0) -> Run:
        key = RunKey("reliant", "test", name, 0, "random", "test", "test")
        return Run(tmp_path, key, {}, checkpoint_seconds=checkpoint_seconds)

    return make


@pytest.fixture(scope="session")
def teacher(small: FairGraph, cpu: Fabric, tmp_path_factory: pytest.TempPathFactory) -> NodeOutput:
    """The output of a GCN after sixty epochs on the small graph."""
    key = RunKey("reliant", "test", "teacher", 0, "random", "test", "Teacher")
    with Run(tmp_path_factory.mktemp("teacher"), key, {}) as run:
        return train_teacher(small, TeacherConfig(epochs=60, hidden_dim=16), 0, cpu, run).output


def write_dblp(folder: Path, num_nodes: int = 40) -> None:
    """Made-up files in the form of the authors' DBLP."""
    generator = np.random.default_rng(0)
    (folder / "split").mkdir(parents=True)
    row, col = np.nonzero(generator.random((num_nodes, 12)) < 0.2)
    np.savez(folder / "X.npz", data=np.ones(len(row)), row=row, col=col, shape=np.array([num_nodes, 12]))
    np.savetxt(folder / "edgelist.txt", generator.integers(0, num_nodes, (80, 2)), fmt="%d", delimiter="\t")
    nodes = generator.permutation(num_nodes)
    for name, most in (("labels", 8), ("sens", 7)):
        values = np.stack([nodes, generator.integers(0, most, num_nodes)], axis=1)
        np.savetxt(folder / f"{name}.txt", values, fmt=["%d", "%.1f"], delimiter="\t")
    for name, part in zip(("train", "val", "test"), np.split(nodes.astype(float), [20, 30]), strict=True):
        np.save(folder / "split" / f"{name}_split.npy", part)


@pytest.fixture(scope="session")
def make_dblp() -> Callable[..., None]:
    return write_dblp


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., Any]:
    return random_graph
