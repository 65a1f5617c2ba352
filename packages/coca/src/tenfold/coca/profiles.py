"""The experiment suites, as data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from tenfold.coca.config import LearnerConfig, NetworkConfig, StreamConfig, TrainConfig
from tenfold.coca.hyperparameters import BENCHMARKS, OCD_NET, VARIANTS, paper_config

_ALL = (
    *("JOINT", "SGD", "ER", "ER-ACE", "A-GEM", "A-GEM-R", "GEM", "iCaRL", "FDR", "DER", "DER++", "OCD-Net"),
    *("CoCa", "CoCa w/o CD", "CoCa w/o CSS", "CoCa w/o contrast", "CoCa w/o pretext", "CoCa with boundaries"),
)
_WITHOUT_BOUNDARIES = tuple(
    name for name in _ALL if name not in ("A-GEM", "GEM", "iCaRL", "FDR", "CoCa with boundaries")
)


@dataclass(frozen=True)
class Group:
    """Methods that are compared with each other on one network, where a suite has more than one."""

    name: str
    """Part of the setting in the records."""
    network: NetworkConfig
    memory_sizes: tuple[int, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    learner: dict[str, Any] = field(default_factory=dict)
    """Replaced settings of all its methods."""


@dataclass(frozen=True)
class Profile:
    """A suite: memory sizes x methods x seeds on one stream."""

    description: str
    """One line for the list of profiles."""
    memory_sizes: tuple[int, ...]
    methods: tuple[str, ...]
    """Methods and ablations."""
    seeds: tuple[int, ...] = tuple(range(10))
    benchmark: str | None = None
    """Key of :data:`~tenfold.coca.hyperparameters.BENCHMARKS`, whose settings every method takes."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    """Without a benchmark: the stream of all methods."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """Without a benchmark: the network of all methods."""
    learner: dict[str, Any] = field(default_factory=dict)
    """Without a benchmark: settings of all methods."""
    by_method: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Without a benchmark: further settings of single methods."""
    stream_changes: dict[str, Any] = field(default_factory=dict)
    """Replaced fields of the stream's config."""
    further: tuple[Group, ...] = ()
    """More methods on other networks."""
    dataset: str | None = None
    """Name in the records; by default the stream's. Runs join printed numbers under the stream's own name only."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """The suite's own methods, which need no name, and those on other networks."""
        own = Group("", self.network, self.memory_sizes, self.methods, self.seeds)
        return (own, *self.further)

    def train_config(self, method: str, memory_size: int, group: Group | None = None) -> TrainConfig:
        """The settings of one run."""
        group = group or self.groups[0]
        if self.benchmark is not None:
            config = paper_config(self.benchmark, method, memory_size)
        else:
            base, changes = VARIANTS.get(method, (method, {}))
            stores = base not in ("SGD", "JOINT")
            settings = {
                "method": base,
                "memory_size": memory_size if stores else 0,
                **self.learner,
                **group.learner,
                **self.by_method.get(base, {}),
                **changes,
            }
            config = TrainConfig(LearnerConfig(**settings), self.stream, group.network)
        return replace(config, stream=replace(config.stream, **self.stream_changes))

    @property
    def dataset_name(self) -> str:
        """What the records call the data."""
        if self.dataset is not None:
            return self.dataset
        return self.stream.name if self.benchmark is None else BENCHMARKS[self.benchmark].stream.name


_DIGITS = Profile(
    description="",
    memory_sizes=(30,),
    methods=_ALL,
    stream=StreamConfig("s-digits", batch_size=10, epochs=5),
    network=NetworkConfig("mlp", projection_dim=32),
    learner={"lr": 0.1, "alpha": 0.3, "beta": 1.0, "memory_batch_size": 10},
    # OCD-Net's own momentum of 0.999 averages over more steps than this stream has.
    by_method={"OCD-Net": {**OCD_NET, "teacher_momentum": 0.95}},
)

PROFILES: dict[str, Profile] = {
    "smoke": replace(
        _DIGITS,
        description="seconds: every method on a few batches of digits, far too short to learn from",
        stream=StreamConfig("s-digits", batch_size=10, epochs=1, batches_per_epoch=4),
        seeds=(0, 1),
        dataset="s-digits-smoke",
    ),
    "quick": replace(
        _DIGITS,
        description="split digits: all methods on an MLP, CoCa on a convnet as well; minutes on two cores",
        further=(
            Group(
                "convnet",
                NetworkConfig("convnet", width=16, projection_dim=32),
                memory_sizes=(20,),
                methods=("DER++", "CoCa w/o CSS", "CoCa"),
                seeds=tuple(range(20)),
                learner={"lr": 0.03},
            ),
        ),
    ),
    "digits-50": replace(
        _DIGITS,
        description="the same with 50 images of memory",
        memory_sizes=(50,),
    ),
    "blurry-digits": replace(
        _DIGITS,
        description="digits in one pass of blurred phases that nobody announces, 30 images of memory",
        methods=_WITHOUT_BOUNDARIES,
        stream=StreamConfig("blurry-digits", batch_size=10, epochs=1),
    ),
    "h100": Profile(
        description="S-CIFAR-10 from lossless sheets, 8 passes a task, memory 200 and 500, one seed; one GPU",
        memory_sizes=(200, 500),
        methods=("SGD", "JOINT", "ER", "DER++", "CoCa", "CoCa w/o CSS"),
        seeds=(0,),
        benchmark="cifar10",
        stream_changes={"name": "s-cifar-10-mosaic", "epochs": 8},
        dataset="s-cifar-10-mosaic",
    ),
    **{
        f"{name}-{size}": Profile(
            description=f"the paper's setting on {benchmark.stream.name} with {size} images of memory, ten seeds",
            memory_sizes=(size,),
            methods=_WITHOUT_BOUNDARIES if name == "mnist360" else _ALL,
            benchmark=name,
        )
        for name, benchmark in BENCHMARKS.items()
        for size in benchmark.memory_sizes
    },
}
