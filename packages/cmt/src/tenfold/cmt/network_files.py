"""Networks as files: configuration, weights, and the settings of their data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.cmt.checkpoints import LoadReport, load_network_state, load_official_state_dict
from tenfold.cmt.config import DataConfig, HeadConfig, ImageConfig, LidarConfig, NetworkConfig
from tenfold.cmt.detector import Cmt
from tenfold.cmt.official_files import read_released
from tenfold.cmt.procedural_scenes import SceneConfig
from tenfold.cmt.suites import Profile
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint, plain


@dataclass(frozen=True)
class StoredNetwork:
    """What a file of a network holds."""

    network: Cmt
    data: DataConfig
    scenes: SceneConfig | None = None
    """Of its data, where they are generated."""

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, for a file."""
        return {
            "network": plain(self.network.network),
            "weights": {name: value.cpu() for name, value in self.network.state_dict().items()},
            "data": plain(self.data),
            "scenes": None if self.scenes is None else plain(self.scenes),
        }


def load_network(path: Path) -> StoredNetwork:
    """Read a file of :meth:`StoredNetwork.content`.

    Raises:
        TenfoldError: it is missing, damaged, of another kind, or its weights do not fit its configuration.
    """
    content = load_checkpoint(path)
    try:
        shape = network_config(content["network"])
        data = DataConfig(**content["data"])
        scenes = None if content["scenes"] is None else SceneConfig(**with_tuples(content["scenes"]))
        weights = content["weights"]
    except (KeyError, TypeError, AttributeError) as error:
        raise TenfoldError(
            f"{path} is no network of this package ({error}); give model.pt of a run, or convert a released file"
        ) from error
    network = Cmt(shape)
    load_network_state(network, weights, str(path))
    return StoredNetwork(network, data, scenes)


def load_released(path: Path, profile: Profile) -> tuple[StoredNetwork, LoadReport]:
    """Read a file of the authors, strictly.

    Args:
        path: of the file.
        profile: of the same configuration.

    Raises:
        TenfoldError: the file cannot be read, or its weights are of another configuration.
    """
    network = Cmt(profile.methods[0].network)
    report = load_official_state_dict(network, read_released(path), source=str(path))
    return StoredNetwork(network, profile.data), report


def network_config(values: dict[str, Any]) -> NetworkConfig:
    """A configuration from plain values."""
    return NetworkConfig(
        values["modality"],
        LidarConfig(**with_tuples(values["lidar"])),
        ImageConfig(**with_tuples(values["image"])),
        HeadConfig(**values["head"]),
    )


def with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Lists as tuples, also inside lists."""

    def changed(value: Any) -> Any:
        return tuple(changed(item) for item in value) if isinstance(value, list) else value

    return {name: changed(value) for name, value in values.items()}
