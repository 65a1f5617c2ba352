"""Feeds learners two tasks: ``distributed_observe.py DEVICES OUTPUT``.

Heads are linear here. Without batch norm the mean over two halves is the mean over the whole, so that two processes
must learn what one does; that includes the losses which relate the images of both halves.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from conftest import random_images

from tenfold.coca import networks
from tenfold.coca.augmentation import Preprocessing
from tenfold.coca.config import LearnerConfig, NetworkConfig
from tenfold.coca.learner import Learner, launch_fabric
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.runs import save_atomically

METHODS = ("SGD", "ER", "ER-ACE", "A-GEM", "GEM", "iCaRL", "FDR", "DER++", "CoCa", "OCD-Net")


def learn(method: str, network: NetworkConfig, fabric) -> Learner:
    images = random_images(96)
    config = LearnerConfig(
        method, memory_size=0 if method == "SGD" else 12, memory_batch_size=6, gamma=0.5, omega=0.5
    )
    learner = Learner(config, 4, (3, 8, 8), Preprocessing(255.0, (0.4,), (0.3,), 1, True), network, 0, fabric)
    for classes in ((0, 1), (2, 3)):
        task = images.of_classes(classes)
        learner.begin_task(classes)
        for batch in torch.arange(len(task)).split(8):
            learner.observe(task.images[batch], task.labels[batch])
        learner.end_task(task.images, task.labels)
    return learner


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=devices))
    assert fabric.world_size == devices
    narrow = NetworkConfig("resnet18", width=4, projection_dim=8)
    normed = {method: learn(method, narrow, fabric) for method in ("CoCa", "iCaRL", "FDR", "OCD-Net")}
    networks.make_head = lambda feature_dim, outputs, _: nn.Linear(feature_dim, outputs)
    found = {}
    for method in METHODS:
        learner = learn(method, NetworkConfig("mlp", hidden=16, projection_dim=8), fabric)
        found[method] = {
            "weights": torch.cat([value.flatten() for value in learner.network.state_dict().values()]),
            "memory": learner.memory["images"] if learner.memory is not None else torch.zeros(0),
            "steps": torch.tensor(learner.steps),
        }
    for method, learner in normed.items():
        found[f"{method} with batch norm"] = {
            "weights": torch.cat([value.flatten() for value in learner.network.state_dict().values()]),
            "memory": learner.memory["images"],
            "scores": learner.predict(random_images(20, seed=1).images),
        }
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
