"""RefT: Mask2Former whose image features and object queries are referred to support examples.

Han et al., "Reference Twice: A Simple and Unified Baseline for Few-Shot Instance Segmentation", TPAMI 2024,
arXiv 2301.01156. Supports pass through the same backbone, pixel decoder and transformer decoder as the query image, but
without references; their features and queries are then used twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mask2FormerModel

from tenfold.reft.backbones import backbone_config, freeze_batch_norm
from tenfold.reft.batches import Supports
from tenfold.reft.classifiers import Classifier, CosineClassifier, grown, imprinted_rows
from tenfold.reft.config import NetworkConfig, ReferenceConfig
from tenfold.reft.mask2former import (
    Predictions,
    backbone_maps,
    decode_pixels,
    decode_queries,
    initialise_pixel_decoder,
    library_config,
    mask_embedder,
    project,
    quiet_library,
)
from tenfold.reft.references import (
    FeatureReferences,
    QueryReference,
    References,
    SupportFeatures,
    capped_rows,
    class_centres,
    masked_average_pool,
    select_queries,
)
from tenfold.shared.logging import TenfoldError


class RefT(nn.Module):
    """Mask2Former with none, one or both references.

    Args:
        network: its shape.
        references: which references there are.
        num_classes: without "no object".
    """

    def __init__(self, network: NetworkConfig, references: ReferenceConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise TenfoldError("a network has at least one class")
        self.network, self.references = network, references
        width = network.hidden_dim
        with quiet_library():
            config = library_config(network, backbone_config(network.backbone), num_classes)
            self.model = Mask2FormerModel(config)
        initialise_pixel_decoder(self.model.pixel_level_module.decoder)
        self.class_predictor: Classifier = (
            nn.Linear(width, num_classes + 1)
            if network.classifier == "linear"
            else CosineClassifier(width, num_classes + 1, network.cosine_scale)
        )
        self.feature_reference = (
            None if references.feature == "off" else FeatureReferences(width, references.feature)
        )
        self.query_reference = None if references.query == "off" else QueryReference(width, network.num_heads)

    @property
    def num_classes(self) -> int:
        """Without "no object"."""
        return len(self.class_predictor.weight) - 1

    @property
    def shape(self) -> dict[str, Any]:
        """What is needed to build it again."""
        return {
            "network": asdict(self.network),
            "references": asdict(self.references),
            "num_classes": self.num_classes,
        }

    @staticmethod
    def of_shape(shape: dict[str, Any]) -> RefT:
        """The network of a :attr:`shape`, with fresh weights; batch norms are frozen.

        Raises:
            TenfoldError: it is not the shape of such a network.
        """
        try:
            network, references = NetworkConfig(**shape["network"]), ReferenceConfig(**shape["references"])
            return RefT(network, references, int(shape["num_classes"])).freeze_batch_norm()
        except (KeyError, TypeError, ValueError) as error:
            raise TenfoldError(
                f"this is no network of this package ({error}); give model.pt of a run"
            ) from error

    def freeze_batch_norm(self) -> RefT:
        """Fix statistics and affine of the backbone's batch norms, in place."""
        freeze_batch_norm(self.model.pixel_level_module.encoder)
        return self

    # -- supports ----------------------------------------------------------------------------------------

    def read_supports(self, supports: Supports, imprinting: bool = False) -> SupportFeatures:
        """Pass support examples through the shared branch, without references.

        Args:
            supports: M examples.
            imprinting: their queries become rows of new classes, which the classifier does not know yet: they are kept
                by their masks, as they are.
        """
        modules, wanted = self.model.pixel_level_module, self.references
        maps = backbone_maps(self.model, supports.images)
        projected = project(modules.decoder, maps)
        pooled = tuple(masked_average_pool(level, supports.masks) for level in projected)
        if wanted.detach_supports:
            pooled = tuple(level.detach() for level in pooled)
        if self.query_reference is None and not imprinting:
            nothing = supports.images.new_zeros(len(supports), 0)
            queries = nothing[..., None].expand(-1, -1, self.network.hidden_dim)
            return SupportFeatures(pooled, queries, nothing, supports.labels)
        mask_features, levels = decode_pixels(modules.decoder, maps, projected)
        normalised, embeddings = decode_queries(self.model.transformer_module, levels, mask_features)
        queries = normalised[-1]
        scores, index = select_queries(
            torch.einsum("bqm,bmhw->bqhw", embeddings[-1], mask_features).detach(),
            self.class_predictor(queries).detach(),
            supports.masks,
            supports.labels,
            wanted.top_k,
            "mask" if imprinting else wanted.selection,
        )
        kept = queries.gather(1, index[..., None].expand(-1, -1, queries.shape[-1]))
        if wanted.class_embedding and not imprinting:
            kept = kept + self.class_predictor.weight[supports.labels][:, None]
        if wanted.detach_supports:
            kept = kept.detach()
        return SupportFeatures(pooled, kept, scores, supports.labels)

    @property
    def wants_imprinting(self) -> bool:
        """Whether rows of new classes are made of support queries."""
        return isinstance(self.class_predictor, CosineClassifier)

    def refer(self, features: SupportFeatures, num_classes: int) -> References:
        """Class centres and support queries of supports.

        Args:
            features: of the supports.
            num_classes: C, of which some may be absent.
        """
        centres = [class_centres(level, features.labels, num_classes) for level in features.pooled]
        rows = capped_rows(*features.rows, self.references.max_rows)
        return References(tuple(centre for centre, _ in centres), centres[0][1] > 0, *rows)

    @torch.no_grad()
    def read_all(
        self, chunks: Iterable[Supports], device: torch.device, imprinting: bool = False
    ) -> SupportFeatures:
        """Features of any number of supports, some at a time.

        Raises:
            TenfoldError: there are none.
        """
        self.eval()
        parts = [self.read_supports(chunk.to(device), imprinting) for chunk in chunks]
        if not parts:
            raise TenfoldError("there is no support example; give at least one instance with its mask")
        return SupportFeatures.joined(parts)

    # -- query images ------------------------------------------------------------------------------------

    def forward(self, images: Tensor, references: References | None = None) -> Predictions:
        """What there is in images [B, 3, H, W], with sides that are multiples of 32.

        Args:
            images: normalised.
            references: needed by a network that has any.

        Raises:
            TenfoldError: the network has references and none are given.
        """
        if references is None and not self.references.is_off:
            raise TenfoldError("this network refers to supports: give references, or switch both off")
        modules = self.model.pixel_level_module
        maps = backbone_maps(self.model, images)
        projected = project(modules.decoder, maps)
        referred = projected
        if self.feature_reference is not None and references is not None:
            referred = self.feature_reference(projected, references)
        mask_features, levels = decode_pixels(modules.decoder, maps, referred)
        link = None
        if self.query_reference is not None and references is not None:
            link = partial(self.query_reference, rows=references.rows)
        everywhere = link if self.references.query == "all" else None
        queries, embeddings = decode_queries(self.model.transformer_module, levels, mask_features, everywhere)
        if link is not None and everywhere is None:
            linked = link(queries[-1])
            queries = torch.cat((queries, linked[None]))
            embeddings = torch.cat((embeddings, mask_embedder(self.model)(linked)[None]))
        logits = self.class_predictor(queries)
        return Predictions(queries, logits, embeddings, mask_features, tuple(projected))

    # -- classes -----------------------------------------------------------------------------------------

    def grow(self, new_rows: Tensor, keep_base: bool) -> None:
        """Give the classifier rows [n, d] for new classes, after the base classes or in their place."""
        self.class_predictor = grown(self.class_predictor, new_rows, keep_base)

    def imprint(self, features: SupportFeatures, first: int, count: int) -> Tensor:
        """Rows [count, d] of the classes with labels from ``first``, by their supports' best queries."""
        return imprinted_rows(features.queries[:, 0], features.labels - first, count)
