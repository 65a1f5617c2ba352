"""Trains tiny networks on Groove: ``distributed_train.py DEVICES OUTPUT``.

Two processes must learn what one does, also from batches that cannot be divided evenly and from texts whose weights
differ.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import small_training, tiny_model

from tenfold.drum_gpt.corpus import pieces_of
from tenfold.drum_gpt.training import train
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.runs import Run, RunKey, save_atomically


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=devices))
    assert fabric.world_size == devices
    whole = {"window": None, "max_length": 400, "eval_measures": None}
    configs = {
        "windows": small_training(batch_size=3),
        "pieces": small_training(batch_size=3, prompt_loss_weight=0.1, **whole),
        "early": small_training(batch_size=3, patience=1, lr=0.3),
    }
    found = {}
    for name, config in configs.items():
        model = tiny_model()
        key = RunKey("drum-gpt", f"on{devices}", name, 0, "groove", "test", name)
        with Run(output, key, {}, is_writer=fabric.is_global_zero) as run:
            trained = train(model, pieces_of("train")[:10], pieces_of("dev"), config, 0, fabric, run)
            losses = (
                [row.get("train_nats_per_token", 0.0) for row in run.history()]
                if fabric.is_global_zero
                else []
            )
        found[name] = {
            "weights": torch.cat([value.flatten() for value in model.network.state_dict().values()]),
            "losses": torch.tensor(losses),
            "best": torch.tensor(trained.best_dev),
            "steps": torch.tensor(trained.steps),
        }
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
