"""What a network says about nodes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tenfold.shared.logging import TenfoldError


class NodeOutput(NamedTuple):
    """The output of a teacher or a student on n nodes."""

    logits: Tensor
    """[n, C]."""
    embedding: Tensor | None = None
    """[n, h], what adversarial distillation compares; None where a network has nothing to show."""
    pinned: Tensor | None = None
    """[n] bool, rows whose logits are their known label instead of a decision; None where there are none."""

    def rows(self, nodes: Tensor | None) -> NodeOutput:
        """The output on some of the nodes; None takes all."""
        if nodes is None:
            return self
        return NodeOutput(*(None if part is None else part[nodes] for part in self))  # type: ignore[arg-type]

    def detach(self) -> NodeOutput:
        return NodeOutput(*(None if part is None else part.detach() for part in self))  # type: ignore[arg-type]


def as_node_output(value: object) -> NodeOutput:
    """What any network returned: logits, (logits, embedding), or a :class:`NodeOutput`.

    Raises:
        TenfoldError: it is something else, or not one row of logits a node.
    """
    if isinstance(value, Tensor):
        value = NodeOutput(value)
    elif isinstance(value, tuple) and not isinstance(value, NodeOutput):
        value = NodeOutput(*value)
    if not isinstance(value, NodeOutput) or value.logits.ndim != 2:
        raise TenfoldError("a teacher or student must return logits [nodes, classes], or (logits, embedding)")
    return value
