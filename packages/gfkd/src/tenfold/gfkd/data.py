"""The six graph classification sets of the paper, as their authors numbered and split them.

Two sources hold them: the compact text files of the GIN authors (bundled for the smaller sets), and the
TUDataset collection through torch_geometric. Classes and feature columns are numbered by first appearance in
the file, as the released teacher needs it; sets without node labels get the one-hot in-degree.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_geometric.datasets import TUDataset
from torch_geometric.io import read_tu_data

from tenfold.gfkd.config import FeatureKind
from tenfold.gfkd.graphs import GraphSet, graph_set
from tenfold.shared.logging import TenfoldError


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set besides its graphs."""

    file: str
    """Name of the GIN text file, without ``.txt``."""
    tu_name: str
    """Name in the TUDataset collection; empty where it has no such set."""
    sha256: str
    """Of the text file, decompressed."""
    features: FeatureKind
    node_range: tuple[int, int]
    """Nodes of a fake graph: the authors' range for MUTAG, else about the mean of the set ± 50 %."""
    structure_lr: float
    graphs_per_batch: int | None = None
    """How many fake graphs are optimised at a time, where all together would not fit in memory."""


DATASETS = {
    "mutag": DatasetInfo(
        "MUTAG",
        "MUTAG",
        "5897dae243f6c773aab54ec99e86551c3b1e8601acef254714073042c632d30e",
        features="one-hot",
        node_range=(10, 29),
        structure_lr=1.0,
    ),
    "ptc": DatasetInfo(
        "PTC",
        "",
        "711729eaf2a5308752aa7c11062dd99f645f978afc400909a5927051b314ec55",
        features="one-hot",
        node_range=(13, 38),
        structure_lr=1.0,
    ),
    "ptc-mr": DatasetInfo(
        "PTC_MR",
        "PTC_MR",
        "e3c0cfa20e706de3847e078637c1971daea39138b494ff34ffba1546ccd4ed01",
        features="one-hot",
        node_range=(7, 21),
        structure_lr=1.0,
    ),
    "proteins": DatasetInfo(
        "PROTEINS",
        "PROTEINS",
        "ed0730f9bf9da68aa6a8c80f2f2b6ecea5d05791ca254c709f3efab3b45d937b",
        features="one-hot",
        node_range=(20, 58),
        structure_lr=5.0,
    ),
    "imdb-b": DatasetInfo(
        "IMDBBINARY",
        "IMDB-BINARY",
        "1068c698677c07c04f3ad56fc4a175cb2161523c840abfdaf50e101ecc30504f",
        features="degree",
        node_range=(10, 29),
        structure_lr=1.0,
    ),
    "collab": DatasetInfo(
        "COLLAB",
        "COLLAB",
        "013dad1337eccb6d48d698be154ea9a5b5a041feedecd69f824199ba344907b7",
        features="degree",
        node_range=(38, 111),
        structure_lr=5.0,
        graphs_per_batch=500,
    ),
    "reddit-b": DatasetInfo(
        "REDDITBINARY",
        "REDDIT-BINARY",
        "7a8b1d00080f3ed86c608db854c7aba6b9ef23e17a589102bfc0692a78bef2e6",
        features="degree",
        node_range=(215, 644),
        structure_lr=5.0,
        graphs_per_batch=50,
    ),
}


@dataclass(frozen=True)
class Dataset:
    """A set of graphs and what its numbers stood for in the file."""

    name: str
    graphs: GraphSet
    label_map: dict[int, int]
    """Label in the file to class."""
    columns: dict[int, int]
    """Node tag, or in-degree where ``degree_features``, to feature column."""
    degree_features: bool

    @property
    def known_degrees(self) -> Tensor | None:
        """[d], the in-degrees behind the columns, ascending; None where features are node tags."""
        return torch.tensor(list(self.columns)) if self.degree_features else None


def load_dataset(
    source: str | Path,
    root: Path | None = None,
    self_loops: bool = True,
    degree_features: bool | None = None,
    download: bool = False,
) -> Dataset:
    """Load one of :data:`DATASETS` by name, or a file in the GIN text format by its path.

    A name is looked for among the bundled sets, then in ``root/gfkd/gin/NAME.txt[.xz]``, then in
    ``root/gfkd/tudataset/NAME/raw`` (where ``download`` puts it).

    Args:
        source: name or path.
        root: data root.
        self_loops: add one self loop to every node, as for teachers, students and fake graphs.
        degree_features: one-hot in-degree (self loop included) instead of node tags; by default what the paper
            uses for the set, tags for a file.
        download: fetch a set that is nowhere found from the TUDataset collection.

    Raises:
        TenfoldError: unknown name, missing or damaged data.
    """
    if isinstance(source, str) and source in DATASETS:
        info = DATASETS[source]
        degree_features = info.features == "degree" if degree_features is None else degree_features
        return _load_known(source, info, root, self_loops, degree_features, download)
    path = Path(source)
    if not path.is_file():
        names = ", ".join(DATASETS)
        raise TenfoldError(
            f"no data set {str(source)!r}; choose one of {names}, or the path of a GIN text file"
        )
    return _number(path.stem, parse_gin_text(read_text(path), path.name), self_loops, bool(degree_features))


def split_indices(num_graphs: int, seed: int, train_fraction: float = 0.7) -> tuple[list[int], list[int]]:
    """The authors' split: shuffle 0..N-1 with NumPy's legacy generator; the first floor(fraction N) are training."""
    order = list(range(num_graphs))
    np.random.RandomState(seed).shuffle(order)
    cut = int(train_fraction * num_graphs)
    return order[:cut], order[cut:]


@dataclass(frozen=True)
class RawGraph:
    """One graph as its file has it."""

    label: int
    tags: Tensor
    """[n] int64."""
    edges: Tensor
    """[2, e] int64, without added self loops."""


def parse_gin_text(text: str, name: str) -> list[RawGraph]:
    """Parse the compact text format: N; then per graph ``n label`` and n lines ``tag degree neighbours...``.

    Fields after the neighbours (node attributes in some releases) are left out.

    Raises:
        TenfoldError: a line is missing, cut off or out of range; the message names the line.
    """
    lines = text.split("\n")
    position = 0

    def damaged(problem: str) -> TenfoldError:
        return TenfoldError(f"{name}, line {position}: {problem}; the file is damaged, restore the original")

    def next_line(what: str) -> list[int]:
        nonlocal position
        position += 1
        fields = lines[position - 1].split() if position <= len(lines) else []
        if not fields:
            end = not any(line.strip() for line in lines[position:])
            raise damaged(f"{'the file ends' if end else 'there is an empty line'} where {what} should stand")
        try:
            return [int(field) for field in fields]
        except ValueError:
            raise damaged(f"{what} should be whole numbers") from None

    graphs = []
    (num_graphs, *rest) = next_line("the number of graphs")
    if num_graphs < 1 or rest:
        raise damaged("the first line should be the number of graphs")
    for index in range(num_graphs):
        header = next_line(f"the header 'nodes label' of graph {index}")
        if len(header) != 2 or header[0] < 1:
            raise damaged(f"the header of graph {index} should be 'nodes label', found {len(header)} fields")
        num_nodes, label = header
        tags, sources, targets = [], [], []
        for node in range(num_nodes):
            row = next_line(f"node {node} of graph {index}")
            if len(row) < 2 or row[1] < 0 or len(row) < 2 + row[1]:
                raise damaged(f"node {node} of graph {index} should be 'tag degree neighbours...'")
            neighbours = row[2 : 2 + row[1]]
            if any(not 0 <= neighbour < num_nodes for neighbour in neighbours):
                raise damaged(f"node {node} of graph {index} has a neighbour that does not exist")
            tags.append(row[0])
            sources.extend([node] * len(neighbours))
            targets.extend(neighbours)
        if not -(2**63) <= min(tags) <= max(tags) < 2**63:
            raise damaged(f"graph {index} has a tag that is no 64-bit number")
        edges = torch.tensor([sources, targets], dtype=torch.int64)
        graphs.append(RawGraph(label, torch.tensor(tags), edges))
    if any(line.strip() for line in lines[position:]):
        position += 1
        raise damaged("there is more after the last graph")
    return graphs


def write_gin_text(graphs: GraphSet, path: Path) -> None:
    """Write graphs with node classes in the GIN text format: columns as tags, self loops left out."""
    lines = [str(len(graphs))]
    nodes = graphs.nodes.split(graphs.node_counts.tolist())
    edges = graphs.edges.split(graphs.edge_counts.tolist(), dim=1)
    for label, tags, edge_index in zip(graphs.labels.tolist(), nodes, edges, strict=True):
        lines.append(f"{len(tags)} {label}")
        neighbours: list[list[int]] = [[] for _ in tags]
        for source, target in edge_index.t().tolist():
            if source != target:
                neighbours[source].append(target)
        lines += [
            " ".join(map(str, [tag, len(row), *row]))
            for tag, row in zip(tags.tolist(), neighbours, strict=True)
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _load_known(
    name: str, info: DatasetInfo, root: Path | None, self_loops: bool, degree_features: bool, download: bool
) -> Dataset:
    folders = [Path(str(resources.files("tenfold.gfkd") / "bundled"))]
    if root is not None:
        folders.append(root / "gfkd" / "gin")
    for path in [folder / f"{info.file}.txt{suffix}" for folder in folders for suffix in ("", ".xz")]:
        if path.is_file():
            text = read_text(path)
            graphs = parse_gin_text(text, path.name)
            if hashlib.sha256(text.encode()).hexdigest() != info.sha256:
                raise TenfoldError(
                    f"{path} is not the published {info.file} (its SHA-256 differs); restore it"
                )
            return _number(name, graphs, self_loops, degree_features)
    if root is not None and info.tu_name:
        collection = root / "gfkd" / "tudataset"
        if download:
            _download(collection, info.tu_name)
        if (collection / info.tu_name / "raw").is_dir():
            return load_tudataset(collection, info.tu_name, self_loops, degree_features, name=name)
    where = f"{root / 'gfkd'}" if root is not None else "no data root"
    raise TenfoldError(
        f"the data set {name} is missing (looked in {where}); set --data-root to a folder with "
        f"gfkd/gin/{info.file}.txt, or run again with --download; the profile quick needs no further data"
    )


def _download(collection: Path, tu_name: str) -> None:
    try:
        TUDataset(str(collection), tu_name)
    except OSError as error:
        raise TenfoldError(
            f"downloading {tu_name} into {collection} failed ({error}); check the network and the folder"
        ) from error


def load_tudataset(
    folder: Path,
    tu_name: str,
    self_loops: bool = True,
    degree_features: bool = False,
    name: str | None = None,
) -> Dataset:
    """Read ``folder/NAME/raw`` of the TUDataset collection through torch_geometric.

    Classes and columns are numbered by first appearance, as for the text files; graph order is the collection's.
    """
    raw = folder / tu_name / "raw"
    try:
        data, slices, sizes = read_tu_data(str(raw), tu_name)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        raise TenfoldError(
            f"{raw} is not a readable TUDataset folder ({error}); restore it or run with --download"
        ) from error
    num_nodes = int(slices["x"][-1]) if "x" in slices else int(data.num_nodes)
    tags = (
        data.x[:, sizes["num_node_attributes"] :].argmax(dim=1)
        if data.x is not None
        else torch.zeros(num_nodes, dtype=torch.int64)
    )
    node_counts = (slices["x"].diff() if "x" in slices else torch.as_tensor(data._num_nodes)).tolist()
    graphs = [
        RawGraph(int(label), part, edges)
        for label, part, edges in zip(
            data.y.tolist(),
            tags.split(node_counts),
            data.edge_index.split(slices["edge_index"].diff().tolist(), dim=1),
            strict=True,
        )
    ]
    return _number(name or tu_name, graphs, self_loops, degree_features)


def _number(name: str, raw: list[RawGraph], self_loops: bool, degree_features: bool) -> Dataset:
    """Number classes and columns, add self loops, pack."""
    label_map = {label: index for index, label in enumerate(dict.fromkeys(graph.label for graph in raw))}
    edges = [with_loops(graph) if self_loops else graph.edges for graph in raw]
    if degree_features:
        values = [
            torch.bincount(edge[1], minlength=len(graph.tags)) for graph, edge in zip(raw, edges, strict=True)
        ]
        distinct = torch.cat(values).unique().tolist()
    else:
        values = [graph.tags for graph in raw]
        distinct = list(dict.fromkeys(torch.cat(values).tolist()))
    columns = {value: column for column, value in enumerate(distinct)}
    ascending, rank = torch.cat(values).unique(return_inverse=True)
    column_of_rank = torch.tensor([columns[value] for value in ascending.tolist()])
    nodes = column_of_rank[rank].split([len(graph.tags) for graph in raw])
    packed = graph_set(
        [
            (len(graph.tags), edge, node, label_map[graph.label])
            for graph, edge, node in zip(raw, edges, nodes, strict=True)
        ],
        num_features=len(columns),
        num_classes=len(label_map),
    )
    return Dataset(name, packed, label_map, columns, degree_features)


def with_loops(graph: RawGraph) -> Tensor:
    """The edges, then one more self loop for every node.

    COLLAB has 2837 self loops of its own; the authors' loader keeps them beside the added ones.
    """
    loops = torch.arange(len(graph.tags)).expand(2, -1)
    return torch.cat([graph.edges, loops], dim=1)


def read_text(path: Path) -> str:
    """A text file, decompressed where its name ends with ``.xz``.

    Raises:
        TenfoldError: missing, truncated, or no text.
    """
    try:
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes()).decode()
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise TenfoldError(f"there is no file {path}; give the path of an existing one") from error
    except (lzma.LZMAError, UnicodeDecodeError, EOFError) as error:
        raise TenfoldError(
            f"{path} cannot be read ({error}); the file is damaged, restore the original"
        ) from error
