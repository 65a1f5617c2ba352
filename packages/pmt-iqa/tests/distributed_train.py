"""Trains on noisy pictures: ``distributed_train.py DEVICES OUTPUT``.

Without batch norm the mean over shares is the mean over the whole batch, so that two processes must learn what one
does, also from batches that cannot be divided evenly. With batch norm each process normalises by its own share.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from conftest import noisy_images, small_config

from tenfold.pmt_iqa import training
from tenfold.pmt_iqa.experiments import launch_fabric
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.runs import Run, RunKey, save_atomically


def without_batch_norm(module: nn.Module) -> nn.Module:
    for child in module.modules():
        for name, part in list(child.named_children()):
            if isinstance(part, nn.BatchNorm2d):
                setattr(child, name, nn.Identity())
    return module


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=devices))
    assert fabric.world_size == devices
    images = noisy_images(25)
    # 19 training images, batches of 5 with 3 crops each: 15 crops, and a rest of 12.
    config = small_config(images_per_batch=5, crops_per_image=3, lr=3e-4)
    regression = replace(config, train=replace(config.train, schedule="regression"))
    configs = {
        "PMT-IQA": config,
        "fixed": replace(config, train=replace(config.train, schedule="fixed")),
        "HyperIQA": replace(regression, model=replace(config.model, kind="hyper")),
        "plain": replace(regression, model=replace(config.model, kind="plain")),
    }
    make_network = training.make_network
    found = {}
    for norm in ("no norm", "batch norm"):
        if norm == "no norm":
            training.make_network = lambda *given: without_batch_norm(make_network(*given))
        else:
            training.make_network = make_network
        for name, chosen in configs.items():
            if norm == "batch norm" and name != "PMT-IQA":
                continue
            key = RunKey(
                "pmt-iqa", f"on{devices}", f"{name}-{norm}".replace(" ", "-"), 0, "noisy", norm, name
            )
            with Run(output, key, {}, is_writer=fabric.is_global_zero) as run:
                trained = training.train(images, chosen, 0, fabric, run)
            found[f"{name}, {norm}"] = {
                "weights": torch.cat([value.flatten() for value in trained.network.state_dict().values()]),
                "predictions": trained.predictions,
                "losses": torch.tensor(
                    [row["loss"] for row in run.history()] if fabric.is_global_zero else []
                ),
            }
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
