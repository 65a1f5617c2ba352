"""Trains a network without dropout on 34 digits, on two processes: ``distributed_fit.py OUTPUT``.

Batches of 11 leave one image to the last, fewer than two processes; each of the others splits unevenly.
"""

import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric

from tenfold.new_paper.config import TrainingConfig
from tenfold.new_paper.data import draw_images, load_digits_split
from tenfold.new_paper.model import DigitClassifier
from tenfold.new_paper.training import fit, label_objective
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.runs import Run, RunKey


def train(fabric: Fabric, run: Run) -> DigitClassifier:
    images, test = load_digits_split()
    images = draw_images(images, 34, seed=0)
    config = TrainingConfig(hidden_dim=16, epochs=3, batch_size=11)
    with run:
        return fit(images, label_objective(images.labels), test, config, 0, fabric, run)


def main() -> None:
    fabric = make_fabric(AcceleratorConfig(device="cpu", devices=2))
    fabric.launch()
    key = RunKey("new-paper", "test", "two-processes", 0, "digits", "test", "Student")
    run = Run(Path(sys.argv[1]), key, {}, is_writer=fabric.is_global_zero)
    run.save_artifact("weights.pt", train(fabric, run).state_dict())
    assert fabric.world_size == 2


if __name__ == "__main__":
    main()
    torch.distributed.destroy_process_group()
