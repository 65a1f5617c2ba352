"""Trains a network without batch norm and dropout on 34 graphs: ``distributed_fit.py DEVICES OUTPUT``.

Batches of 11 leave one graph to the last, fewer than two processes; each of the others splits unevenly.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from tenfold.gfkd.config import TrainingConfig
from tenfold.gfkd.experiments import load_split
from tenfold.gfkd.models import GraphClassifier, build_model
from tenfold.gfkd.training import fit, labels_and_loss
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.runs import Run, RunKey


def build() -> GraphClassifier:
    model = build_model("gcn3_32", 7, 2)
    model.dropout.p = 0.0
    for layer in model.layers:
        layer.norm = nn.Identity()
    return model


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = make_fabric(AcceleratorConfig(device="cpu", devices=devices))
    fabric.launch()
    split = load_split("mutag", 29, None)
    graphs = split.train.select(range(34))
    targets, loss = labels_and_loss(graphs)
    config = TrainingConfig(epochs=3, lr=0.001, batch_size=11, shuffle=True)
    key = RunKey("gfkd", "test", f"on{devices}", 0, "mutag", "test", "Labels")
    with Run(output, key, {}, is_writer=fabric.is_global_zero) as run:
        network, fitted = fit(build, graphs, targets, loss, split.test, config, 0, fabric, run)
        run.save_artifact("weights.pt", network.state_dict())
        run.finish({"test_accuracy": fitted.last_accuracy})
    assert fabric.world_size == devices


if __name__ == "__main__":
    main()
    torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
