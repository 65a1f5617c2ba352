"""The settings of every benchmark, as the authors of CoCa and of its baselines published them.

A row is what one method uses at one memory size. CoCa's and those of SGD, ER, DER and DER++ are in the specification's
tables; those of the other baselines are the published best arguments of the code base that CoCa builds on. Where
neither names a value, the row of the nearest relative stands in (:data:`STANDS_IN`); the package README lists these
gaps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from tenfold.coca.config import LearnerConfig, NetworkConfig, StreamConfig, TrainConfig

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "CoCa w/o CD": ("CoCa", {"gamma": 0.0}),
    "CoCa w/o CSS": ("CoCa", {"contrastive_weight": 0.0, "pretext_weight": 0.0}),
    "CoCa w/o contrast": ("CoCa", {"contrastive_weight": 0.0}),
    "CoCa w/o pretext": ("CoCa", {"pretext_weight": 0.0}),
    "CoCa with boundaries": ("CoCa", {"task_boundaries": True}),
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
    gem_margin: float = 0.5
    weight_decay: float = 0.0
    teacher_update_rate: float = 0.2


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


OCD_NET: dict[str, Any] = {"alpha": 0.1, "beta": 0.5}
"""OCD-Net's weights, wherever its authors name no others."""


def _ocd_net(*update_rates: float) -> tuple[Row, Row, Row]:
    """The same but for the teacher's update rate, and for the weight of labels in the largest memory."""
    small, middle, large = (Row(0.1, 32, 0.1, 0.5, teacher_update_rate=rate) for rate in update_rates)
    return small, middle, large._replace(beta=1.0)


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
            "A-GEM": _same(Row(0.03)),
            "A-GEM-R": _same(Row(0.03)),
            "GEM": _same(Row(0.03)),
            "iCaRL": (
                Row(0.1, weight_decay=1e-5),
                Row(0.1, weight_decay=1e-5),
                Row(0.03, weight_decay=1e-5),
            ),
            "FDR": _same(Row(0.03)),
            "OCD-Net": _ocd_net(0.2, 0.2, 0.8),
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
            "ER-ACE": _same(Row(0.03)),
            "iCaRL": _same(Row(0.3, weight_decay=1e-5)),
            "OCD-Net": _ocd_net(0.1, 0.1, 0.7),
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
            "A-GEM": _same(Row(0.01)),
            "A-GEM-R": _same(Row(0.01)),
            "iCaRL": _same(Row(0.03, weight_decay=1e-5)),
            "FDR": _same(Row(0.03)),
            "OCD-Net": _ocd_net(0.2, 0.2, 0.8),
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
            "A-GEM": _same(Row(0.1, 128)),
            "A-GEM-R": _same(Row(0.1, 128)),
            "GEM": (Row(0.01, gem_margin=1.0), Row(0.03), Row(0.1, gem_margin=1.0)),
            "iCaRL": _same(Row(0.1, 10)),
            "FDR": (
                Row(0.03, 128, batch_size=128),
                Row(0.1, 128, batch_size=128),
                Row(0.1, 128, batch_size=128),
            ),
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
            "A-GEM": _same(Row(0.1, 128)),
            "A-GEM-R": _same(Row(0.1, 128)),
            "GEM": _same(Row(0.1, 128)),
            "FDR": _same(Row(0.1, 128)),
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
            "A-GEM": (Row(0.1, 128), Row(0.3, 128), Row(0.3, 128)),
            "A-GEM-R": (Row(0.1, 128), Row(0.3, 128), Row(0.3, 128)),
            "GEM": _same(Row(0.01, 128)),
            "FDR": _same(Row(0.2, 128)),
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
            "A-GEM-R": (Row(0.1, 128, batch_size=16), Row(0.1, 128, batch_size=16), Row(0.1, 128)),
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
"""The benchmarks, by the first part of their profiles' names."""

STANDS_IN: dict[str, str] = {
    "JOINT": "SGD",
    "ER-ACE": "ER",
    "A-GEM": "ER",
    "A-GEM-R": "ER",
    "GEM": "ER",
    "iCaRL": "ER",
    "FDR": "DER",
    "OCD-Net": "DER++",
    "CoCa": "DER++",
}
"""Whose row a method takes where it has none of its own. JOINT always learns as SGD does."""


def paper_config(benchmark: str, method: str, memory_size: int) -> TrainConfig:
    """What a method or an ablation of CoCa uses on a benchmark, to the letter.

    Args:
        benchmark: key of :data:`BENCHMARKS`.
        method: of :data:`tenfold.coca.methods.METHODS` or :data:`VARIANTS`.
        memory_size: one of the benchmark's.
    """
    chosen = BENCHMARKS[benchmark]
    base, changes = VARIANTS.get(method, (method, {}))
    rows = chosen.rows[base if base in chosen.rows else STANDS_IN[base]]
    settings = rows[chosen.memory_sizes.index(memory_size)]._asdict()
    batch_size = settings.pop("batch_size")
    if base == "OCD-Net" and base not in chosen.rows:
        settings |= OCD_NET
    settings |= {"method": base, "memory_size": 0 if base in ("SGD", "JOINT") else memory_size}
    stream = {} if batch_size is None else {"batch_size": batch_size}
    if base in ("CoCa", "OCD-Net") and chosen.coca_epochs is not None:
        stream["epochs"] = chosen.coca_epochs
    return TrainConfig(
        LearnerConfig(**{**settings, **chosen.learner, **changes}),
        replace(chosen.stream, **stream),
        chosen.network,
    )
