"""Learns and detects in two processes, and then in the first alone: ``distributed_train.py OUTPUT SCENES``."""

import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from conftest import SCENES, small_recipe, tiny_network

from tenfold.cmt.config import NO_AUGMENTATION, LossConfig, NetworkConfig
from tenfold.cmt.dataset import TestSamples, TrainingSamples
from tenfold.cmt.detector import Cmt
from tenfold.cmt.judging import detect_split
from tenfold.cmt.nuscenes_index import load_index
from tenfold.cmt.profiles import QUICK_DATA
from tenfold.cmt.samples import Batch
from tenfold.cmt.sensor_conditions import CONDITIONS
from tenfold.cmt.suite_runs import launch_fabric
from tenfold.cmt.training import Given, Objective, Trainer, train_detector
from tenfold.cmt.training_batches import batch_order, training_loader
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.runs import Run, RunKey, save_atomically

PLAIN = LossConfig(denoising_groups=0)
"""Nothing random in a step."""
RECIPE = small_recipe(batch_size=4, clip=1e9)
SWITCHES: tuple[dict[str, bool], ...] = (
    {},
    {"image_position": False},
    {"bev_position": False},
    {"guided_queries": False},
)


def make(network: NetworkConfig) -> Cmt:
    torch.manual_seed(0)
    return Cmt(network)


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of the first update: Adam's averages are a tenth of them."""
    names = {id(parameter): name for name, parameter in trainer.network.named_parameters()}
    return {names[id(one)]: 10 * state["exp_avg"] for one, state in trainer.optimizer.state.items()}


def one_update(batch: Batch, fabric: Fabric, losses: LossConfig) -> dict[str, Tensor]:
    trainer = Trainer(make(tiny_network()), RECIPE, losses, fabric, 6, 0)
    logged = trainer.learn(0, iter((batch,)))
    return {"logged": logged, **gradients(trainer)}


def noised_losses(batch: Batch, seed: int, fabric: Fabric) -> Tensor:
    """Losses of the last layer, with noise from a seed."""
    objective = Objective(make(tiny_network()), LossConfig(), fabric)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        found: Tensor = objective(Given(batch, generator, None))
    return found


def main() -> None:
    output, scenes = map(Path, sys.argv[1:])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=2))
    assert fabric.world_size == 2
    rank = fabric.global_rank
    index = load_index(scenes, SCENES.version, SCENES.train_split, output / "index", 2)
    order = batch_order(index, QUICK_DATA, 4, 0)
    samples = TrainingSamples(scenes, index, tiny_network(), QUICK_DATA, NO_AUGMENTATION, 0, None, 0)

    def half(place: int) -> Batch:
        return next(iter(training_loader(samples, order, 0, 1, place, 2)))

    def keep(name: str, content: Any) -> None:
        save_atomically(output / f"{name}-{rank}.pt", content)

    keep("gradients", one_update(half(rank), fabric, PLAIN))
    noised = half(0), thinned(half(1))
    keep("noised", {"losses": noised_losses(noised[rank], rank, fabric), "counts": noised[rank].counts})

    tests = TestSamples(
        scenes,
        load_index(scenes, SCENES.version, SCENES.test_split, output / "index", 2),
        tiny_network(),
        QUICK_DATA,
        CONDITIONS["both"],
    )

    def found(with_fabric: Fabric) -> dict[str, Any]:
        detected = detect_split(make(tiny_network()), tests, with_fabric, batch_size=1)
        return {token: {"boxes": one.boxes, "scores": one.scores} for token, one in detected.items()}

    keep("detections", found(fabric))
    for number, switches in enumerate(SWITCHES):
        network, recipe = make(tiny_network(**switches)), small_recipe(steps=2, batch_size=4, log_every=1)
        key = RunKey("cmt", "test", f"switch{number}", 0, "procedural scenes", "test", "test")
        losses = LossConfig() if network.head.guided_queries else PLAIN
        with Run(output, key, {}, "update", is_writer=fabric.is_global_zero) as run:
            try:
                trained = train_detector(network, samples, order, recipe, losses, fabric, run)
            except RuntimeError as error:
                keep(f"switch{number}", str(error))
                continue
        keep(f"switch{number}", {"losses": trained.losses, "weights": network.state_dict()})
    if rank == 0:
        alone = Fabric(accelerator="cpu", devices=1)
        save_atomically(output / "alone-gradients.pt", [gradients_alone(half(place)) for place in (0, 1)])
        save_atomically(
            output / "alone-noised.pt", [noised_losses(noised[place], place, alone) for place in (0, 1)]
        )
        save_atomically(output / "alone-detections.pt", found(alone))
    fabric.barrier()
    signal.alarm(15)  # only one of them has objects now, and where they do not agree they wait for ever
    keep("lacking", one_update(half(rank) if rank == 0 else emptied(half(rank)), fabric, LossConfig()))


def gradients_alone(batch: Batch) -> dict[str, Tensor]:
    """Of a half, without a trainer."""
    objective = Objective(make(tiny_network()), PLAIN, Fabric(accelerator="cpu", devices=1)).train()
    objective(Given(batch, torch.Generator(), None))[0].backward()
    named = objective.network.named_parameters()
    return {name: value.grad for name, value in named if value.grad is not None}


def thinned(batch: Batch) -> Batch:
    """The same with objects in its first sample alone."""
    boxes, labels = batch.boxes.clone(), batch.labels.clone()
    boxes[1:], labels[1:] = 0, -1
    return replace(batch, boxes=boxes, labels=labels, counts=(batch.counts[0], 0))


def emptied(batch: Batch) -> Batch:
    """The same without objects."""
    size = len(batch.tokens)
    labels = torch.zeros(size, 0, dtype=torch.int64)
    return replace(batch, boxes=torch.zeros(size, 0, 9), labels=labels, counts=(0,) * size)


if __name__ == "__main__":
    main()
