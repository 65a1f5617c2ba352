"""Transforms for mmdet3d's pipelines that move points, boxes, images and cameras together (section 3).

mmdet3d's own ``GlobalRotScaleTrans`` and ``RandomFlip3D`` leave ``lidar2cam`` as it is, so they are for LiDAR alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet3d.datasets.transforms import ObjectSample

from tenfold.cmt.config import AugmentConfig, ImageConfig
from tenfold.cmt.ground_truth_sampling import paste_objects
from tenfold.cmt.image_transforms import draw_image_move, transform_images
from tenfold.cmt.object_database import ObjectDatabase
from tenfold.cmt.openmmlab_adapters import Results, put_back, sample_of, settings
from tenfold.cmt.scene_transforms import draw_scene, transform_scene
from tenfold.shared.logging import TenfoldError


def _generator() -> np.random.Generator:
    """Seeded from NumPy's global state, because that is what mmengine seeds in every worker."""
    return np.random.default_rng(np.random.randint(2**32, size=4, dtype=np.uint32))


class PasteObjects(ObjectSample):  # type: ignore[misc]
    """Pastes objects of other samples, points and pixels; before all other random changes.

    It is an ``ObjectSample`` by name only, for ``DisableObjectSampleHook``, which ends the pasting in the last epochs.

    Args:
        database: folder of an object database, see :func:`tenfold.cmt.object_database.build_database`.
    """

    def __init__(self, database: str) -> None:
        self.database = ObjectDatabase.load(Path(database))
        self.disabled = False

    def transform(self, results: Results) -> Results:
        if self.disabled:
            return results
        return put_back(results, paste_objects(sample_of(results), self.database, _generator()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(database={str(self.database.folder)!r})"


class SceneMove(BaseTransform):  # type: ignore[misc]
    """Drops a modality at random (masked-modal training), then rotates, scales, shifts and mirrors the scene.

    Args:
        augment: fields of :class:`tenfold.cmt.config.AugmentConfig`. Pasting and shuffling are other transforms.
    """

    def __init__(self, **augment: Any) -> None:
        self.augment = settings(AugmentConfig, augment)

    def transform(self, results: Results) -> Results:
        draws = draw_scene(self.augment, _generator())
        return put_back(results, transform_scene(sample_of(results), draws))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.augment})"


class ImageMove(BaseTransform):  # type: ignore[misc]
    """Resizes, crops and mirrors the images of a sample alike, and changes their intrinsics.

    Args:
        image: the network's image settings, fields of :class:`tenfold.cmt.config.ImageConfig`.
        training: draw the scale, the crop and mirroring; otherwise the crop is in the middle.
    """

    def __init__(self, image: dict[str, Any], training: bool = False) -> None:
        self.image, self.training = settings(ImageConfig, image), training

    def transform(self, results: Results) -> Results:
        """
        Raises:
            TenfoldError: images are not of the size that the settings name.
        """
        sample = sample_of(results)
        if sample.images is None:
            raise TenfoldError(
                "there are no images to move; put LoadMultiViewImageFromFiles before TenfoldImageMove"
            )
        if sample.images.shape[1:3] != self.image.original_size:
            height, width = sample.images.shape[1:3]
            raise TenfoldError(f"images have {height} x {width} pixels; set original_size to that")
        return put_back(
            results, transform_images(sample, draw_image_move(self.image, _generator(), self.training))
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(image={self.image}, training={self.training})"
