"""The photographs that come with the package: few of COCO's, for tests and examples. ``bundled/SOURCE.md`` names their
authors and licences.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal


def bundled_images() -> Path:
    """Folder that the annotations' file names are below."""
    return _bundled() / "images"


def bundled_annotations(which: Literal["train", "val"]) -> Path:
    """Annotations of COCO's form, with all 80 categories.

    Args:
        which: images of train2017 or of val2017.
    """
    return _bundled() / f"{which}.json"


def _bundled() -> Path:
    return Path(str(resources.files("tenfold.reft") / "bundled"))
