"""The settings of every benchmark, as the authors of CoCa and of its baselines printed them.

A row is what one method uses at one memory size: (learning rate, images of a draw, alpha, beta). Where a source names
no value for a method, the row of its nearest relative stands in; the package README lists these.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tenfold.coca.config import LearnerConfig, NetworkConfig, StreamConfig, TrainConfig

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "CoCa w/o CD": ("CoCa", {"gamma": 0.0}),
    "CoCa w/o CSS": ("CoCa", {"contrastive_weight": 0.0, "pretext_weight": 0.0}),
    "CoCa w/o contrast": ("CoCa", {"contrastive_weight": 0.0}),
    "CoCa w/o pretext": ("CoCa", {"pretext_weight": 0.0}),
    "CoCa with boundaries": ("CoCa", {"task_boundaries": True}),
    "CoCa strong CD": ("CoCa", {"gamma": 0.1, "omega": 0.5}),
}
"""Ablations of CoCa: the method they vary, and what they change."""


class Row(NamedTuple):
    """A line of a table of hyperparameters."""

    lr: float
    memory_batch_size: int = 32
    alpha: float = 0.0
    beta: float = 0.0
    batch_size: int | None = None
    """Images of the stream at once, where not the benchmark's."""


class Benchmark(NamedTuple):
    """A stream, the network for it, and the rows of each method at the three memory sizes."""

    stream: StreamConfig
    network: NetworkConfig
    memory_sizes: tuple[int, int, int]
    rows: dict[str, tuple[Row, Row, Row]]
    learner: dict[str, Any] = {}  # noqa: RUF012
    """Further settings of every method."""
    coca_epochs: int | None = None
    """Passes of CoCa over a task, where not the benchmark's."""


def _same(row: Row) -> tuple[Row, Row, Row]:
    return row, row, row


_RESNET = NetworkConfig()
_MLP = NetworkConfig("mlp", projection_dim=32, init="xavier")

BENCHMARKS: dict[str, Benchmark] = {
    "cifar10": Benchmark(
        StreamConfig("s-cifar-10"),
        _RESNET,
        (200, 500, 5120),
        {
            "SGD": _same(Row(0.1)),
            "ER": _same(Row(0.1, 128)),
            "DER": _same(Row(0.03, 32, 0.3)),
            "DER++": (Row(0.03, 32, 0.1, 0.5), Row(0.03, 32, 0.2, 0.5), Row(0.03, 32, 0.1, 1.0)),
            "CoCa": (Row(0.03, 32, 0.1, 0.5), Row(0.03, 32, 0.2, 0.5), Row(0.03, 32, 0.1, 1.0)),
        },
    ),
    "cifar100": Benchmark(
        StreamConfig("s-cifar-100"),
        _RESNET,
        (200, 500, 5120),
        {
            "SGD": _same(Row(0.1)),
            "ER": _same(Row(0.1, 32)),
            "DER": (Row(0.03, 32, 0.1), Row(0.03, 32, 0.2), Row(0.03, 32, 0.1)),
            "DER++": (Row(0.03, 32, 0.1, 0.5), Row(0.03, 32, 0.2, 0.5), Row(0.03, 32, 0.1, 1.0)),
            "CoCa": (Row(0.03, 32, 0.1, 0.5), Row(0.03, 32, 0.2, 0.5), Row(0.03, 32, 0.1, 1.0)),
        },
    ),
    "tinyimagenet": Benchmark(
        StreamConfig("s-tiny-imagenet", epochs=100),
        _RESNET,
        (200, 500, 5120),
        {
            "SGD": _same(Row(0.03)),
            "ER": (Row(0.1, 32), Row(0.03, 32), Row(0.1, 32)),
            "DER": _same(Row(0.03, 32, 0.1)),
            "DER++": (Row(0.03, 32, 0.1, 1.0), Row(0.03, 32, 0.2, 0.5), Row(0.03, 32, 0.1, 0.5)),
            "CoCa": (Row(0.1, 32, 0.1, 1.0), Row(0.1, 32, 0.1, 0.5), Row(0.1, 32, 0.1, 0.5)),
        },
        {"views": "scale-rotate"},
        coca_epochs=50,
    ),
    "smnist": Benchmark(
        StreamConfig("s-mnist", batch_size=10, epochs=1),
        _MLP,
        (200, 500, 5120),
        {
            "SGD": _same(Row(0.03)),
            "ER": (Row(0.01, 10), Row(0.1, 10), Row(0.1, 10)),
            "DER": (Row(0.03, 10, 0.2), Row(0.03, 128, 1.0), Row(0.1, 128, 0.5)),
            "DER++": (Row(0.03, 128, 0.2, 1.0), Row(0.03, 10, 1.0, 0.5), Row(0.1, 64, 0.2, 0.5)),
        },
        {"views": "rotate"},
    ),
    "pmnist": Benchmark(
        StreamConfig("p-mnist", batch_size=128, epochs=1),
        _MLP,
        (200, 500, 5120),
        {
            "SGD": _same(Row(0.2)),
            "ER": _same(Row(0.2, 128)),
            "DER": (Row(0.2, 128, 1.0), Row(0.2, 128, 1.0), Row(0.2, 128, 0.5)),
            "DER++": (Row(0.1, 128, 1.0, 1.0), Row(0.2, 128, 1.0, 0.5), Row(0.2, 128, 0.5, 1.0)),
        },
        {"views": "rotate"},
    ),
    "rmnist": Benchmark(
        StreamConfig("r-mnist", batch_size=128, epochs=1),
        _MLP,
        (200, 500, 5120),
        {
            "SGD": _same(Row(0.2)),
            "ER": _same(Row(0.2, 128)),
            "DER": (Row(0.2, 128, 1.0), Row(0.2, 128, 0.5), Row(0.2, 128, 0.5)),
            "DER++": (Row(0.1, 128, 1.0, 0.5), Row(0.2, 128, 0.5, 1.0), Row(0.2, 128, 0.5, 0.5)),
        },
        {"views": "rotate", "pretext_weight": 0.0},  # rotation is what shifts between these tasks
    ),
    "mnist360": Benchmark(
        StreamConfig("mnist-360", batch_size=4, epochs=1),
        _MLP,
        (200, 500, 1000),
        {
            "SGD": _same(Row(0.1)),
            "ER": (Row(0.2, 16, batch_size=1), Row(0.2, 16, batch_size=1), Row(0.2, 16)),
            "DER": (
                Row(0.1, 64, 0.5, batch_size=16),
                Row(0.2, 16, 0.5, batch_size=16),
                Row(0.1, 16, 0.5, batch_size=8),
            ),
            "DER++": (
                Row(0.2, 16, 0.5, 1.0, batch_size=16),
                Row(0.2, 16, 0.5, 1.0, batch_size=16),
                Row(0.2, 128, 0.2, 1.0, batch_size=16),
            ),
        },
        {"views": "rotate"},
    ),
}
"""The benchmarks of section 5 of the specification's sources, by the first part of their profiles' names."""

_STANDS_IN = {
    "JOINT": "SGD",
    "ER-ACE": "ER",
    "A-GEM": "ER",
    "A-GEM-R": "ER",
    "GEM": "ER",
    "iCaRL": "ER",
    "FDR": "DER",
    "OCD-Net": "ER",
    "CoCa": "DER++",
}
"""Whose row a method takes where it has none of its own."""

_OWN: dict[str, dict[str, Any]] = {
    "iCaRL": {"weight_decay": 1e-5},
    "OCD-Net": {"alpha": 0.1},
}


def paper_config(benchmark: str, method: str, memory_size: int) -> TrainConfig:
    """What a method or an ablation of CoCa uses on a benchmark, to the letter.

    Args:
        benchmark: key of :data:`BENCHMARKS`.
        method: of :data:`tenfold.coca.methods.METHODS` or :data:`VARIANTS`.
        memory_size: one of the benchmark's.
    """
    chosen = BENCHMARKS[benchmark]
    base, changes = VARIANTS.get(method, (method, {}))
    which = chosen.memory_sizes.index(memory_size)
    row = chosen.rows[base if base in chosen.rows else _STANDS_IN[base]][which]
    settings: dict[str, Any] = {
        "method": base,
        "lr": row.lr,
        "memory_size": 0 if base in ("SGD", "JOINT") else memory_size,
        "memory_batch_size": row.memory_batch_size,
        "alpha": row.alpha,
        "beta": row.beta,
        **chosen.learner,
        **_OWN.get(base, {}),
    }
    if base == "OCD-Net":
        settings |= {"beta": (0.5, 0.5, 1.0)[which], "teacher_update_rate": (0.2, 0.2, 0.8)[which]}
        if chosen.network.name == "resnet18":
            settings["lr"] = 0.1
    stream = {} if row.batch_size is None else {"batch_size": row.batch_size}
    if base == "CoCa" and chosen.coca_epochs is not None:
        stream["epochs"] = chosen.coca_epochs
    return TrainConfig(
        LearnerConfig(**settings | changes),
        StreamConfig(**{**vars(chosen.stream), **stream}),
        chosen.network,
    )
