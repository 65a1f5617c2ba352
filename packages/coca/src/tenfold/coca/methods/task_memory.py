"""How methods with task boundaries choose what they remember of a task, and ask a network about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.memory import TaskMemory, host_to_device


def add_random_images(memory: TaskMemory, items: Mapping[str, Tensor]) -> None:
    """As many random items of a task as it may have."""
    count = len(items["labels"])
    chosen = memory.rng.permutation(count)[: memory.share]
    index = host_to_device(chosen, items["labels"].device)
    memory.add({name: values[index] for name, values in items.items()})


@torch.no_grad()
def ask_in_chunks(
    fabric: Fabric,
    network: nn.Module,
    ask: Callable[[Tensor], Tensor],
    images: Tensor,
    preprocessing: Preprocessing,
    chunk: int = 512,
) -> Tensor:
    """What a network in evaluation mode says of many images (bytes), without augmentation; its mode is put back."""
    was_training = network.training
    network.eval()
    with fabric.autocast():
        answers = [ask(preprocessing.normalize(part)).float() for part in images.split(chunk)]
    network.train(was_training)
    return torch.cat(answers)
