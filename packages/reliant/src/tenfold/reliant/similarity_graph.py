"""Graphs made of tables: nodes whose rows are alike are connected (Agarwal et al., NIFTY, https://arxiv.org/abs/2102.13186)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import to_undirected

from tenfold.shared.logging import TenfoldError

_CHUNK_CELLS = 20_000_000


def build_similarity_edges(features: Tensor, threshold: float) -> Tensor:
    """Connect i to every j != i with sim(i, j) > threshold * m_i, and then each edge in both directions.

    sim(i, j) = 1 / (1 + Euclidean distance of the rows); m_i is the second largest value of row i (the largest is that
    of i with itself). Rows are handled in chunks, in double precision.

    Args:
        features: [N, d].
        threshold: tau, between 0 and 1.

    Returns:
        [2, E] with each undirected edge in both directions and no self loops, ordered.

    Raises:
        TenfoldError: fewer than two rows, or a threshold out of range.
    """
    if len(features) < 2 or not 0 < threshold < 1:
        raise TenfoldError(
            f"a similarity graph needs at least two rows and a threshold between 0 and 1, not {len(features)} "
            f"rows and {threshold:g}"
        )
    rows = features.double()
    size = max(1, _CHUNK_CELLS // len(rows))
    edges = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        similarity = 1 / (1 + torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist"))
        limit = threshold * similarity.topk(2, dim=1).values[:, 1:]
        i, j = (similarity > limit).nonzero(as_tuple=True)
        i = i + start
        edges.append(torch.stack([i, j])[:, i != j])
    undirected: Tensor = to_undirected(torch.cat(edges, dim=1), num_nodes=len(rows))
    return undirected
