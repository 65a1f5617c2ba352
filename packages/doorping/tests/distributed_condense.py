"""Condenses a few digits in some processes: ``distributed_condense.py DEVICES OUTPUT``."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_doorping_condensation import SHARED, SHARED_ATTACK, few_digits, strong_network

from tenfold.doorping.attacks import Poison
from tenfold.doorping.condensation import condense
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, RunKey, save_atomically


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = make_fabric(AcceleratorConfig(device="cpu", devices=devices))
    fabric.launch()
    assert fabric.world_size == devices
    found = {}
    for augmentation in ("none", "crop_scale"):
        key = RunKey("doorping", "distributed", augmentation, 0, "digits", "test", augmentation)
        poison = Poison(few_digits(), SHARED_ATTACK, 0)
        config = replace(SHARED, augmentation=augmentation)
        with Run(output, key, {}, "iteration", is_writer=fabric.is_global_zero) as run:
            made = condense(poison, strong_network, config, 0, fabric, run, lambda *_: {})
            losses = [row["matching_loss"] for row in run.history() if "matching_loss" in row]
        found[augmentation] = {
            "images": made.images,
            "trigger": poison.trigger,
            "losses": torch.tensor(losses if fabric.is_global_zero else []),
        }
    data = few_digits()
    one = replace(data, classes=1, train_labels=data.train_labels * 0, test_labels=data.test_labels * 0)
    key = RunKey("doorping", "distributed", "one-class", 0, "digits", "test", "one-class")
    try:
        with Run(output, key, {}, is_writer=fabric.is_global_zero) as run:
            condense(Poison(one, SHARED_ATTACK, 0), strong_network, SHARED, 0, fabric, run, lambda *_: {})
    except TenfoldError as error:
        found["refusal"] = str(error)
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
