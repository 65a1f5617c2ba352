"""The backbone for ADE20K, its pre-trained weights, UperNet and its loss, and sliding windows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tenfold.shared.logging import TenfoldError
from tenfold.tinymim.architectures import make_classifier
from tenfold.tinymim.positions import resize_pos_embed
from tenfold.tinymim.segmentation_backbone import (
    BiasedAttention,
    SegmentationBackbone,
    build_segmentation_backbone,
    load_pretrained,
    relative_position_index,
)
from tenfold.tinymim.upernet import (
    Segmentation,
    Segmenter,
    UPerHead,
    segmentation_loss,
    sliding_logits,
    window_starts,
    with_synchronised_norms,
)
from tenfold.tinymim.vit import VisionTransformer, ViTConfig


def backbone(
    star: bool = False, img_size: int = 64, width: int = 16, **changes: object
) -> SegmentationBackbone:
    """Four blocks, all of which become maps."""
    settings = {"depth": 4, "num_heads": 4, "out_blocks": (1, 2, 3, 4), **changes}
    return build_segmentation_backbone(img_size, width, star=star, **settings)  # type: ignore[arg-type]


def classifier(star: bool = False, depth: int = 4) -> VisionTransformer:
    shape = ViTConfig(48, 16, 16, depth, 4, distillation_token=star, projection=1280 if star else None)
    return make_classifier(shape, num_classes=5)


def images(size: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


# -- the backbone --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("star", "width"), [(False, 16), (True, 64)])
def test_maps_have_strides_4_to_32(star: bool, width: int) -> None:
    network = backbone(star)
    assert network.widths == (width,) * 4
    assert [tuple(level.shape) for level in network(images())] == [
        (2, width, side, side) for side in (16, 8, 4, 2)
    ]


def test_patches_of_8_pixels_give_the_same_strides() -> None:
    maps = backbone(patch_size=8)(images())
    assert [tuple(level.shape[2:]) for level in maps] == [(side, side) for side in (16, 8, 4, 2)]


def test_published_backbones_have_their_parameters() -> None:
    """The specification's networks without their norm, on a grid of 32, and what is added to them."""
    with torch.device("meta"):
        base = build_segmentation_backbone(512, 768, 12, 12)
        star = build_segmentation_backbone(512, 192, 12, 12, star=True)
    blocks = 12 * (2 * 768 + 12 * (63**2 + 3))
    necks = 3 * (4 * 768 * 768 + 768) + 2 * 768
    expected = 85_798_656 - 2 * 768 + (1025 - 197) * 768 + blocks + necks
    assert sum(value.numel() for value in base.parameters()) == expected
    blocks = 12 * (2 * 192 + 12 * (63**2 + 6))
    projection = 2 * 192 + 192 * 1280 + 1280
    first = 4 * 192 * 384 + 384 + 2 * 384 + 4 * 384 * 768 + 768
    necks = first + 4 * 192 * 768 + 768 + 192 * 768 + 768 + 9 * 1280 * 768 + 768
    expected = 5_524_416 - 2 * 192 + 192 + (1026 - 197) * 192 + blocks + projection + necks
    assert sum(value.numel() for value in star.parameters()) == expected


@pytest.mark.parametrize("star", [False, True])
def test_everything_of_the_backbone_learns(star: bool) -> None:
    network = backbone(star, drop_path_rate=0.0)
    sum(level.square().mean() for level in network(images())).backward()  # type: ignore[union-attr]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.count_nonzero() > 0, name


def test_what_ends_a_residual_begins_smaller_in_deeper_blocks() -> None:
    torch.manual_seed(0)
    network = backbone(width=64)
    for number, block in enumerate(network.blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            assert layer.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.1)


def test_the_index_of_the_bias_is_no_weight() -> None:
    network = backbone()
    assert network.relative_position_index.shape == (17, 17)
    assert not any("index" in name for name in network.state_dict())


def test_stochastic_depth_rises_to_its_rate() -> None:
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in backbone(drop_path_rate=0.3).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"patch_size": 32}, "no necks for patches of 32 pixels: take 16, or 8"),
        ({"star": True, "patch_size": 8}, "no necks for patches of 8 pixels: take 16$"),
        ({"img_size": 40}, "at least 32 pixels a side and a multiple of the patches' 16, unlike 40"),
        ({"out_blocks": (1, 2, 3, 5)}, r"from 1 to 4, not from \(1, 2, 3, 5\): set out_blocks"),
        ({"out_blocks": (1, 2, 4, 3)}, "in ascending order"),
        ({"num_heads": 3}, "width of 16 cannot be divided among 3 heads"),
        ({"fpn1_norm": "LN"}, "no norm 'LN' .* choose SyncBN or BN"),
        ({"drop_path_rate": 1.0}, "stochastic depth is from 0 to below 1"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(TenfoldError, match=sentence):
        backbone(**changes)  # type: ignore[arg-type]


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(TenfoldError, match="sees images of 3 x 64 x 64, not"):
        backbone()(images(32))


# -- relative positions --------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [1, 2])
def test_pairs_of_patches_share_a_bias_where_their_offset_is_the_same(extra: int) -> None:
    grid = 3
    index = relative_position_index(grid, extra)[extra:, extra:]
    offsets: dict[int, set[tuple[int, int]]] = {}
    for query in range(grid**2):
        for key in range(grid**2):
            offset = (query // grid - key // grid, query % grid - key % grid)
            offsets.setdefault(int(index[query, key]), set()).add(offset)
    assert sorted(offsets) == list(range((2 * grid - 1) ** 2))
    assert all(len(seen) == 1 for seen in offsets.values())


def test_cls_has_rows_of_its_own() -> None:
    index = relative_position_index(2, 1)
    assert index[0].tolist() == [11, 9, 9, 9, 9]
    assert index[:, 0].tolist() == [11, 10, 10, 10, 10]


def test_the_distillation_token_has_rows_before_those_of_cls() -> None:
    index = relative_position_index(2, 2)
    assert index[0].tolist() == [14, 12, 12, 12, 12, 12]
    assert index[:, 0].tolist() == [14, 13, 13, 13, 13, 13]
    assert index[1].tolist() == [13, 11, 9, 9, 9, 9]
    assert index[:, 1].tolist() == [12, 11, 10, 10, 10, 10]


def test_attention_is_a_softmax_of_scores_and_bias() -> None:
    torch.manual_seed(0)
    attention, index = BiasedAttention(8, 2, 9 + 3), relative_position_index(2, 1)
    nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(3, 5, 8)
    q, k, v = attention.qkv(x).chunk(3, dim=2)
    found = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / 4**0.5
        bias = attention.relative_position_bias_table[index, head]
        found.append((scores + bias).softmax(dim=2) @ v[..., part])
    torch.testing.assert_close(attention(x, index), attention.proj(torch.cat(found, dim=2)))


# -- pre-trained weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("star", [False, True])
def test_a_classifier_and_the_backbone_from_it_compute_the_same_tokens(star: bool) -> None:
    torch.manual_seed(0)
    source = classifier(star).eval()
    network = backbone(star, img_size=48).eval()
    load_pretrained(network, {"model": source.state_dict()})
    extra = 2 if star else 1
    tokens = source.forward_features(images(48), block=3)[:, extra:]
    level = tokens.transpose(1, 2).unflatten(2, (3, 3))
    expected = network.fpn3(level)
    torch.testing.assert_close(network(images(48))[2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("star", [False, True])
def test_positions_follow_the_grid(star: bool) -> None:
    source, network = classifier(star), backbone(star)
    load_pretrained(network, source.state_dict())
    expected = resize_pos_embed(source.pos_embed, 4, 2 if star else 1)
    assert network.pos_embed.shape[1] == 16 + (2 if star else 1)
    assert torch.equal(network.pos_embed, expected)


def test_scales_biases_and_necks_stay_new() -> None:
    source, network = classifier(), backbone()
    for value in [*source.parameters(), *network.parameters()]:
        nn.init.normal_(value)  # so that no tensor of one is the other's by chance
    before = {name: value.clone() for name, value in network.state_dict().items()}
    load_pretrained(network, source.state_dict())
    kept = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if name.startswith("fpn") or "gamma" in name or "table" in name}


def test_weights_of_the_wrong_network_are_named() -> None:
    network, weights = backbone(), classifier().state_dict()
    with pytest.raises(TenfoldError, match=r"conv1x1\.0\.bias is missing: is it a network of another depth"):
        load_pretrained(backbone(star=True), weights)
    with pytest.raises(TenfoldError, match=r"conv1x1\.0\.bias is not expected"):
        load_pretrained(network, classifier(star=True).state_dict())
    with pytest.raises(TenfoldError, match=r"blocks\.4\..* is not expected"):
        load_pretrained(network, classifier(depth=5).state_dict())
    with pytest.raises(TenfoldError, match=r"cls_token is missing"):
        load_pretrained(network, {name: value for name, value in weights.items() if name != "cls_token"})
    with pytest.raises(TenfoldError, match=r"cls_token has shape \(1, 1, 16\), not \(1, 1, 32\)"):
        load_pretrained(backbone(width=32), weights)
    with pytest.raises(TenfoldError, match="holds no weights"):
        load_pretrained(network, {"epoch": 3})


# -- heads ---------------------------------------------------------------------------------------------


def test_uperhead_has_the_parameters_of_its_layers() -> None:
    with torch.device("meta"):
        head = UPerHead((768,) * 4, 150)
    norms = 2 * 768 * (4 + 1 + 3 + 3 + 1)
    pyramid = 4 * 768 * 768 + 5 * 768 * 768 * 9
    feature_pyramid = 3 * 768 * 768 + 3 * 768 * 768 * 9 + 4 * 768 * 768 * 9
    assert sum(value.numel() for value in head.parameters()) == (
        norms + pyramid + feature_pyramid + 768 * 150 + 150
    )


def test_logits_have_the_size_of_images_and_the_auxiliary_head_is_for_training() -> None:
    network = Segmenter(backbone(), num_classes=7, channels=8, auxiliary_channels=8)
    output = network(images())
    assert output.logits.shape == (2, 7, 64, 64)
    assert output.auxiliary is not None and output.auxiliary.shape == (2, 7, 64, 64)
    assert network.eval()(images()).auxiliary is None


def test_every_parameter_of_the_segmenter_learns() -> None:
    network = Segmenter(backbone(drop_path_rate=0.0), num_classes=3, channels=8, auxiliary_channels=8)
    labels = torch.randint(3, (2, 64, 64))
    segmentation_loss(network(images()), labels).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_single_image_cannot_train_pooled_maps() -> None:
    network = Segmenter(backbone(), num_classes=3, channels=8, auxiliary_channels=8)
    with pytest.raises(TenfoldError, match="at least 2 images on a device: enlarge the batch"):
        network(images(count=1))


@pytest.mark.parametrize(("norm", "of_neck"), [("SyncBN", nn.SyncBatchNorm), ("BN", nn.BatchNorm2d)])
def test_norms_are_synchronised_where_it_is_asked_for(norm: str, of_neck: type[nn.Module]) -> None:
    network = with_synchronised_norms(Segmenter(backbone(fpn1_norm=norm), 3, 8, 8))
    assert type(network.backbone.fpn1[1]) is of_neck  # type: ignore[index]
    heads = [*network.decode_head.modules(), *network.auxiliary_head.modules()]
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in heads) == 13
    assert not any(type(module) is nn.BatchNorm2d for module in heads)


def test_ignored_pixels_count_but_do_not_teach() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.randint(3, (2, 4, 4))
    labels[:, :1] = 255
    loss = segmentation_loss(Segmentation(logits, None), labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :, 1:], labels[:, 1:]) * 3 / 4)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[:, :, :1].count_nonzero() == 0 < logits.grad[:, :, 1:].count_nonzero()


def test_the_auxiliary_head_counts_two_fifths() -> None:
    first, second = torch.randn(2, 1, 3, 4, 4).unbind()
    labels = torch.randint(3, (1, 4, 4))
    expected = F.cross_entropy(first, labels) + 0.4 * F.cross_entropy(second, labels)
    torch.testing.assert_close(segmentation_loss(Segmentation(first, second), labels), expected)


# -- whole images --------------------------------------------------------------------------------------


class Places(nn.Module):
    """Logits that say which pixels a network saw, and where in its window each lay."""

    def forward(self, windows: Tensor) -> Segmentation:
        across = torch.arange(windows.shape[3]).expand_as(windows[:, :1])
        return Segmentation(torch.cat((windows, across), dim=1), None)


def test_windows_cover_a_side_and_end_with_it() -> None:
    assert window_starts(512, 512, 341) == [0]
    assert window_starts(683, 512, 341) == [0, 171]
    assert window_starts(2048, 512, 341) == [0, 341, 682, 1023, 1364, 1536]
    assert window_starts(853, 512, 341) == [0, 341]
    assert window_starts(300, 512, 341) == [0]


def test_one_window_is_the_network_itself() -> None:
    network = Segmenter(backbone(img_size=32), 3, 8, 8).eval()
    with torch.inference_mode():
        found = sliding_logits(network, images(32)[0], 32, 20)
        torch.testing.assert_close(found, network(images(32)[:1]).logits)


def test_overlapping_windows_are_averaged() -> None:
    image = torch.randn(3, 8, 11)
    found = sliding_logits(Places(), image, 8, 4)
    torch.testing.assert_close(found[0, :3], image)
    # Windows begin at 0 and 3.
    assert found[0, 3, 0].tolist() == [0, 1, 2, 1.5, 2.5, 3.5, 4.5, 5.5, 5, 6, 7]


def test_a_side_shorter_than_the_window_is_filled_up() -> None:
    image = torch.randn(3, 5, 20)
    found = sliding_logits(Places(), image, 8, 6)
    assert found.shape == (1, 4, 5, 20)
    torch.testing.assert_close(found[0, :3], image)
