"""The data sets, their files, and what is said of damaged ones."""

from __future__ import annotations

import lzma
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.gfkd.checkpoints import read_fake_graphs
from tenfold.gfkd.data import (
    Dataset,
    load_dataset,
    load_tudataset,
    parse_gin_text,
    split_indices,
    write_gin_text,
)
from tenfold.gfkd.graphs import concatenate
from tenfold.shared.logging import TenfoldError

# graphs, nodes, directed edges in the file, graphs of each class in order of first appearance, columns
COUNTS = {
    "mutag": (188, 3371, 7442, (125, 63), 7),
    "ptc": (344, 8792, 17862, (152, 192), 19),
    "ptc-mr": (344, 4915, 10108, None, 18),
    "proteins": (1113, 43471, 162088, (663, 450), 3),
    "imdb-b": (1000, 19773, 193062, (500, 500), 65),
    "collab": (5000, 372474, 24574995, (2600, 775, 1625), 367),
    "reddit-b": (2000, 859254, 1991016, (1000, 1000), 566),
}
TWO_GRAPHS = "2\n3 7\n4 1 1\n2 2 0 2\n4 1 1\n1 5\n9 0\n"


def check_counts(name: str, dataset: Dataset) -> None:
    graphs, (count, nodes, edges, classes, columns) = dataset.graphs, COUNTS[name]
    assert (len(graphs), int(graphs.node_counts.sum()), int(graphs.edge_counts.sum())) == (
        count,
        nodes,
        edges + nodes,
    )
    assert graphs.num_features == columns == len(dataset.columns)
    if classes is not None:
        assert sorted(graphs.labels.bincount().tolist()) == sorted(classes)
    assert graphs.num_classes == len(graphs.labels.unique())
    if graphs.num_features < 100:
        assert torch.equal(graphs.features().sum(dim=1), torch.ones(nodes))


@pytest.mark.parametrize("name", ["mutag", "ptc", "ptc-mr", "proteins", "imdb-b"])
def test_bundled_sets_have_the_published_counts(name: str) -> None:
    check_counts(name, load_dataset(name))


@pytest.mark.parametrize("name", ["collab", "reddit-b"])
def test_further_sets_have_the_published_counts(name: str, data_root: Path) -> None:
    check_counts(name, load_dataset(name, data_root))


def test_mutag_is_numbered_by_first_appearance() -> None:
    mutag = load_dataset("mutag")
    assert mutag.label_map == {2: 0, 0: 1}
    assert mutag.columns == {2: 0, 5: 1, 6: 2, 3: 3, 4: 4, 1: 5, 0: 6}
    assert mutag.graphs.labels.bincount().tolist() == [125, 63]
    assert mutag.known_degrees is None


def test_degree_columns_are_the_in_degrees_in_ascending_order() -> None:
    imdb = load_dataset("imdb-b")
    known, graphs = imdb.known_degrees, imdb.graphs
    assert known is not None and torch.equal(known, known.sort().values)
    degrees = torch.bincount(graphs.packed_edges()[1], minlength=len(graphs.nodes))
    assert torch.equal(known[graphs.nodes], degrees)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("mutag", "MUTAG"), ("ptc-mr", "PTC_MR"), ("proteins", "PROTEINS"), ("imdb-b", "IMDB-BINARY")],
)
def test_the_tudataset_collection_gives_the_same_graphs(name: str, folder: str, data_root: Path) -> None:
    text = load_dataset(name)
    collection = load_tudataset(
        data_root / "gfkd" / "tudataset", folder, degree_features=text.degree_features
    )
    first, second = text.graphs, collection.graphs
    for field in ("node_counts", "edge_counts", "labels", "nodes"):
        assert torch.equal(getattr(first, field), getattr(second, field)), field
    edges = [set(map(tuple, graphs.packed_edges().t().tolist())) for graphs in (first, second)]
    assert edges[0] == edges[1]


def test_a_data_root_with_the_collection_alone_is_enough(data_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "gfkd" / "tudataset" / "COLLAB" / "raw"
    raw.mkdir(parents=True)
    for path in (data_root / "gfkd" / "tudataset" / "IMDB-BINARY" / "raw").iterdir():
        shutil.copy(path, raw / path.name.replace("IMDB-BINARY", "COLLAB"))
    assert len(load_dataset("collab", tmp_path).graphs) == 1000
    (raw / "COLLAB_graph_indicator.txt").unlink()
    with pytest.raises(TenfoldError, match=r"not a readable TUDataset folder.*--download"):
        load_dataset("collab", tmp_path)


def test_split_is_the_authors(mutag) -> None:
    train, test = split_indices(188, 29)
    assert (len(train), len(test)) == (131, 57)
    order = list(range(188))
    np.random.seed(29)
    np.random.shuffle(order)
    assert train + test == order
    assert [tuple(map(len, split_indices(n, 29))) for n in (344, 1113, 1000, 5000, 2000)] == [
        (240, 104),
        (779, 334),
        (700, 300),
        (3500, 1500),
        (1400, 600),
    ]
    assert torch.equal(mutag.test.labels, load_dataset("mutag").graphs.labels[test])


def test_a_file_is_read_as_it_stands() -> None:
    first, second = parse_gin_text(TWO_GRAPHS, "two.txt")
    assert (first.label, first.tags.tolist(), first.edges.tolist()) == (
        7,
        [4, 2, 4],
        [[0, 1, 1, 2], [1, 0, 2, 1]],
    )
    assert (second.label, second.edges.shape, second.edges.dtype) == (5, (2, 0), torch.int64)


def test_graphs_without_edges_or_with_odd_tags_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_text("2\n2 1\n-1 0\n900000000000 0\n1 0\n-1 0\n")
    for loops in (True, False):
        odd = load_dataset(path, self_loops=loops)
        assert odd.columns == {-1: 0, 900000000000: 1} and odd.graphs.nodes.tolist() == [0, 1, 0]
        assert odd.graphs.edges.dtype == torch.int64 and odd.graphs.edges.shape[1] == (3 if loops else 0)


def test_self_loops_of_the_file_stay_beside_the_added_ones(tmp_path: Path) -> None:
    path = tmp_path / "loop.txt"
    path.write_text("1\n2 0\n0 2 0 1\n0 1 0\n")
    loaded = load_dataset(path, degree_features=True)
    assert loaded.known_degrees is not None and loaded.known_degrees.tolist() == [2, 3]


def damaged(change: str) -> str:
    lines = TWO_GRAPHS.split("\n")
    changes = {
        "missing line": [*lines[:3], *lines[4:]],
        "cut line": [*lines[:3], "2 2 0", *lines[4:]],
        "cut file": lines[:5],
        "more": [*lines, "1 2", ""],
        "neighbour": [*lines[:2], "4 1 3", *lines[3:]],
        "word": [*lines[:2], "4 one 1", *lines[3:]],
        "empty line": [*lines[:2], "", *lines[2:]],
        "negative degree": [*lines[:2], "4 -1", *lines[3:]],
        "nothing": [""],
        "no graphs": ["0", ""],
        "long count": ["2 3", *lines[1:]],
        "huge tag": [*lines[:2], f"{2**70} 1 1", *lines[3:]],
    }
    return "\n".join(changes[change])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing line", r"line 5: node 2 of graph 0 "),
        ("cut line", r"line 4: node 1 of graph 0 should be 'tag degree neighbours...'"),
        ("cut file", r"line 6: the file ends where the header 'nodes label' of graph 1"),
        ("more", r"line 8: there is more after the last graph"),
        ("neighbour", r"line 3: node 0 of graph 0 has a neighbour that does not exist"),
        ("word", r"line 3: node 0 of graph 0 should be whole numbers"),
        ("empty line", r"line 3: there is an empty line where node 0 of graph 0"),
        ("negative degree", r"line 3: node 0 of graph 0 should be"),
        ("nothing", r"line 1: the file ends where the number of graphs"),
        ("no graphs", r"line 1: the first line should be the number of graphs"),
        ("long count", r"line 1: the first line should be the number of graphs"),
        ("huge tag", r"line 5: graph 0 has a tag"),
    ],
)
def test_a_damaged_file_is_named_with_its_line(change: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "two.txt"
    path.write_text(damaged(change))
    with pytest.raises(TenfoldError, match=f"two.txt, {message}") as raised:
        load_dataset(path)
    assert "\n" not in str(raised.value)


def test_another_content_under_a_known_name_is_refused(tmp_path: Path, data_root: Path) -> None:
    folder = tmp_path / "gfkd" / "gin"
    folder.mkdir(parents=True)
    (folder / "COLLAB.txt").write_text(TWO_GRAPHS)
    with pytest.raises(TenfoldError, match=r"not the published COLLAB.*SHA-256"):
        load_dataset("collab", tmp_path)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    bundled = resources.files("tenfold.gfkd") / "bundled" / "PTC.txt.xz"
    path = tmp_path / "PTC.txt.xz"
    path.write_bytes(bundled.read_bytes()[:2000])
    with pytest.raises(TenfoldError, match=r"PTC.txt.xz cannot be read .*damaged"):
        load_dataset(path)
    path.write_bytes(lzma.compress(b"\xff\xfe\x00"))
    with pytest.raises(TenfoldError, match=r"PTC.txt.xz cannot be read"):
        load_dataset(path)


def test_a_missing_set_says_what_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(TenfoldError) as raised:
        load_dataset("reddit-b", tmp_path)
    message = str(raised.value)
    for part in (
        "reddit-b is missing",
        str(tmp_path),
        "REDDITBINARY.txt",
        "--data-root",
        "--download",
        "quick",
    ):
        assert part in message
    with pytest.raises(TenfoldError, match=r"no data set 'nci1'; choose one of mutag, ptc"):
        load_dataset("nci1", tmp_path)


def test_written_text_is_read_back(mutag, tmp_path: Path) -> None:
    path = tmp_path / "graphs.txt"
    chosen = mutag.train.select([5, 0, 9])
    write_gin_text(chosen, path)
    again = read_fake_graphs(path, 7, 2)
    for field in ("node_counts", "edge_counts", "labels", "nodes"):
        assert torch.equal(getattr(chosen, field), getattr(again, field))
    assert set(map(tuple, chosen.packed_edges().t().tolist())) == set(
        map(tuple, again.packed_edges().t().tolist())
    )


def test_official_reading_leaves_out_the_loops_of_silent_nodes(tmp_path: Path) -> None:
    path = tmp_path / "fake.txt"
    path.write_text("1\n3 1\n0 1  1\n1 0 []\n2 0\n")  # as the authors' export writes it
    ours, official = read_fake_graphs(path, 3, 2), read_fake_graphs(path, 3, 2, official_loops=True)
    assert set(map(tuple, ours.edges.t().tolist())) == {(0, 1), (0, 0), (1, 1), (2, 2)}
    assert set(map(tuple, official.edges.t().tolist())) == {(0, 1), (0, 0)}


@pytest.mark.parametrize("text", ["1\n1 2\n0 0\n", "1\n1 0\n7 0\n", "1\n1 0\n-1 0\n"])
def test_fake_graphs_of_another_data_set_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fake.txt"
    path.write_text(text)
    with pytest.raises(TenfoldError, match="belongs to another data set"):
        read_fake_graphs(path, 7, 2)


def test_selecting_and_joining_graphs_keeps_them_whole(mutag) -> None:
    graphs = mutag.train
    parts = [graphs.select(range(start, min(start + 50, 131))) for start in range(0, 131, 50)]
    joined = concatenate(parts)
    for name, value in graphs.state_dict().items():
        assert torch.equal(value, joined.state_dict()[name]) if isinstance(value, torch.Tensor) else True
    for index, data in enumerate(graphs.to_pyg()[:5]):
        single = graphs.select([index])
        assert torch.equal(data.edge_index, single.edges) and torch.equal(data.x, single.features())
        assert int(data.y) == int(single.labels)


def test_dgl_graphs_hold_the_same(mutag) -> None:
    pytest.importorskip("dgl")
    graphs = mutag.train.select([3, 4])
    for single, made in zip(graphs.to_pyg(), graphs.to_dgl(), strict=True):
        assert torch.equal(torch.stack(made.edges()), single.edge_index) and torch.equal(
            made.ndata["attr"], single.x
        )
