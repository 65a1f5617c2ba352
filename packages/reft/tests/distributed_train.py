"""Trains tiny networks on digits in two processes, and then in the first alone: ``distributed_train.py OUTPUT``."""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

sys.path.insert(0, str(Path(__file__).parent))
from conftest import COMPOSED, LOSSES, small_network, small_recipe

from tenfold.reft.config import LossConfig, ReferenceConfig
from tenfold.reft.episodes import Episodes
from tenfold.reft.judging import detect
from tenfold.reft.profiles import DIGITS
from tenfold.reft.sources import Source
from tenfold.reft.support_pool import SupportPool
from tenfold.reft.training import Trainer, train_stage
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.runs import Run, RunKey, save_atomically
from tenfold.shared.seeding import make_generator

SAME = LossConfig(num_points=0, no_object_weight=1.0)
"""No random points, and a mean over images that does not depend on how they are divided."""
OFF = ReferenceConfig("off", query="off")


def learn(fabric: Fabric, source: Source, output: Path) -> dict[str, Any]:
    """Gradients of one update, networks after three, and what is found in test images."""
    instances, devices = source.base_instances, fabric.world_size

    def episodes(supports: SupportPool | None, steps: int) -> Episodes:
        return Episodes(instances, supports, source.data, 4, steps, 0, fabric.global_rank, devices)

    network = small_network(OFF)
    trainer = Trainer(network, small_recipe(clip=1e6), SAME, fabric)  # clipping would hide a factor
    batch, _ = episodes(None, 1)[0]
    trainer.learn(batch, None, 0)
    found: dict[str, Any] = {
        "gradients": {  # their averages, which are a tenth of them
            name: trainer.optimizer.state[parameter]["exp_avg"]
            for name, parameter in network.named_parameters()
        }
    }
    stages: list[tuple[str, ReferenceConfig, SupportPool | None, LossConfig]] = [
        ("Mask2Former", OFF, None, SAME)
    ]
    if devices > 1:  # each process draws supports and points of its own: nothing to compare with alone
        pool = SupportPool(instances, source.data).capped(1, make_generator(0))
        stages.append(("RefT", ReferenceConfig(), pool, LOSSES))
    for name, references, supports, losses in stages:
        recipe, network = small_recipe(steps=3, log_every=1), small_network(references)
        key = RunKey("reft", f"on{devices}", name, 0, "composed digits", "test", name)
        with Run(output, key, {}, is_writer=fabric.is_global_zero) as run:
            trained = train_stage(network, episodes(supports, 3), recipe, losses, fabric, run)
        found[name] = {"weights": network.state_dict(), "losses": trained.losses}
    results = detect(small_network(OFF), None, source.evaluation_images, range(1, 8), fabric, batch_size=4)
    found["detections"] = sorted(
        (one["image_id"], one["category_id"], one["segmentation"]["counts"], one["score"]) for one in results
    )
    return found


def main() -> None:
    output = Path(sys.argv[1])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=2))
    assert fabric.world_size == 2
    source = Source(DIGITS, Path("data"), output, COMPOSED)
    save_atomically(output / f"rank{fabric.global_rank}.pt", learn(fabric, source, output))
    torch.distributed.destroy_process_group()
    if fabric.is_global_zero:
        alone = launch_fabric(AcceleratorConfig(device="cpu"))
        assert alone.world_size == 1
        save_atomically(output / "alone.pt", learn(alone, source, output))


if __name__ == "__main__":
    main()
