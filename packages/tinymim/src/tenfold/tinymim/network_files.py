"""Networks from files: of runs, of the authors, of MAE and of timm's scheme."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import CLASSIFIERS, STUDENTS, TEACHERS, make_classifier
from tenfold.tinymim.checkpoints import load_file, load_official_state_dict, stored_shape, unwrapped
from tenfold.tinymim.vit import VisionTransformer


def load_network(path: Path, model: str | None) -> VisionTransformer:
    """A saved network, pre-trained or fine-tuned, at inference; of other weights, the named one.

    Raises:
        TenfoldError: the file is missing, damaged, or of another network.
    """
    content = load_file(path)
    if model is None and "shape" not in content:
        raise TenfoldError(f"{path} is not model.pt of a run; name the network of other weights with --model")
    try:
        if model is None:
            network = VisionTransformer(stored_shape(content))
        elif model in CLASSIFIERS:
            weights = unwrapped(content)
            if "head.bias" not in weights:
                raise TenfoldError(f"it knows no classes, so it is no {model}: is it of pre-training?")
            network = make_classifier(
                CLASSIFIERS[model], len(weights["head.bias"]), "fc_norm.weight" in weights
            )
        else:
            network = VisionTransformer({**STUDENTS, **TEACHERS}[model])
        load_official_state_dict(network, content)
    except TenfoldError as error:
        raise TenfoldError(f"{path}: {error}") from error
    return network.eval()


@torch.inference_mode()
def check_same_outputs(network: VisionTransformer, model: nn.Module) -> None:
    """Whether timm's model says what ours does.

    Raises:
        TenfoldError: it does not, and nothing should be written.
    """
    size = network.config.img_size
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = network(images), model(images)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise TenfoldError("timm's model gives other outputs than this network: nothing was written")


def load_classifier(path: Path, model: str | None) -> VisionTransformer:
    """A saved classifier at inference.

    Raises:
        TenfoldError: the file is missing, damaged, of another network, or of one that is not fine-tuned.
    """
    network = load_network(path, model)
    if network.config.num_classes is None:
        raise TenfoldError(f"{path} is of pre-training and knows no classes: fine-tune it first")
    return network
