"""Pictures for the run record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import networkx as nx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tenfold.gfkd.graphs import GraphSet

_COLOURS = matplotlib.colormaps["tab20"]
_MOST_ARROWS = 600
"""Denser graphs are drawn with plain lines: each arrow is a picture element of its own, and takes its time."""


def draw_graphs(rows: Mapping[str, GraphSet], path: Path, columns: int = 6) -> None:
    """Draw the first ``columns`` graphs of each set in a row of its own; nodes coloured by their class.

    Args:
        rows: title of each row, and its graphs.
        path: PNG file.
        columns: graphs in a row.
    """
    figure = Figure(figsize=(2.1 * columns, 2.35 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for (title, graphs), row in zip(rows.items(), axes, strict=True):
        for axis in row:
            axis.set_axis_off()
        for index, axis in zip(range(min(columns, len(graphs))), row, strict=False):
            _draw(graphs.select([index]), axis)
        row[0].set_title(title, loc="left", fontsize=11)
    figure.savefig(path, dpi=110, format="png")


def _draw(graph: GraphSet, axis: Axes) -> None:
    structure: nx.DiGraph[int] = nx.DiGraph()
    structure.add_nodes_from(range(int(graph.node_counts[0])))
    structure.add_edges_from((int(a), int(b)) for a, b in graph.edges.t() if a != b)
    mutual = [edge for edge in structure.edges if structure.has_edge(*edge[::-1]) and edge[0] < edge[1]]
    one_way = [edge for edge in structure.edges if not structure.has_edge(*edge[::-1])]
    iterations = max(5, min(200, 10_000 // len(structure)))
    places = nx.spring_layout(structure.to_undirected(), seed=0, iterations=iterations)
    classes = graph.nodes.tolist() if not graph.nodes.is_floating_point() else [0] * len(structure)
    colours = [_COLOURS(value % 20) for value in classes]
    nx.draw_networkx_nodes(structure, places, ax=axis, node_size=34, node_color=colours)
    grey = "#78849c"
    nx.draw_networkx_edges(
        structure, places, edgelist=mutual, arrows=False, ax=axis, width=0.6, edge_color=grey
    )
    if structure.number_of_edges() <= _MOST_ARROWS:
        nx.draw_networkx_edges(
            structure,
            places,
            edgelist=one_way,
            arrowsize=4,
            node_size=34,
            ax=axis,
            width=0.6,
            edge_color=grey,
        )
    else:
        nx.draw_networkx_edges(
            structure, places, edgelist=one_way, arrows=False, ax=axis, width=0.6, edge_color=grey
        )
    label = f"class {int(graph.labels[0])}, {len(structure)} nodes, {structure.number_of_edges()} edges"
    axis.text(0.5, -0.04, label, transform=axis.transAxes, ha="center", va="top", fontsize=6.5)


def draw_curve(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str, path: Path) -> None:
    """One learning curve on a logarithmic scale."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.plot(x, y, color="#2f6fde", linewidth=1.5)
    axis.set(xlabel=x_label, ylabel=y_label, yscale="log")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110, format="png")
