"""Networks as files: shape, weights, classes, support cache, and the settings of their data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

from tenfold.reft.checkpoints import load_network_state, load_official_state_dict, released_classes
from tenfold.reft.composed_digits import ComposeConfig
from tenfold.reft.config import BackboneName, DataConfig, NetworkConfig
from tenfold.reft.model import RefT
from tenfold.reft.official_files import read_released
from tenfold.reft.references import References
from tenfold.reft.suites import OFF
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint, plain


@dataclass(frozen=True)
class StoredNetwork:
    """What a file of a network holds."""

    network: RefT
    references: References | None
    """Its support cache."""
    category_ids: tuple[int, ...]
    """Of its classes, in their order."""
    names: tuple[str, ...]
    """Of its classes."""
    data: DataConfig
    """Of its images."""
    compose: ComposeConfig | None
    """Of its images, where they are composed."""

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, for a file."""
        return {
            "shape": self.network.shape,
            "network": {name: value.cpu() for name, value in self.network.state_dict().items()},
            "categories": list(self.category_ids),
            "names": list(self.names),
            "data": plain(self.data),
            "compose": plain(self.compose) if self.compose is not None else None,
            "references": None if self.references is None else self.references.state_dict(),
        }


def load_network(path: Path) -> StoredNetwork:
    """Read a file of :meth:`StoredNetwork.content`.

    Raises:
        TenfoldError: it is missing, damaged, of another kind, or its weights do not fit its shape.
    """
    content = load_checkpoint(path)
    try:
        network = RefT.of_shape(content["shape"])
        data = DataConfig(**_with_tuples(content["data"]))
        compose = ComposeConfig(**_with_tuples(content["compose"])) if content["compose"] else None
        names, categories = tuple(content["names"]), tuple(content["categories"])
        weights, references = content["network"], content["references"]
        cache = None if references is None else References.from_state_dict(references)
    except (KeyError, TypeError, AttributeError) as error:
        raise TenfoldError(
            f"{path} is no network of this package ({error}); give model.pt of a run"
        ) from error
    load_network_state(network, weights, str(path))
    return StoredNetwork(network, cache, categories, names, data, compose)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def inherit(network: RefT, before: RefT) -> None:
    """Give a network all weights of another that it has a place for; a head of another kind stays fresh."""
    own = network.state_dict()
    weights = {
        name: value
        for name, value in before.state_dict().items()
        if name in own and own[name].shape == value.shape
    }
    if network.network.classifier != before.network.classifier:
        weights = {name: value for name, value in weights.items() if not name.startswith("class_predictor.")}
    network.load_state_dict(weights, strict=False)


def load_released(path: Path, backbone: BackboneName) -> StoredNetwork:
    """A released Mask2Former for the 80 classes of COCO, without references.

    Args:
        path: of the file.
        backbone: of its network.

    Raises:
        TenfoldError: the file cannot be read, is of another network, or does not know 80 classes.
    """
    weights = read_released(path)
    known = [
        (number, name)
        for number, name in enumerate(MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"])
        if name not in ("__background__", "N/A")
    ]
    if released_classes(weights) != len(known):
        raise TenfoldError(
            f"{path} knows {released_classes(weights)} classes, not the {len(known)} of COCO's instance segmentation; "
            "give a file of that task"
        )
    network = RefT(NetworkConfig(backbone=backbone), OFF, len(known)).freeze_batch_norm()
    load_official_state_dict(network, weights)
    numbers, names = zip(*known, strict=True)
    return StoredNetwork(network, None, numbers, names, DataConfig(), None)
