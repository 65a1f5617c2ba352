"""Data sets and similarity graphs: counts, splits, bundles, and what is said of damaged files."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from tenfold.reliant.datasets import (
    DATASETS,
    load_dataset,
    load_recidivism,
    split_per_class,
    store_similarity_graph,
)
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.similarity_graph import build_similarity_edges
from tenfold.shared.logging import TenfoldError, set_quiet


def check_graph(graph: FairGraph) -> None:
    """What every network relies on."""
    source, target = graph.edge_index
    code = source * graph.num_nodes + target
    assert len(code.unique()) == len(code), "an edge stands twice"
    assert torch.equal(code.sort().values, (target * graph.num_nodes + source).sort().values), "not symmetric"
    assert int((source == target).sum()) == graph.num_nodes, "one self loop a node"
    together = torch.cat([graph.train, graph.val, graph.test])
    assert len(together.unique()) == len(together), "splits overlap"
    assert graph.features.dtype == torch.float32 and graph.features.isfinite().all()
    assert graph.labels.unique().tolist() == [0, 1] and graph.sensitive.unique().tolist() == [0, 1]


def test_german_credit_has_the_published_counts(german: FairGraph) -> None:
    check_graph(german)
    assert (german.num_nodes, german.num_features, german.num_undirected_edges) == (1000, 27, 21742)
    assert (int(german.labels.sum()), int(german.sensitive.sum())) == (700, 310)
    assert [len(part) for part in (german.train, german.val, german.test)] == [500, 250, 250]
    for column in ("LoanAmount", "Age", "LoanDuration"):
        values = german.features[:, german.feature_names.index(column)]
        assert (float(values.min()), float(values.max())) == (-1, 1)


def test_the_bundled_recidivism_has_the_published_counts() -> None:
    graph = load_dataset("recidivism-3000")
    check_graph(graph)
    assert (graph.num_nodes, graph.num_features, graph.num_undirected_edges) == (3000, 18, 7969)
    assert [len(part) for part in (graph.train, graph.val, graph.test)] == [904, 612, 1484]
    torch.testing.assert_close(graph.features.sum(dim=1), torch.ones(3000))


def test_german_edges_are_those_of_the_original_file(german: FairGraph, data_root: Path) -> None:
    pairs = np.loadtxt(data_root / "reliant" / "german" / "german_edges.txt").astype(np.int64)
    original = {(min(pair), max(pair)) for pair in pairs.tolist()}
    ours = {(a, b) for a, b in german.edge_index.t().tolist() if a < b}
    assert len(pairs) == 24970 and ours == original


def test_recidivism_has_the_published_counts(data_root: Path) -> None:
    graph = load_dataset("recidivism", data_root)
    check_graph(graph)
    assert (graph.num_nodes, graph.num_features, graph.edge_index.shape[1]) == (18876, 18, 642616)
    assert (int(graph.labels.sum()), int(graph.sensitive.sum())) == (7104, 9559)
    assert [len(part) for part in (graph.train, graph.val, graph.test)] == [5662, 3776, 9438]
    assert load_dataset("bail", data_root).name == "recidivism"


def test_the_bundle_is_the_stated_part_of_recidivism(data_root: Path) -> None:
    nodes = np.sort(np.random.RandomState(0).choice(18876, 3000, replace=False))
    part = load_dataset("recidivism", data_root).induced_subgraph(torch.from_numpy(nodes), "recidivism-3000")
    bundled = load_dataset("recidivism-3000")
    for name in ("features", "labels", "sensitive", "edge_index", "train", "val", "test"):
        assert torch.equal(getattr(part, name), getattr(bundled, name)), name
    assert part.feature_names == bundled.feature_names


def test_credit_has_the_counts_of_the_published_rule(data_root: Path) -> None:
    graph = load_dataset("credit-recomputed", data_root)
    check_graph(graph)
    assert (graph.num_nodes, graph.num_features, graph.num_undirected_edges) == (30000, 13, 137377)
    assert float(graph.labels.float().mean()) == pytest.approx(0.779, abs=5e-4)
    assert float(graph.sensitive.float().mean()) == pytest.approx(0.0895, abs=5e-5)
    assert [len(part) for part in (graph.train, graph.val, graph.test)] == [1000, 7500, 7500]
    assert graph.labels[graph.train].float().mean() == 0.5


def test_the_rule_makes_the_stored_edges_of_recidivism(data_root: Path) -> None:
    rows = pd.read_csv(data_root / "reliant" / "bail" / "bail.csv").drop(columns="RECID")
    edges = build_similarity_edges(torch.tensor(rows.to_numpy(dtype=float)), 0.6)
    with np.load(data_root / "reliant" / "bail" / "bail_edges_undirected.npz") as stored:
        assert torch.equal(edges[:, edges[0] < edges[1]].t(), torch.from_numpy(stored["edges"]).long())


def test_similarity_follows_its_definition() -> None:
    features = torch.rand(40, 3)
    similarity = 1 / (1 + (features[:, None] - features[None]).double().norm(dim=2))
    expected = set()
    for i in range(40):
        limit = 0.9 * similarity[i].sort().values[-2]
        for j in range(40):
            if i != j and similarity[i, j] > limit:
                expected |= {(i, j), (j, i)}
    assert {tuple(edge) for edge in build_similarity_edges(features, 0.9).t().tolist()} == expected


def test_similarity_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randint(0, 4, (50, 3))  # many rows are equal, many distances tie
    whole = build_similarity_edges(features, 0.7)
    monkeypatch.setattr("tenfold.reliant.similarity_graph._CHUNK_CELLS", 350)
    assert torch.equal(build_similarity_edges(features, 0.7), whole)


def test_the_split_takes_halves_and_quarters_of_each_class() -> None:
    labels = (torch.arange(403) % 3 == 0).long()
    train, val, test = split_per_class(labels, 20, most_train_labels=100)
    assert [int((labels[train] == c).sum()) for c in (0, 1)] == [50, 50]
    assert [int((labels[val] == c).sum()) for c in (0, 1)] == [67, 34]
    assert [int((labels[test] == c).sum()) for c in (0, 1)] == [67, 34]
    assert not set(train.tolist()) & set(val.tolist()) | set(val.tolist()) & set(test.tolist())
    assert torch.equal(split_per_class(labels, 20, 100)[0], train)


@pytest.fixture
def bail(tmp_path: Path) -> Path:
    """A made-up table in the form of Recidivism, with a split."""
    generator = np.random.default_rng(0)
    columns = ("WHITE", "PRIORS", "AGE", "RECID", "FILE")
    frame = pd.DataFrame({name: generator.integers(0, 2, 30) for name in columns})
    frame["AGE"] = generator.integers(18, 60, 30)
    folder = tmp_path / "reliant" / "bail"
    (folder / "split").mkdir(parents=True)
    frame.to_csv(folder / "bail.csv", index=False)
    for name, nodes in (("train", range(15)), ("val", range(15, 22)), ("test", range(22, 30))):
        np.save(folder / "split" / f"{name}_split.npy", np.array(nodes))
    return tmp_path


def test_edges_come_from_the_rule_the_stored_graph_or_the_original_file(bail: Path) -> None:
    folder = bail / "reliant" / "bail"
    built = load_dataset("recidivism", bail)
    assert built.provenance.endswith("edges by its similarity rule")
    path = store_similarity_graph("recidivism", bail)
    assert path == folder / "bail_edges_undirected.npz"
    assert torch.equal(load_dataset("recidivism", bail).edge_index, built.edge_index)
    (folder / "bail_edges.txt").write_text("0.0 1.0\n1.0 2.0\n")
    original = load_dataset("recidivism", bail)
    assert original.num_undirected_edges == 2 and original.provenance.endswith("edges of the original file")


def test_damaged_files_are_named(bail: Path) -> None:
    folder = bail / "reliant" / "bail"
    store_similarity_graph("recidivism", bail)
    whole = (folder / "bail_edges_undirected.npz").read_bytes()
    for content in (b"", b"PK cut off", whole[: len(whole) // 2]):
        (folder / "bail_edges_undirected.npz").write_bytes(content)
        with pytest.raises(TenfoldError, match=r"bail_edges_undirected.npz is damaged .* remove it"):
            load_recidivism(folder)
    np.savez(folder / "bail_edges_undirected.npz", edges=np.array([[0, 99]]))
    with pytest.raises(TenfoldError, match=r"does not hold pairs of the 30 rows"):
        load_recidivism(folder)
    (folder / "bail_edges_undirected.npz").unlink()
    np.save(folder / "split" / "val_split.npy", np.array([3, 40]))
    with pytest.raises(TenfoldError, match=r"val_split.npy is damaged"):
        load_recidivism(folder)
    (folder / "split" / "val_split.npy").unlink()
    with pytest.raises(TenfoldError, match=r"has no split/val_split.npy.*--download.*quick profile"):
        load_dataset("recidivism", bail)
    pd.DataFrame({"WHITE": [1]}).to_csv(folder / "bail.csv", index=False)
    with pytest.raises(TenfoldError, match="has no column RECID"):
        load_recidivism(folder)
    pd.DataFrame({"WHITE": [1], "RECID": ["x"]}).to_csv(folder / "bail.csv", index=False)
    with pytest.raises(TenfoldError, match=r"something that is no number"):
        load_recidivism(folder)
    (folder / "bail.csv").write_bytes(b"")
    with pytest.raises(TenfoldError, match=r"bail.csv is damaged"):
        load_recidivism(folder)


def test_missing_sets_and_unknown_names_say_what_to_do(tmp_path: Path) -> None:
    for name in DATASETS[2:]:
        with pytest.raises(TenfoldError, match=r"quick profile needs no further data|credit"):
            load_dataset(name, tmp_path)
    with pytest.raises(TenfoldError, match=r"no data set 'nba'; choose one of german"):
        load_dataset("nba", tmp_path)
    with pytest.raises(TenfoldError, match=r"no checkpoint at .*absent.pt"):
        load_dataset(tmp_path / "absent.pt")


def test_credit_with_the_authors_edges_asks_for_their_file(data_root: Path) -> None:
    with pytest.raises(TenfoldError, match=r"credit_edges.txt and follow from no published rule"):
        load_dataset("credit", data_root)


def test_dblp_reads_the_authors_files(make_dblp: Callable[..., None], tmp_path: Path) -> None:
    folder = tmp_path / "reliant" / "dblp"
    make_dblp(folder)
    graph = load_dataset("small", tmp_path)
    check_graph(graph)
    assert (graph.name, graph.num_nodes, graph.num_features) == ("dblp", 40, 12)
    labels = {int(node): value for node, value in np.loadtxt(folder / "labels.txt")}
    assert graph.labels.tolist() == [int(labels[node] == 3) for node in range(40)]
    (folder / "X.npz").write_bytes(b"broken")
    with pytest.raises(TenfoldError, match=r"files of dblp in .* are damaged"):
        load_dataset("dblp", tmp_path)


def test_dblp_has_the_published_counts(data_root: Path) -> None:
    folder = data_root / "reliant" / "dblp"
    edges = np.loadtxt(folder / "edgelist.txt", dtype=np.int64)
    pairs = {(min(edge), max(edge)) for edge in edges.tolist() if edge[0] != edge[1]}
    assert 2 * len(pairs) + 39424 == 144344
    assert int((np.loadtxt(folder / "labels.txt")[:, 1] == 3).sum()) == 7774


def own_graph() -> Data:
    mask = torch.zeros(12, 3, dtype=torch.bool)
    mask[torch.arange(12), torch.arange(12) % 3] = True
    x = torch.randn(12, 4)
    x[:, 2] = torch.arange(12) % 4
    edges = torch.tensor([[0, 1, 2, 2], [1, 2, 3, 2]])
    return Data(
        x=x,
        y=torch.arange(12) % 3,
        edge_index=edges,
        train_mask=mask[:, 0],
        val_mask=mask[:, 1],
        test_mask=mask[:, 2],
    )


def test_any_graph_of_torch_geometric_can_be_used(tmp_path: Path) -> None:
    data = own_graph()
    torch.save(data.to_dict(), tmp_path / "mine.pt")
    for graph in (FairGraph.from_pyg(data, 2), load_dataset(tmp_path / "mine.pt", sensitive_column=2)):
        assert (graph.num_groups, graph.num_classes, graph.num_undirected_edges) == (4, 3, 3)
        assert int((graph.edge_index[0] == graph.edge_index[1]).sum()) == 12
        assert graph.train.tolist() == [0, 3, 6, 9]
    back = FairGraph.from_pyg(graph.to_pyg())
    assert torch.equal(back.edge_index, graph.edge_index) and torch.equal(back.sensitive, graph.sensitive)


def test_a_graph_that_lacks_something_is_refused() -> None:
    cases = {
        "has no y": lambda data: data.__delattr__("y"),
        "has no train_mask": lambda data: data.__delattr__("train_mask"),
        r"y has shape \(3,\)": lambda data: data.__setattr__("y", torch.zeros(3)),
        "names nodes outside": lambda data: data.__setattr__("edge_index", torch.tensor([[0], [50]])),
        "whole numbers": lambda data: data.__setattr__("edge_index", torch.zeros(5, 2)),
        "val mask of the graph chooses no node": lambda data: data.__setattr__(
            "val_mask", torch.zeros(12).bool()
        ),
        "test_mask must be true or false": lambda data: data.__setattr__(
            "test_mask", torch.ones(12, 3).bool()
        ),
        "finite numbers": lambda data: data.x.__setitem__((0, 0), torch.nan),
        "at least two of them": lambda data: data.y.zero_(),
        "classes from 0": lambda data: data.y.sub_(1),
        "has 1 values": lambda data: data.x.__setitem__((slice(None), 2), 0.0),
    }
    for message, spoil in cases.items():
        data = own_graph()
        spoil(data)
        with pytest.raises(TenfoldError, match=message):
            FairGraph.from_pyg(data, 2)
    with pytest.raises(TenfoldError, match="name the column of x"):
        FairGraph.from_pyg(own_graph())
    with pytest.raises(TenfoldError, match="no column 9 among 4"):
        FairGraph.from_pyg(own_graph(), 9)


def test_exports_to_dgl_hold_the_same_graph(german: FairGraph) -> None:
    pytest.importorskip("dgl")
    graph = german.to_dgl()
    assert graph.num_edges() == 44484
    assert torch.equal(graph.ndata["feat"], german.features)
    assert torch.equal(graph.ndata["train_mask"].nonzero().squeeze(1), german.train.sort().values)


def test_building_a_graph_on_the_fly_says_how_to_keep_it(
    bail: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_quiet(False)
    logger = logging.getLogger("tenfold")
    logger.addHandler(caplog.handler)
    try:
        load_dataset("recidivism", bail)
    finally:
        logger.removeHandler(caplog.handler)
    assert "build-graph keeps it" in caplog.text
