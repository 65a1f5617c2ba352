"""Trains tiny networks on digits in some processes: ``distributed_train.py DEVICES OUTPUT``."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import small_run

from tenfold.emo.training import train
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.runs import Run, RunKey, save_atomically


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=devices))
    assert fabric.world_size == devices
    configs = {
        "emo": small_run(ema_decay=0.9, epochs=1),
        # Layer norms alone: what two processes learn must be what one does.
        "vit": small_run({"name": "vit_digits"}, epochs=2),
    }
    found = {}
    for name, config in configs.items():
        key = RunKey("emo", f"on{devices}", name, 0, "digits", "test", name)
        with Run(output, key, {}, is_writer=fabric.is_global_zero) as run:
            trained = train(config, 0, fabric, run)
            losses = [row["loss"] for row in run.history()] if fabric.is_global_zero else []
        weights = [value.flatten().float() for value in trained.network.state_dict().values()]
        found[name] = {
            "weights": torch.cat(weights),
            "losses": torch.tensor(losses),
            "top1": torch.tensor(trained.metrics["top1"]),
        }
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
