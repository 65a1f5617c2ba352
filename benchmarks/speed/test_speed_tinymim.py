"""TinyMIM: the relation step against one that stores every map, its memory, and views of a batch at once.

The reference is the step as it is usually written: attention by two products and a softmax in every block, a teacher
that computes all of its blocks, four maps of relations with their logarithms in float32. Both sides are checked to
agree.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.transforms import v2

from tenfold.tinymim.architectures import build_student, build_teacher
from tenfold.tinymim.augmentation import draw_colours, jitter
from tenfold.tinymim.relations import relation_loss
from tenfold.tinymim.targets import Objective, TargetConfig
from tenfold.tinymim.teachers import Teacher
from tenfold.tinymim.vit import QKV, Block, VisionTransformer

BATCH = 4


class PeakMemory(TorchDispatchMode):
    """Bytes of the tensors that live at one time, at most; kernels' own scratch is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value.untyped_storage())
        return result

    def add(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, place, size)

    def remove(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size


def peak_of(work: Callable[[], Any]) -> int:
    with PeakMemory() as memory:
        work()
    return memory.peak


# -- the reference -------------------------------------------------------------------------------------


def plain_attention(block: Block, x: Tensor) -> Tensor:
    q, k, v = block.attn.split(x)
    maps = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    out: Tensor = block.attn.proj((maps @ v).transpose(1, 2).flatten(2))
    return out


def plain_blocks(network: VisionTransformer, images: Tensor) -> QKV:
    """Every block, and the last one's queries, keys and values."""
    x = network.embed(images)
    block: Any
    for block in network.blocks:
        normed = block.norm1(x)
        qkv: QKV = block.attn.split(normed)
        x = x + plain_attention(block, normed)
        x = x + block.mlp(block.norm2(x))
    return qkv


def plain_maps(qkv: QKV) -> list[Tensor]:
    q, k, v = (values.float() for values in qkv)
    return [(a @ b.transpose(-2, -1) * a.shape[-1] ** -0.5).softmax(dim=-1) for a, b in ((q, k), (v, v))]


def plain_loss(student: QKV, teacher: QKV) -> Tensor:
    losses = [
        F.kl_div(mine.log(), wanted, reduction="none").sum(dim=-1).mean()
        for mine, wanted in zip(plain_maps(student), plain_maps(teacher), strict=True)
    ]
    return torch.stack(losses).sum()


# -- what is timed -------------------------------------------------------------------------------------


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_qkv(width: int, seed: int) -> list[Tensor]:
    return [draw(BATCH, 12, 197, width, seed=seed + number) for number in range(3)]


def test_the_relation_loss_against_stored_maps(measure_ratio: Callable[..., Any]) -> None:
    """Twelve heads of ViT-T and ViT-S."""
    teacher = QKV(*random_qkv(32, 0))
    student = [values.requires_grad_() for values in random_qkv(16, 10)]

    def ours() -> list[Tensor]:
        return list(torch.autograd.grad(relation_loss(student, teacher)["total"], student))

    def theirs() -> list[Tensor]:
        return list(torch.autograd.grad(plain_loss(QKV(*student), teacher), student))

    for found, expected in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-8)
    memory = peak_of(ours) / peak_of(theirs)
    assert memory <= 0.5
    measure_ratio(
        ours,
        theirs,
        reference="four maps and their logarithms in float32, by autograd",
        unit=f"losses with gradients of {BATCH} images, 12 heads, 197 tokens; {memory:.2f} of its peak memory",
    )


def test_the_relation_step_against_stored_maps(measure_ratio: Callable[..., Any]) -> None:
    """ViT-T imitates block 12 of ViT-S at 224 pixels; stochastic depth is off, so that both sides agree."""
    torch.manual_seed(0)
    network = build_teacher("mae_vit_small")
    teacher = Teacher(network, heads=12)
    objective = Objective(build_student("tinymim_vit_tiny_patch16", drop_path=0.0), TargetConfig(), 384)
    images = draw(BATCH, 3, 224, 224, seed=1)
    parameters = [value for value in objective.parameters() if value.requires_grad]
    reference = build_student("tinymim_vit_tiny_patch16", drop_path=0.0)
    reference.load_state_dict(objective.student.state_dict())
    learned = [value for value in reference.parameters() if value.requires_grad]

    def ours() -> Tensor:
        loss = objective(images, teacher.read(images, {"qkv"}))["total"]
        torch.autograd.grad(loss, parameters)
        return loss.detach()

    def theirs() -> Tensor:
        with torch.no_grad():
            wanted = QKV(*(split_heads(values, 12) for values in plain_blocks(network, images)))
        loss = plain_loss(plain_blocks(reference, images), wanted)
        torch.autograd.grad(loss, learned, allow_unused=True)
        return loss.detach()

    torch.testing.assert_close(ours(), theirs(), rtol=1e-3, atol=1e-7)
    memory = peak_of(ours) / peak_of(theirs)
    assert memory < 1  # the rest is activations of the student that both sides keep
    measure_ratio(
        ours,
        theirs,
        rounds=3,
        reference="attention and relations with every map stored, all blocks of the teacher",
        unit=f"steps of {BATCH} images, ViT-S to ViT-T at 224 pixels; {memory:.2f} of its peak memory",
    )


def split_heads(values: Tensor, heads: int) -> Tensor:
    """[B, h, N, d] by another number of heads."""
    return values.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)


def test_colours_of_a_batch_against_one_by_one(measure_ratio: Callable[..., Any]) -> None:
    pixels = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    change: nn.Module = v2.ColorJitter(0.4, 0.4, 0.4)
    generator = torch.Generator().manual_seed(1)
    measure_ratio(
        lambda: jitter(pixels, draw_colours(64, 0.4, generator)),
        lambda: torch.stack([change(image) for image in pixels]),
        reference="torchvision's ColorJitter, image by image",
        peer="torchvision",
        unit="batches of 64 images of 64 pixels, each with colours of its own",
    )


@pytest.mark.gpu
def test_peak_memory_of_the_loss_on_a_gpu() -> None:
    teacher = QKV(*(values.cuda() for values in random_qkv(32, 0)))
    student = [values.cuda().requires_grad_() for values in random_qkv(16, 10)]
    peaks = []
    for loss in (
        lambda: relation_loss(student, teacher)["total"],
        lambda: plain_loss(QKV(*student), teacher),
    ):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(loss(), student)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] <= 0.5 * peaks[1]
