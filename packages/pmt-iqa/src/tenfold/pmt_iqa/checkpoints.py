"""Weights in the names of the authors' code."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from tenfold.pmt_iqa.backbones import load_strictly
from tenfold.pmt_iqa.model import MultiTaskNetwork
from tenfold.shared.logging import TenfoldError

_OFFICIAL = (  # theirs, ours
    (r"res\.lda(\d)_pool\.0\.", r"features.lda.\1.reduce."),
    (r"res\.lda(\d)_fc\.", r"features.lda.\1.linear."),
    (r"res\.", "features.backbone."),
    (r"fcs\.", "head."),
    (r"fc_cls\.", "level."),
    (r"fc_mos\.", "score."),
)
_OURS = (
    (r"features\.lda\.(\d)\.reduce\.", r"res.lda\1_pool.0."),
    (r"features\.lda\.(\d)\.linear\.", r"res.lda\1_fc."),
    (r"features\.backbone\.", "res."),
    (r"head\.", "fcs."),
    (r"level\.", "fc_cls."),
    (r"score\.", "fc_mos."),
)


def official_to_ours(key: str) -> str:
    """The name in our network of a tensor of the authors' network."""
    return _renamed(key, _OFFICIAL)


def ours_to_official(key: str) -> str:
    """The name in the authors' network of a tensor of ours."""
    return _renamed(key, _OURS)


def load_official_state_dict(model: MultiTaskNetwork, state_dict: Mapping[str, Tensor]) -> None:
    """Load weights in the authors' names.

    Raises:
        TenfoldError: a tensor is missing, of another shape, or has no place here; it is named.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        plain = re.sub(r"^module\.", "", key)
        ours = official_to_ours(plain)
        if ours == plain or ours in renamed:
            raise TenfoldError(
                f"the weights hold an unknown or repeated {key}; give the authors' state dict as it is"
            )
        renamed[ours] = value
    load_strictly(model, renamed)


def official_state_dict(model: MultiTaskNetwork) -> dict[str, Tensor]:
    """The network's weights in the authors' names."""
    return {ours_to_official(key): value for key, value in model.state_dict().items()}


def _renamed(key: str, names: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in names:
        renamed, count = re.subn(f"^{pattern}", replacement, key)
        if count:
            return renamed
    return key
