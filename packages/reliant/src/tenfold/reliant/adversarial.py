"""GraphAKD's adversarial distillation: discriminators of logits, edges and summaries, and their losses.

He et al., Compressing Deep Graph Neural Networks via Adversarial Knowledge Distillation, https://arxiv.org/abs/2205.11678.
The student is the generator; each discriminator tries to tell its outputs from the teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from tenfold.reliant.backends import Topology
from tenfold.reliant.node_output import NodeOutput
from tenfold.shared.logging import TenfoldError


class LogitDiscriminator(nn.Module):
    """D_l(z) = V ReLU(z + W z + b): C class logits, and in the last column real (high) against fake."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.lin = nn.Linear(num_classes, num_classes)
        self.lin2 = nn.Linear(num_classes, num_classes + 1, bias=False)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """[n, C] to (class logits [n, C], real-or-fake logits [n])."""
        out = self.lin2(torch.relu(logits + self.lin(logits)))
        return out[:, :-1], out[:, -1]


class EdgeDiscriminator(nn.Module):
    """D_e(E) = scale <e_u * d, e_v> for each edge u -> v, rows of E normalised to length 1."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.ones(embedding_dim))
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, embedding: Tensor, topology: Topology) -> Tensor:
        """Embedding [n, h] to real-or-fake logits [E] of the topology's edges."""
        unit = normalize(embedding, dim=1)
        return topology.edge_products(unit * self.d, unit) * self.scale


class SummaryDiscriminator(nn.Module):
    """D_g(E, m) = scale <e_v * d, m> for each node v, rows of E normalised to length 1."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.d = nn.Parameter(torch.ones(embedding_dim))
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, embedding: Tensor, summary: Tensor) -> Tensor:
        """Embedding [n, h] and summary [h] to real-or-fake logits [n]."""
        return normalize(embedding, dim=1) @ (self.d * summary) * self.scale


class Discriminators(nn.Module):
    """The three of them.

    Args:
        num_classes: C.
        embedding_dim: h, the width of the teacher's and the student's embedding.
    """

    def __init__(self, num_classes: int, embedding_dim: int) -> None:
        super().__init__()
        self.logit = LogitDiscriminator(num_classes)
        self.local = EdgeDiscriminator(embedding_dim)
        self.summary = SummaryDiscriminator(embedding_dim)


def summarize(embedding: Tensor) -> Tensor:
    """M = sigmoid(mean over nodes of E), [n, h] to [h]; E is not normalised here."""
    return torch.sigmoid(embedding.mean(dim=0))


def looks_real(logits: Tensor) -> Tensor:
    """bce1: mean binary cross-entropy of sigmoid(logits) with 1."""
    return softplus(-logits).mean()


def looks_fake(logits: Tensor) -> Tensor:
    """bce0: mean binary cross-entropy of sigmoid(logits) with 0."""
    return softplus(logits).mean()


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy; 0 where a sampled batch has no labelled node."""
    return cross_entropy(logits, labels, reduction="sum") / max(1, len(labels))


def discriminator_losses(
    discriminators: Discriminators,
    teacher: NodeOutput,
    student: NodeOutput,
    topology: Topology,
    labels: Tensor,
    train_nodes: Tensor,
    nodes: Tensor | None = None,
) -> dict[str, Tensor]:
    """What the discriminators minimise; the student must be detached.

    Args:
        discriminators: D_l, D_e, D_g.
        teacher: its log-probabilities as ``logits`` [n, C], and embedding [n, h].
        student: logits [n, C] and embedding [n, h], without gradient.
        topology: whose edges D_e judges.
        labels: [n].
        train_nodes: nodes whose labels may be used.
        nodes: [k], the nodes that are judged, and the edges into them; all by default. In a sampled batch the first k
            nodes are those with complete neighbourhoods.

    Returns:
        ``adv`` and ``cls`` (sums over teacher and student, weighed by 1/2 in the total), ``local``,
        ``global_teacher_summary``, ``global_student_summary``, ``total``.
    """
    d_e, d_g = discriminators.local, discriminators.summary
    edges = slice(None) if nodes is None else torch.isin(topology.edge_index[1], nodes)
    embedding_t, embedding_s = _embeddings(teacher, student)
    judged_t, judged_s = _select(embedding_t, nodes), _select(embedding_s, nodes)
    classes_t, real_t = discriminators.logit(teacher.logits)
    classes_s, real_s = discriminators.logit(student.logits)
    summary_t, summary_s = summarize(judged_t), summarize(judged_s)
    adv = looks_real(_select(real_t, nodes)) + looks_fake(_select(real_s, nodes))
    of_train = labels[train_nodes]
    cls = classification(classes_t[train_nodes], of_train) + classification(classes_s[train_nodes], of_train)
    terms = {
        "adv": adv,
        "cls": cls,
        "local": looks_real(d_e(embedding_t, topology)[edges])
        + looks_fake(d_e(embedding_s, topology)[edges]),
        "global_teacher_summary": looks_real(d_g(judged_t, summary_t)) + looks_fake(d_g(judged_s, summary_t)),
        "global_student_summary": looks_real(d_g(judged_s, summary_s)) + looks_fake(d_g(judged_t, summary_s)),
    }
    return {**terms, "total": sum(terms.values()) - 0.5 * (adv + cls)}


def student_losses(
    discriminators: Discriminators,
    teacher: NodeOutput,
    student: NodeOutput,
    topology: Topology,
    labels: Tensor,
    train_nodes: Tensor,
    nodes: Tensor | None = None,
) -> dict[str, Tensor]:
    """What the student minimises, without the bias term. Arguments as for :func:`discriminator_losses`.

    Returns:
        ``label`` (cross-entropy on training nodes), ``adv`` and ``cls`` (weighed by 1/2 in the total), ``l1``
        (between raw student logits and teacher *log-probabilities*, as the authors have it), ``local``,
        ``global_teacher_summary``, ``global_student_summary``, ``total``.
    """
    d_e, d_g = discriminators.local, discriminators.summary
    edges = slice(None) if nodes is None else torch.isin(topology.edge_index[1], nodes)
    embedding_t, embedding_s = _embeddings(teacher, student)
    judged_t, judged_s = _select(embedding_t, nodes), _select(embedding_s, nodes)
    classes_s, real_s = discriminators.logit(student.logits)
    summary_t, summary_s = summarize(judged_t), summarize(judged_s)
    adv = looks_real(_select(real_s, nodes))
    of_train = labels[train_nodes]
    cls = classification(classes_s[train_nodes], of_train)
    gap = (_select(student.logits, nodes) - _select(teacher.logits, nodes)).abs()
    terms = {
        "label": classification(student.logits[train_nodes], of_train),
        "adv": adv,
        "cls": cls,
        "l1": gap.sum() / len(gap),
        "local": looks_real(d_e(embedding_s, topology)[edges]),
        "global_teacher_summary": looks_real(d_g(judged_s, summary_t)),
        "global_student_summary": looks_real(d_g(judged_s, summary_s)) + looks_fake(d_g(judged_t, summary_s)),
    }
    return {**terms, "total": sum(terms.values()) - 0.5 * (adv + cls)}


def _select(values: Tensor, nodes: Tensor | None) -> Tensor:
    return values if nodes is None else values[nodes]


def _embeddings(teacher: NodeOutput, student: NodeOutput) -> tuple[Tensor, Tensor]:
    if teacher.embedding is None or student.embedding is None:
        who = "teacher" if teacher.embedding is None else "student"
        raise TenfoldError(
            f"adversarial distillation compares embeddings, but this {who} returns logits only; "
            "let it return (logits, embedding), or choose the cpf framework"
        )
    if teacher.embedding.shape[1] != student.embedding.shape[1]:
        raise TenfoldError(
            f"adversarial distillation needs embeddings of one width, but the teacher's has "
            f"{teacher.embedding.shape[1]} columns and the student's {student.embedding.shape[1]}; "
            "give the student the teacher's width, or choose the cpf framework"
        )
    return teacher.embedding, student.embedding
