"""The beginning of few-shot learning: a base network with rows for new classes, its supports, and what is kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric

from tenfold.reft.classifiers import CosineClassifier, fresh_rows
from tenfold.reft.config import DataConfig, DistillConfig, Setting
from tenfold.reft.instance_images import InstanceImages
from tenfold.reft.judging import SUPPORTS_AT_ONCE, support_cache
from tenfold.reft.model import RefT
from tenfold.reft.references import References
from tenfold.reft.sources import Source
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.training import Teacher
from tenfold.shared.logging import TenfoldError
from tenfold.shared.seeding import make_generator


@dataclass(frozen=True)
class FewShot:
    """All that fine-tuning and judging need."""

    network: RefT
    """With rows for all classes of the setting."""
    category_ids: tuple[int, ...]
    """Of these classes."""
    instances: InstanceImages
    """The shots."""
    pool: SupportPool
    """The same as support examples."""
    manifest: dict[str, Any]
    """Which they are."""
    num_base: int
    """Base classes among them."""
    base_references: References | None
    """Of base classes, as the base model left them; for iFSIS."""
    teacher: Teacher | None
    """The base model; for iFSIS with distillation."""

    def references(self, fabric: Fabric) -> References | None:
        """The support cache of the network as it is."""
        found = support_cache(self.network, self.pool, len(self.category_ids), fabric)
        if found is not None and self.base_references is not None:
            return found.with_base(self.base_references.to(fabric.device), self.network.references.max_rows)
        return found


def begin_few_shot(
    base: RefT,
    base_references: References | None,
    source: Source,
    setting: Setting,
    shots: int,
    seed: int,
    distill: DistillConfig | None,
    fabric: Fabric,
) -> FewShot:
    """Give a base network rows for new classes.

    Args:
        base: on Fabric's device; not changed.
        base_references: its support cache of base classes; for iFSIS with references.
        source: of the shots.
        setting: FSIS, gFSIS or iFSIS.
        shots: of each class.
        seed: of shots and new rows.
        distill: for iFSIS: distil the base model.
        fabric: launched.

    Raises:
        TenfoldError: shots are missing, or the network does not know the base classes of the data.
    """
    split = source.split
    if base.num_classes != len(split.base):
        raise TenfoldError(
            f"the network knows {base.num_classes} classes, the data has {len(split.base)} base classes; give the "
            "base network that was trained on them"
        )
    categories = split.categories(setting)
    learned = categories if setting == "gfsis" else split.categories("fsis")
    annotations, listed = source.few_shot(seed, shots, learned)
    instances = InstanceImages(
        annotations,
        source.places.train_images,
        categories,
        records=source.data.records,
        in_memory=source.in_memory,
    )
    pool = SupportPool(instances, source.data, in_memory=source.in_memory)
    num_base = 0 if setting == "fsis" else len(split.base)
    network = copy.deepcopy(base)
    rows = new_rows(base, pool, num_base, len(split.novel), seed, fabric)
    network.grow(rows, keep_base=setting != "fsis")
    network.to(fabric.device)
    incremental = setting == "ifsis"
    if incremental and base_references is None and not base.references.is_off:
        raise TenfoldError(
            "iFSIS with references needs the base network's support cache; train the base stage again"
        )
    teacher = Teacher(base.eval(), base_references, distill) if incremental and distill is not None else None
    kept = base_references if incremental else None
    return FewShot(network, categories, instances, pool, listed, num_base, kept, teacher)


def new_rows(
    base: RefT, pool: SupportPool, num_base: int, num_novel: int, seed: int, fabric: Fabric
) -> torch.Tensor:
    """Classifier rows of new classes [novel, d]: imprinted for a cosine head, small and random for a linear one.

    Args:
        base: network without the rows.
        pool: with examples of the new classes, whose labels begin at ``num_base``.
        num_base: base classes before them.
        num_novel: new classes.
        seed: of random rows.
        fabric: launched.
    """
    if not isinstance(base.class_predictor, CosineClassifier):
        return fresh_rows(num_novel, base.network.hidden_dim, make_generator(seed))
    novel = pool.of_classes(range(num_base, num_base + num_novel))
    with fabric.autocast():
        features = base.read_all(novel.chunks(SUPPORTS_AT_ONCE), fabric.device, imprinting=True)
    return base.imprint(features, num_base, num_novel)


def base_supports(source: Source, data: DataConfig, shots: int, seed: int) -> SupportPool:
    """Support examples of base classes for judging and for the cache: some random ones of each class.

    Args:
        source: of the base images.
        data: for size and context of the crops.
        shots: of each class.
        seed: of the choice.
    """
    return SupportPool(source.base_instances, data).capped(shots, make_generator(seed))
