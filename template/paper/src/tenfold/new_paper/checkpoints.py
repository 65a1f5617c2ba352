"""Networks to and from files.

Where the authors released weights, this is also where their keys are mapped to ours, as strictly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tenfold.new_paper.model import DigitClassifier
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import load_checkpoint


def artifact(network: DigitClassifier) -> dict[str, Any]:
    """What ``model.pt`` of a run holds: enough to build the network again."""
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    return {"hidden_dim": network.hidden_dim, "state_dict": weights}


def load_network(path: Path) -> DigitClassifier:
    """The network in ``model.pt`` of a run, on the CPU and in eval mode.

    Raises:
        TenfoldError: the file is missing or unreadable, or a key is missing, unexpected or of another shape; all
            of those are named.
    """
    content = load_checkpoint(path)
    try:
        network = DigitClassifier(content["hidden_dim"])
        network.load_state_dict(content["state_dict"])
    except (KeyError, RuntimeError, TypeError) as error:
        raise TenfoldError(f"{path} is not a network of ours: {error}") from error
    return network.eval()
