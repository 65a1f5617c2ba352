"""The graphs of the paper, built from their raw tables by the authors' rules.

====================  =========================================================================================
``german``            German credit, bundled (1000 nodes)
``recidivism-3000``   3000 nodes of Recidivism with their edges, bundled; for the quick profile
``recidivism``        Recidivism (``bail``), 18876 nodes
``credit``            Credit defaults, 30000 nodes; needs the original edge file
``credit-recomputed`` the same table with edges by the published rule, a sparser graph than the authors'
``dblp``, ``dblp-l``  co-authors; need the authors' feature matrix ``X.npz``
====================  =========================================================================================

Sets that are not bundled are read from ``<data root>/reliant/<folder>``.
"""

from __future__ import annotations

import io
import lzma
import random
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tenfold.reliant.graphs import FairGraph, with_self_loops
from tenfold.reliant.similarity_graph import build_similarity_edges
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import replaced

logger = get_logger("reliant")

DATASETS = ("german", "recidivism-3000", "recidivism", "credit", "credit-recomputed", "dblp", "dblp-l")

_DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile)
"""What reading a damaged file raises."""

_NIFTY = "https://raw.githubusercontent.com/chirag126/nifty/main/dataset"
_RELIANT = "https://raw.githubusercontent.com/yushundong/RELIANT/main/data"


@dataclass(frozen=True)
class Table:
    """A data set that is a CSV file, whose graph follows from the rows."""

    folder: str
    """Below ``<data root>/reliant``; also the name of the files."""
    label: str
    """Column of the label."""
    sensitive: str
    """Column of the groups."""
    threshold: float
    """tau of the similarity rule."""
    left_out: tuple[str, ...] = ()
    """Columns that are no features."""
    downloads: tuple[tuple[str, str, str], ...] = ()
    """File, address and SHA-256 of what ``download`` fetches."""


GERMAN = Table("german", "GoodCustomer", "Gender", 0.8, ("OtherLoansAtStore", "PurposeOfLoan"))
RECIDIVISM = Table(
    "bail",
    "RECID",
    "WHITE",
    0.6,
    downloads=(
        (
            "bail.csv",
            f"{_NIFTY}/bail/bail.csv",
            "11a7c62be2b7aed7cb069624789755d5f57acc8b69580564e2401b084e2d5faf",
        ),
        (
            "split/train_split.npy",
            f"{_RELIANT}/bail/split/train_split.npy",
            "989a2c41430e94dc9a8febdd3c442345df31d9ecc6a6cb415888035b2ed4f5ad",
        ),
        (
            "split/val_split.npy",
            f"{_RELIANT}/bail/split/val_split.npy",
            "f1f5016a897ea9156f36b7d35fe07137cf0fe189380c05f8b81c2717c63c24f2",
        ),
        (
            "split/test_split.npy",
            f"{_RELIANT}/bail/split/test_split.npy",
            "09cf7912df9931da29eb0e33c0a419ed532b1ccc7af6e3d69422a2b3ec452330",
        ),
    ),
)
CREDIT = Table(
    "credit",
    "NoDefaultNextMonth",
    "Age",
    0.7,
    ("Single",),
    downloads=(
        (
            "credit.csv",
            f"{_NIFTY}/credit/credit.csv",
            "5d7a93f25a09dd1648c78b5e0c6a883ca832ee88259d89dfe1062e8c848bfe5d",
        ),
    ),
)
_TABLES = {"recidivism": RECIDIVISM, "credit": CREDIT, "credit-recomputed": CREDIT}
_DBLP_FOLDERS = {"dblp": "dblp", "dblp-l": "dblp-l"}


def load_dataset(
    source: str | Path,
    root: Path | None = None,
    download: bool = False,
    sensitive_column: int | None = None,
) -> FairGraph:
    """A data set by its name, or a graph of your own by its path (see :meth:`FairGraph.load`).

    Args:
        source: one of :data:`DATASETS` (``bail`` and ``small`` are accepted too), or the path of a ``.pt`` file.
        root: data root.
        download: fetch what is missing and can be fetched.
        sensitive_column: of a file, the column of x that holds the groups.

    Raises:
        TenfoldError: unknown name, missing or damaged files; the message says what to do.
    """
    aliases = {"bail": "recidivism", "small": "dblp", "medium": "dblp-l"}
    name = aliases.get(str(source), str(source))
    root = Path("data") if root is None else root
    if name == "german":
        return load_german()
    if name == "recidivism-3000":
        return load_recidivism_3000()
    if name == "recidivism":
        return load_recidivism(_folder(name, root, download))
    if name in ("credit", "credit-recomputed"):
        return load_credit(_folder(name, root, download), recomputed=name == "credit-recomputed")
    if name in _DBLP_FOLDERS:
        return load_dblp(name, root / "reliant" / _DBLP_FOLDERS[name])
    path = Path(source)
    if path.suffix != ".pt" and not path.is_file():
        raise TenfoldError(
            f"no data set {name!r}; choose one of {', '.join(DATASETS)}, or the path of a graph in a .pt file"
        )
    return FairGraph.load(path, sensitive_column)


def load_german() -> FairGraph:
    """German credit: amount, age and duration scaled to [-1, 1] first, then the similarity graph at 0.8."""
    frame = pd.read_csv(io.BytesIO(_bundled("german.csv.xz")))
    frame["Gender"] = (frame["Gender"] == "Female").astype(int)
    for column in ("LoanAmount", "Age", "LoanDuration"):
        values = frame[column].astype(float)
        frame[column] = 2 * (values - values.min()) / (values.max() - values.min()) - 1
    features, names = _features(frame, GERMAN)
    labels = torch.from_numpy((frame[GERMAN.label] == 1).to_numpy().astype(np.int64))
    train, val, test = split_per_class(labels, seed=0, most_train_labels=None)
    return FairGraph(
        name="german",
        features=features.float(),
        labels=labels,
        sensitive=_column(frame, GERMAN.sensitive),
        edge_index=with_self_loops(build_similarity_edges(features, GERMAN.threshold), len(frame)),
        train=train,
        val=val,
        test=test,
        feature_names=names,
        provenance="UCI German credit as tabulated by NIFTY; edges by its similarity rule",
    )


def load_recidivism(folder: Path) -> FairGraph:
    """Recidivism: similarity graph of the raw rows at 0.6, then each row divided by its sum; the stored split."""
    frame = _read_csv(folder / "bail.csv", RECIDIVISM)
    raw, names = _features(frame, RECIDIVISM)
    edges, where = _edges(folder, RECIDIVISM, raw, len(frame), allow_original=True)
    splits = [
        _stored_split(folder / "split" / f"{part}_split.npy", len(frame)) for part in ("train", "val", "test")
    ]
    return FairGraph(
        name="recidivism",
        features=(raw / raw.sum(dim=1, keepdim=True)).float(),
        labels=_column(frame, RECIDIVISM.label),
        sensitive=_column(frame, RECIDIVISM.sensitive),
        edge_index=edges,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        feature_names=names,
        provenance=f"Jordan and Freiman's release cohorts as tabulated by NIFTY; {where}",
    )


def load_recidivism_3000() -> FairGraph:
    """The bundled 3000 nodes of Recidivism, with the edges among them and their part of the stored split."""
    with np.load(io.BytesIO(_bundled("recidivism_3000.npz")), allow_pickle=False) as stored:
        parts = {
            name: torch.from_numpy(stored[name].astype(np.int64)) for name in stored.files if name != "names"
        }
        names = tuple(str(name) for name in stored["names"])
    raw = parts["features"].double()
    return FairGraph(
        name="recidivism-3000",
        features=(raw / raw.sum(dim=1, keepdim=True)).float(),
        labels=parts["labels"],
        sensitive=parts["sensitive"],
        edge_index=with_self_loops(parts["edges"], len(raw)),
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        feature_names=names,
        provenance="3000 nodes of: Jordan and Freiman's release cohorts as tabulated by NIFTY; edges by its rule",
    )


def load_credit(folder: Path, recomputed: bool) -> FairGraph:
    """Credit defaults: at most 500 training nodes a class, the rest of the rule as for German credit.

    Args:
        folder: holds ``credit.csv``.
        recomputed: take the edges of the published rule (137377) instead of the authors' file (1421858).
    """
    frame = _read_csv(folder / "credit.csv", CREDIT)
    features, names = _features(frame, CREDIT)
    original = folder / "credit_edges.txt"
    if not recomputed and not original.exists():
        raise TenfoldError(
            f"the authors' edges of credit are not at {original} and follow from no published rule; put their file "
            "there, or choose the data set credit-recomputed"
        )
    edges, where = _edges(folder, CREDIT, features, len(frame), allow_original=not recomputed)
    labels = _column(frame, CREDIT.label)
    train, val, test = split_per_class(labels, seed=20, most_train_labels=1000)
    return FairGraph(
        name="credit-recomputed" if recomputed else "credit",
        features=features.float(),
        labels=labels,
        sensitive=_column(frame, CREDIT.sensitive),
        edge_index=edges,
        train=train,
        val=val,
        test=test,
        feature_names=names,
        provenance=f"UCI credit card defaults as tabulated by NIFTY; {where}",
    )


def load_dblp(name: str, folder: Path) -> FairGraph:
    """DBLP or DBLP-L from the authors' files: y = 1 for class 3, s = 1 for continent 2; the stored split."""
    needed = [
        "edgelist.txt",
        "labels.txt",
        "sens.txt",
        "X.npz",
        *(f"split/{p}_split.npy" for p in ("train", "val", "test")),
    ]
    if missing := [file for file in needed if not (folder / file).is_file()]:
        raise TenfoldError(
            f"{name} needs {', '.join(missing)} in {folder}, which only the paper's authors distribute; the quick "
            "profile needs no further data"
        )
    try:
        with np.load(folder / "X.npz", allow_pickle=False) as stored:
            indices = np.stack([stored["row"], stored["col"]]).astype(np.int64)
            values, shape = stored["data"].astype(np.float32), tuple(int(size) for size in stored["shape"])
        features = torch.sparse_coo_tensor(
            torch.from_numpy(indices), torch.from_numpy(values), shape
        ).to_dense()
        edges = np.loadtxt(folder / "edgelist.txt", dtype=np.int64, ndmin=2)
        columns = {}
        for file, positive in (("labels.txt", 3), ("sens.txt", 2)):
            rows = np.loadtxt(folder / file, ndmin=2)
            nodes, values_of = rows[:, 0].astype(np.int64), np.zeros(len(features), dtype=np.int64)
            if nodes.min() < 0:
                raise ValueError(f"{file} names node {nodes.min()}")
            values_of[nodes] = rows[:, 1] == positive
            columns[file] = torch.from_numpy(values_of)
        edge_index = with_self_loops(torch.from_numpy(edges.T.copy()), len(features))
        if not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(features):
            raise ValueError("edgelist.txt names nodes that X.npz does not have")
    except (*_DAMAGE, KeyError, IndexError, RuntimeError) as error:
        raise TenfoldError(
            f"the files of {name} in {folder} are damaged ({error}); restore the originals"
        ) from error
    splits = [
        _stored_split(folder / "split" / f"{part}_split.npy", len(features))
        for part in ("train", "val", "test")
    ]
    return FairGraph(
        name=name,
        features=features,
        labels=columns["labels.txt"],
        sensitive=columns["sens.txt"],
        edge_index=edge_index,
        train=splits[0],
        val=splits[1],
        test=splits[2],
        provenance="co-authorship graph distributed by the authors of RELIANT",
    )


def split_per_class(
    labels: Tensor, seed: int, most_train_labels: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """NIFTY's split: shuffle each class; its first half trains, the next quarter validates, the rest is for tests.

    Args:
        labels: [N], 0 or 1.
        seed: of Python's generator.
        most_train_labels: training nodes of both classes together, at most; half of them for each.
    """
    generator = random.Random(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    classes = [np.flatnonzero(labels.numpy() == value) for value in (0, 1)]
    for nodes in classes:
        generator.shuffle(nodes)  # type: ignore[arg-type]  # swaps in place, as for a list
    for nodes in classes:
        half, three_quarters = int(0.5 * len(nodes)), int(0.75 * len(nodes))
        most = half if most_train_labels is None else min(half, most_train_labels // 2)
        parts["train"].append(nodes[:most])
        parts["val"].append(nodes[half:three_quarters])
        parts["test"].append(nodes[three_quarters:])
    train, val, test = (torch.from_numpy(np.sort(np.concatenate(part))) for part in parts.values())
    return train, val, test


def store_similarity_graph(name: str, root: Path, download: bool = False) -> Path:
    """Build the similarity graph of ``recidivism`` or ``credit-recomputed`` once and keep it beside the table.

    Returns:
        The file, which :func:`load_dataset` reads from then on.

    Raises:
        TenfoldError: the data set has no such graph, or its table is missing.
    """
    if name not in ("recidivism", "credit-recomputed"):
        raise TenfoldError(f"{name} needs no stored similarity graph; choose recidivism or credit-recomputed")
    table = _TABLES[name]
    folder = _folder(name, root, download)
    features, _ = _features(_read_csv(folder / f"{table.folder}.csv", table), table)
    edges = build_similarity_edges(features, table.threshold)
    undirected = edges[:, edges[0] < edges[1]].t().to(torch.int32).numpy()
    path = folder / f"{table.folder}_edges_undirected.npz"
    with replaced(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, edges=undirected)
    return path


def _folder(name: str, root: Path, download: bool) -> Path:
    """Where a table is, once it is there."""
    table = _TABLES[name]
    folder = root / "reliant" / table.folder
    missing = [entry for entry in table.downloads if not (folder / entry[0]).is_file()]
    if missing and not download:
        raise TenfoldError(
            f"the data set {name} is missing: {folder} has no {', '.join(file for file, _, _ in missing)}; add "
            "--download to fetch it, or name its folder with --data-root; the quick profile needs no further data"
        )
    if missing:
        import pooch

        for file, address, sha256 in missing:
            target = folder / file
            try:
                pooch.retrieve(address, f"sha256:{sha256}", fname=target.name, path=target.parent)
            except (OSError, ValueError) as error:
                raise TenfoldError(
                    f"{address} could not be fetched ({type(error).__name__}); put it at {target}"
                ) from error
    return folder


def _edges(
    folder: Path, table: Table, features: Tensor, num_nodes: int, allow_original: bool
) -> tuple[Tensor, str]:
    """Message edges of a table, and where they come from: the original file, a stored graph, or the rule itself."""
    original, stored = folder / f"{table.folder}_edges.txt", folder / f"{table.folder}_edges_undirected.npz"
    path = original if allow_original and original.exists() else stored
    if not path.exists():
        logger.info(
            "building the similarity graph of %d rows; tenfold-reliant build-graph keeps it", num_nodes
        )
        edges = build_similarity_edges(features, table.threshold)
        return with_self_loops(edges, num_nodes), "edges by its similarity rule"
    try:
        if path == original:
            pairs = np.loadtxt(path).astype(np.int64)
        else:
            with np.load(path, allow_pickle=False) as content:
                pairs = content["edges"].astype(np.int64)
        edges = torch.from_numpy(pairs.T.copy())
        if edges.ndim != 2 or len(edges) != 2 or not _are_nodes(edges, num_nodes):
            raise ValueError(f"it does not hold pairs of the {num_nodes} rows of {table.folder}.csv")
    except (*_DAMAGE, KeyError) as error:
        raise TenfoldError(
            f"{path} is damaged or of another table ({error}); restore both, or remove it to build the edges anew"
        ) from error
    return with_self_loops(edges, num_nodes), (
        "edges of the original file" if path == original else "edges by its similarity rule"
    )


def _read_csv(path: Path, table: Table) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise TenfoldError(f"{path} is damaged ({error}); restore the original") from error
    if absent := [name for name in (table.label, table.sensitive, *table.left_out) if name not in frame]:
        raise TenfoldError(f"{path} has no column {absent[0]}; restore the original")
    numbers = frame.drop(columns=list(table.left_out))
    if any(not pd.api.types.is_numeric_dtype(kind) for kind in numbers.dtypes) or numbers.isna().any(
        axis=None
    ):
        raise TenfoldError(f"{path} holds something that is no number; restore the original")
    return frame


def _features(frame: pd.DataFrame, table: Table) -> tuple[Tensor, tuple[str, ...]]:
    """All columns but the label and those left out, [N, d] in double precision, and their names."""
    names = tuple(name for name in frame.columns if name not in (table.label, *table.left_out))
    return torch.tensor(frame[list(names)].to_numpy(dtype=np.float64)), names


def _column(frame: pd.DataFrame, name: str) -> Tensor:
    return torch.tensor(frame[name].to_numpy(dtype=np.int64))


def _stored_split(path: Path, num_nodes: int) -> Tensor:
    try:
        nodes = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))
        if nodes.ndim != 1 or not _are_nodes(nodes, num_nodes):
            raise ValueError(f"it does not hold numbers of {num_nodes} nodes")
    except FileNotFoundError as error:
        raise TenfoldError(f"there is no split at {path}; restore it, or add --download") from error
    except _DAMAGE as error:
        raise TenfoldError(f"{path} is damaged ({error}); restore the original") from error
    return nodes


def _are_nodes(values: Tensor, num_nodes: int) -> bool:
    return values.numel() > 0 and 0 <= int(values.min()) <= int(values.max()) < num_nodes


def _bundled(name: str) -> bytes:
    content = resources.files("tenfold.reliant").joinpath("bundled", name).read_bytes()
    return lzma.decompress(content) if name.endswith(".xz") else content
