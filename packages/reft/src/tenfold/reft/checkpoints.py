"""Weights of others under our keys, strictly: Mask2Former's released ones, torchvision's ResNets, Swins."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from tenfold.shared.logging import TenfoldError, get_logger

logger = get_logger("reft")

LEAKING_CLASSES = frozenset((80, 133))
"""Classes of COCO's instance and panoptic segmentation: networks with as many have seen the novel classes."""

_Rules = tuple[tuple[str, str], ...]

_ENCODER = "model.pixel_level_module.encoder."
_PIXEL = "model.pixel_level_module.decoder"
_TRANSFORMER = "model.transformer_module"
_LAYER = rf"{_TRANSFORMER}.decoder.layers.\1"

# Patterns match the beginning of a key, up to a dot or its end. "{}" in the new key stands for q, k and v: the tensor
# holds the three below one another and is divided.
_TORCHVISION_RESNET: _Rules = (
    ("conv1", "embedder.embedder.convolution"),
    ("bn1", "embedder.embedder.normalization"),
    *(
        (
            rf"layer{stage + 1}\.(\d+)\.{their}{index + 1}",
            rf"encoder.stages.{stage}.layers.\1.layer.{index}.{our}",
        )
        for stage in range(4)
        for index in range(3)
        for their, our in (("conv", "convolution"), ("bn", "normalization"))
    ),
    *(
        (
            rf"layer{stage + 1}\.(\d+)\.downsample\.{index}",
            rf"encoder.stages.{stage}.layers.\1.shortcut.{our}",
        )
        for stage in range(4)
        for index, our in enumerate(("convolution", "normalization"))
    ),
)
_DETECTRON2_RESNET: _Rules = (
    (r"stem\.conv1\.norm", "bn1"),
    (r"stem\.conv1", "conv1"),
    *(
        rule
        for stage in range(1, 5)
        for rule in (
            (rf"res{stage + 1}\.(\d+)\.conv(\d)\.norm", rf"layer{stage}.\1.bn\2"),
            (rf"res{stage + 1}\.(\d+)\.conv(\d)", rf"layer{stage}.\1.conv\2"),
            (rf"res{stage + 1}\.(\d+)\.shortcut\.norm", rf"layer{stage}.\1.downsample.1"),
            (rf"res{stage + 1}\.(\d+)\.shortcut", rf"layer{stage}.\1.downsample.0"),
        )
    ),
)
_BLOCK, _OUR_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)", r"swin.encoder.layers.\1.blocks.\2"
_MICROSOFT_SWIN: _Rules = (
    (r"patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
    (r"patch_embed\.norm", "swin.embeddings.norm"),
    (rf"{_BLOCK}\.norm1", rf"{_OUR_BLOCK}.layernorm_before"),
    (rf"{_BLOCK}\.norm2", rf"{_OUR_BLOCK}.layernorm_after"),
    (rf"{_BLOCK}\.attn\.qkv", rf"{_OUR_BLOCK}.attention.{{}}_proj"),
    (rf"{_BLOCK}\.attn\.proj", rf"{_OUR_BLOCK}.attention.o_proj"),
    (
        rf"{_BLOCK}\.attn\.relative_position_bias_table",
        rf"{_OUR_BLOCK}.attention.relative_position_bias.relative_position_bias_table",
    ),
    (rf"{_BLOCK}\.mlp", rf"{_OUR_BLOCK}.mlp"),
    (r"layers\.(\d+)\.downsample", r"swin.encoder.layers.\1.downsample"),
    *((f"norm{stage}", f"hidden_states_norms.stage{stage + 1}") for stage in range(4)),
)
_TRANSFORMERS_SWIN: _Rules = (  # the first six as its releases before 5 wrote them, and hub files still do
    *(
        (
            rf"(?:swin\.)?encoder\.{_BLOCK}\.attention\.self\.{their}",
            rf"{_OUR_BLOCK}.attention.{our}_proj",
        )
        for their, our in (("query", "q"), ("key", "k"), ("value", "v"))
    ),
    (
        rf"(?:swin\.)?encoder\.{_BLOCK}\.attention\.self\.relative_position_bias_table",
        rf"{_OUR_BLOCK}.attention.relative_position_bias.relative_position_bias_table",
    ),
    (rf"(?:swin\.)?encoder\.{_BLOCK}\.attention\.output\.dense", rf"{_OUR_BLOCK}.attention.o_proj"),
    (rf"(?:swin\.)?encoder\.{_BLOCK}\.intermediate\.dense", rf"{_OUR_BLOCK}.mlp.fc1"),
    (rf"(?:swin\.)?encoder\.{_BLOCK}\.output\.dense", rf"{_OUR_BLOCK}.mlp.fc2"),
    (r"(?:swin\.)?(encoder|embeddings)", r"swin.\1"),
)
_THEIR_PIXEL = r"sem_seg_head\.(?:pixel_decoder\.)?"  # the first files lack "pixel_decoder"
_THEIR_ENCODER_LAYER = rf"{_THEIR_PIXEL}transformer\.encoder\.layers\.(\d+)"
_THEIR_LAYER = r"sem_seg_head\.predictor\.transformer_{}_layers\.(\d+)"
_RELEASED_HEAD: _Rules = (
    (r"sem_seg_head\.predictor\.(?:query_feat|static_query)", f"{_TRANSFORMER}.queries_features"),
    (r"sem_seg_head\.predictor\.query_embed", f"{_TRANSFORMER}.queries_embedder"),
    (r"sem_seg_head\.predictor\.level_embed", f"{_TRANSFORMER}.level_embed"),
    (rf"{_THEIR_LAYER.format('cross_attention')}\.multihead_attn", f"{_LAYER}.cross_attn"),
    (rf"{_THEIR_LAYER.format('cross_attention')}\.norm", f"{_LAYER}.cross_attn_layer_norm"),
    (
        rf"{_THEIR_LAYER.format('self_attention')}\.self_attn\.in_proj_(weight|bias)",
        rf"{_LAYER}.self_attn.{{}}_proj.\2",
    ),
    (rf"{_THEIR_LAYER.format('self_attention')}\.self_attn\.out_proj", f"{_LAYER}.self_attn.out_proj"),
    (rf"{_THEIR_LAYER.format('self_attention')}\.norm", f"{_LAYER}.self_attn_layer_norm"),
    (rf"{_THEIR_LAYER.format('ffn')}\.linear(\d)", rf"{_LAYER}.fc\2"),
    (rf"{_THEIR_LAYER.format('ffn')}\.norm", f"{_LAYER}.final_layer_norm"),
    (r"sem_seg_head\.predictor\.decoder_norm", f"{_TRANSFORMER}.decoder.layernorm"),
    (
        r"sem_seg_head\.predictor\.mask_embed\.layers\.(\d)",
        rf"{_TRANSFORMER}.decoder.mask_predictor.mask_embedder.\1.0",
    ),
    (r"sem_seg_head\.predictor\.class_embed", "class_predictor"),
    (rf"{_THEIR_PIXEL}input_proj", f"{_PIXEL}.input_projections"),
    (rf"{_THEIR_PIXEL}transformer\.level_embed", f"{_PIXEL}.level_embed"),
    (rf"{_THEIR_ENCODER_LAYER}\.self_attn", rf"{_PIXEL}.encoder.layers.\1.self_attn"),
    (rf"{_THEIR_ENCODER_LAYER}\.norm1", rf"{_PIXEL}.encoder.layers.\1.self_attn_layer_norm"),
    (rf"{_THEIR_ENCODER_LAYER}\.norm2", rf"{_PIXEL}.encoder.layers.\1.final_layer_norm"),
    (rf"{_THEIR_ENCODER_LAYER}\.linear(\d)", rf"{_PIXEL}.encoder.layers.\1.fc\2"),
    (rf"{_THEIR_PIXEL}(adapter|layer)_1\.norm", rf"{_PIXEL}.\1_1.1"),
    (rf"{_THEIR_PIXEL}(adapter|layer)_1", rf"{_PIXEL}.\1_1.0"),
    (rf"{_THEIR_PIXEL}mask_features", f"{_PIXEL}.mask_projection"),
)

_DERIVED = re.compile(r".*\.(relative_position_index|attn_mask|num_batches_tracked)")
_UNUSED = tuple(f"{_ENCODER}swin.layernorm.{kind}" for kind in ("weight", "bias"))
"""A norm behind the last stage that the library builds and Mask2Former does not look at."""


# -- keys ----------------------------------------------------------------------------------------------------


def convert_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released Mask2Former state dict under the keys of transformers' ``Mask2FormerForUniversalSegmentation``.

    The loss's ``criterion.*`` and tables that follow from the architecture are left out; the self-attention's joint
    projection becomes three.

    Args:
        state_dict: with ``sem_seg_head.*`` and, unless it is of a head alone, ``backbone.*`` of detectron2's ResNet
            or of Microsoft's Swin.

    Raises:
        TenfoldError: a key is not one of Mask2Former's; it is named.
    """
    kept = {key: value for key, value in state_dict.items() if not key.startswith("criterion.")}
    backbone = {
        key.removeprefix("backbone."): value for key, value in kept.items() if key.startswith("backbone.")
    }
    head = {key: value for key, value in kept.items() if not key.startswith("backbone.")}
    if any(key.startswith("stem.") for key in backbone):
        names = "a Mask2Former ResNet"
        backbone = convert_torchvision_resnet(_renamed(backbone, _DETECTRON2_RESNET, names))
    else:
        backbone = _renamed(backbone, _MICROSOFT_SWIN, "a Mask2Former Swin")
    converted = _renamed(head, _RELEASED_HEAD, "Mask2Former's head")
    return {**{_ENCODER + key: value for key, value in backbone.items()}, **converted}


def convert_torchvision_resnet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A torchvision ResNet under the keys of transformers' ``ResNetBackbone``, without its classifier ``fc.*``.

    Raises:
        TenfoldError: a key is not one of a ResNet's; it is named.
    """
    kept = {key: value for key, value in state_dict.items() if not key.startswith("fc.")}
    return _renamed(kept, _TORCHVISION_RESNET, "a torchvision ResNet")


def convert_swin(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Swin classifier, Microsoft's or transformers', under the keys of transformers' ``SwinBackbone``.

    The classifier and the norm before it are left out.

    Raises:
        TenfoldError: a key is not one of a Swin's; it is named.
    """
    dropped = ("head.", "norm.", "classifier.", "layernorm.", "swin.layernorm.")
    kept = {key: value for key, value in state_dict.items() if not key.startswith(dropped)}
    is_microsofts = any(key.startswith("patch_embed.") for key in kept)
    return _renamed(kept, _MICROSOFT_SWIN if is_microsofts else _TRANSFORMERS_SWIN, "a Swin")


def _renamed(state_dict: Mapping[str, Tensor], rules: _Rules, names: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, value in state_dict.items():
        if _DERIVED.fullmatch(key):
            continue
        new = _new_key(key, rules)
        if new is None:
            unknown.append(key)
        elif "{}" in new:
            renamed.update(
                {new.format(letter): part for letter, part in zip("qkv", value.tensor_split(3), strict=True)}
            )
        else:
            renamed[new] = value
    if unknown:
        raise TenfoldError(
            f"the weights hold {_some(unknown)}, unknown as the keys of {names}; give other weights"
        )
    return renamed


def _new_key(key: str, rules: _Rules) -> str | None:
    for pattern, new in rules:
        match = re.match(rf"{pattern}(?=\.|$)", key)
        if match:
            return match.expand(new) + key[match.end() :]
    return None


# -- networks ------------------------------------------------------------------------------------------------


def load_official_state_dict(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Put a released Mask2Former into a network; its references stay as they are.

    A state dict without ``backbone.*`` is one of a head: the network's backbone stays as it is, which is logged.

    Args:
        network: with transformers' modules at ``model`` and a classifier at ``class_predictor``.
        state_dict: under released keys, see :func:`convert_released`.

    Raises:
        TenfoldError: a tensor is missing, unknown or of another shape, or the classes are others in number.
    """
    weights = convert_released(state_dict)
    parts = ("model.", "class_predictor.")
    own = {key: value for key, value in network.state_dict().items() if key.startswith(parts)}
    is_head = not any(key.startswith(_ENCODER) for key in weights)
    left = tuple(key for key in own if key.startswith(_ENCODER)) if is_head else _UNUSED
    _check_fit({key: value for key, value in own.items() if key not in left}, weights, "the released file")
    network.load_state_dict(weights, strict=False)
    if is_head and left:
        logger.info("the released weights are of a head: the backbone stays as it is")


def load_network_state(network: nn.Module, state_dict: Mapping[str, Tensor], what: str) -> None:
    """``load_state_dict`` that says in one sentence what does not fit.

    Batch counters of norms are neither asked for nor loaded.

    Args:
        network: to fill.
        state_dict: under its own keys.
        what: whose weights these are, as the beginning of a sentence ("runs/base/model.pt").

    Raises:
        TenfoldError: a tensor is missing, unknown or of another shape, or the classes are others in number.
    """
    weights = {key: value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}
    _check_fit(network.state_dict(), weights, what)
    network.load_state_dict(weights, strict=False)


def released_classes(state_dict: Mapping[str, Tensor]) -> int:
    """Number of classes that a released state dict knows.

    Raises:
        TenfoldError: it has no classifier.
    """
    key = "sem_seg_head.predictor.class_embed.weight"
    if key not in state_dict:
        raise TenfoldError(f"the weights lack {key}; give a released Mask2Former file")
    return len(state_dict[key]) - 1


def check_no_leak(num_classes: int, allow_leak: bool) -> None:
    """Refuse to start few-shot learning from a network that was trained on the novel classes.

    Args:
        num_classes: what the released network was trained on.
        allow_leak: for comparisons that are not few-shot.

    Raises:
        TenfoldError: the classes are all of COCO's.
    """
    if num_classes in LEAKING_CLASSES and not allow_leak:
        raise TenfoldError(
            f"a network of COCO's {num_classes} classes has seen the novel ones with all their annotations; start from "
            "ImageNet weights or a base model of ours, or give --allow-leak for a comparison that is not few-shot"
        )


def _check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> None:
    asked = {key for key in own if not key.endswith("num_batches_tracked")}
    rows = "class_predictor.weight"
    if rows in own and rows in weights and len(own[rows]) != len(weights[rows]):
        raise TenfoldError(
            f"{what} knows {len(weights[rows]) - 1} classes and the network {len(own[rows]) - 1}; build it with as many"
        )
    for problem, keys in (("lacks", asked - weights.keys()), ("holds", weights.keys() - asked)):
        if keys:
            end = ", which the network has" if problem == "lacks" else ", for which the network has no place"
            raise TenfoldError(f"{what} {problem} {_some(keys)}{end}; build the network to match")
    for key, value in weights.items():
        if own[key].shape != value.shape:
            raise TenfoldError(
                f"{key} is {list(value.shape)} in {what} and {list(own[key].shape)} in the network; build it with the "
                "same sizes"
            )


def _some(keys: Iterable[str]) -> str:
    ordered = sorted(keys)
    return ", ".join(ordered[:4]) + (f" and {len(ordered) - 4} more" if len(ordered) > 4 else "")
