"""Trains a tiny segmenter and a tiny detector in some processes: ``distributed_dense.py DEVICES OUTPUT DATA_ROOT``.

Without batch norm and dropout the mean over two halves is the mean over the whole, so that two processes must segment
what one does. A detector's loss is divided by the boxes that a process has matched: processes agree with each other.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from test_emo_detection import small_ssdlite
from test_emo_segmentation import both_sets, tiny_segmenter

from tenfold.emo import ade20k, coco
from tenfold.emo.dense import fit_detector
from tenfold.emo.detection import DetectionRecipe
from tenfold.emo.segmentation import SegmentationRecipe
from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.runs import Run, RunKey, save_atomically


def without_noise(network: nn.Module) -> nn.Module:
    """The same without batch norm and dropout."""
    for module in network.modules():
        for name, part in list(module.named_children()):
            if isinstance(part, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd):
                setattr(module, name, nn.Identity())
    return network


def weights_of(network: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def make_run(name: str, output: Path, fabric: Fabric) -> Run:
    key = RunKey("emo", f"on{fabric.world_size}", name, 0, "rectangles", "test", name)
    return Run(output, key, {}, is_writer=fabric.is_global_zero)


def losses_of(run: Run, fabric: Fabric) -> list[float]:
    return [row["loss"] for row in run.history() if "loss" in row] if fabric.is_global_zero else []


def segment(output: Path, root: Path, fabric: Fabric) -> dict[str, Any]:
    recipe = SegmentationRecipe(iterations=3, batch_size=4, lr=1e-4, log_every=1)
    torch.manual_seed(0)
    network: Any = without_noise(tiny_segmenter())
    start = weights_of(network)
    with make_run("segmenter", output, fabric) as run:
        metrics = ade20k.train(network, recipe, *both_sets(root / "ade20k"), 0, fabric, run, workers=0)
        losses = losses_of(run, fabric)
    weights = weights_of(network)
    return {"start": start, "weights": weights, "losses": losses, "metrics": metrics}


def detect(output: Path, root: Path, fabric: Fabric) -> dict[str, Any]:
    folder = root / "coco"
    sets = [
        coco.CocoBoxes(folder / split, folder / f"annotations/instances_{split}.json")
        for split in ("train2017", "val2017")
    ]
    recipe = DetectionRecipe(epochs=2, repeats=2, batch_size=4, lr=1e-3, warmup_iterations=2)
    torch.manual_seed(0)
    detector = small_ssdlite()
    with make_run("detector", output, fabric) as run:
        metrics = fit_detector(detector, recipe, sets[0], sets[1], 0, fabric, run, workers=0)
        losses = losses_of(run, fabric)
    learned = {name: value.detach() for name, value in detector.named_parameters()}
    return {"weights": learned, "losses": losses, "metrics": metrics}


def main() -> None:
    devices, output, root = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=devices))
    assert fabric.world_size == devices
    found = {"segmenter": segment(output, root, fabric), "detector": detect(output, root, fabric)}
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
