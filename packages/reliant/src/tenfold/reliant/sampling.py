"""Sampled neighbourhoods, vectorised over nodes; for torch_geometric's loaders, without compiled extensions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput


class NeighbourSampler(BaseSampler):  # type: ignore[misc]
    """For each hop and each node reached last, draws some of its incoming edges without replacement.

    torch_geometric's own sampler needs pyg-lib or torch-sparse, which are not on the package index; this one needs
    neither. Neighbours are drawn with torch's global generator.

    Args:
        edge_index: [2, E].
        num_nodes: N.
        fanout: incoming edges drawn for a node, hop by hop; -1 takes all.
    """

    def __init__(self, edge_index: Tensor, num_nodes: int, fanout: tuple[int, ...]) -> None:
        self.fanout = fanout
        order = edge_index[1].argsort(stable=True)
        self._sources = edge_index[0][order]
        counts = torch.bincount(edge_index[1], minlength=num_nodes)
        self._starts, self._counts = counts.cumsum(0) - counts, counts
        self._row_of_node = torch.full((num_nodes,), -1, dtype=torch.int64)

    def sample_from_nodes(self, inputs: NodeSamplerInput) -> SamplerOutput:
        """The seeds first, then the nodes in the order they were reached; edges point towards the seeds."""
        seeds = inputs.node
        row_of_node = self._row_of_node
        nodes, rows, columns = [seeds], [], []
        row_of_node[seeds] = torch.arange(len(seeds))
        num_nodes, frontier = len(seeds), seeds
        for fanout in self.fanout:
            owner, positions = self._draw(frontier, fanout)
            sources = self._sources[positions]
            new = sources[row_of_node[sources] < 0].unique()
            row_of_node[new] = torch.arange(num_nodes, num_nodes + len(new))
            rows.append(row_of_node[sources])
            columns.append(row_of_node[frontier][owner])
            nodes.append(new)
            num_nodes, frontier = num_nodes + len(new), new
        reached = torch.cat(nodes)
        row_of_node[reached] = -1
        return SamplerOutput(
            node=reached,
            row=torch.cat(rows),
            col=torch.cat(columns),
            edge=None,
            metadata=(inputs.input_id, None),
        )

    def sample_from_edges(self, *arguments: object) -> SamplerOutput:  # noqa: ARG002
        """Not for this sampler."""
        raise TypeError("a NeighbourSampler draws around nodes; give it to a NodeLoader")

    def _draw(self, frontier: Tensor, fanout: int) -> tuple[Tensor, Tensor]:
        """For the edges drawn: which of the frontier's nodes they enter, and their positions ordered by target."""
        counts = self._counts[frontier]
        owner = torch.repeat_interleave(counts)
        within = torch.arange(len(owner)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        if fanout >= 0:
            # A random order within each node's edges; its first `fanout` are drawn.
            shuffled = (owner + torch.rand(len(owner), dtype=torch.float64)).argsort()
            drawn = within < fanout
            owner, within = owner[drawn], within[shuffled][drawn]
        return owner, self._starts[frontier][owner] + within
