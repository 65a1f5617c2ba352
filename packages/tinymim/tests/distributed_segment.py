"""Trains a tiny segmenter on squares: ``distributed_segment.py DEVICES OUTPUT DATA_ROOT``.

Without batch norm, dropout and stochastic depth two processes must learn what one does.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from test_tinymim_ade20k import TINY, tiny_segmenter

from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.runs import Run, RunKey, save_atomically
from tenfold.tinymim.ade20k import ADE20K
from tenfold.tinymim.segmentation_training import fit_segmenter


def without_noise(network: nn.Module) -> None:
    for module in network.modules():
        for name, part in list(module.named_children()):
            if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                setattr(module, name, nn.Identity())


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def main() -> None:
    devices, output, root = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=devices))
    assert fabric.world_size == devices
    config = replace(TINY, recipe=replace(TINY.recipe, iterations=3, batch_size=4, lr=1e-4, log_every=1))
    train_set, test_set = (ADE20K(root / "ade20k", split, 3) for split in ("training", "validation"))
    torch.manual_seed(0)
    network = tiny_segmenter()
    without_noise(network)
    start = weights_of(network)
    key = RunKey("tinymim", f"on{devices}", "segmenter", 0, "squares", "test", "segmenter")
    with Run(output, key, {}, is_writer=fabric.is_global_zero) as run:
        metrics = fit_segmenter(network, config, train_set, test_set, 0, fabric, run, workers=0)
        rows = run.history() if fabric.is_global_zero else []
    losses = [row["loss"] for row in rows if "loss" in row]
    weights = weights_of(network)
    found = {"start": start, "weights": weights, "losses": losses, "metrics": metrics}
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
