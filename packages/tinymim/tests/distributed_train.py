"""Trains tiny networks on digits in some processes: ``distributed_train.py DEVICES OUTPUT``."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import MAE, STUDENT, digits, random_teacher, small_finetuning, small_pretraining

from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.runs import Run, RunKey, save_atomically
from tenfold.tinymim.training import (
    finetune_network,
    make_finetuned_network,
    pretrain_network,
)


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = launch_fabric(AcceleratorConfig(device="cpu", devices=devices))
    assert fabric.world_size == devices
    images = digits(fabric)

    def make_run(name: str) -> Run:
        key = RunKey("tinymim", f"on{devices}", name, 0, "digits", "test", name)
        return Run(output, key, {}, is_writer=fabric.is_global_zero)

    found = {}
    # The second divides each process's share once more.
    for name, target, accumulate in (("relation", None, 1), ("accumulated", None, 2), ("MAE", MAE, 1)):
        settings = small_pretraining(target, epochs=1, drop_path=0.0, accumulate=accumulate)
        teacher = random_teacher() if settings.teacher else None
        with make_run(name) as run:
            trained = pretrain_network(settings, images, 0, run, teacher)
        found[name] = {"weights": trained.network.state_dict(), **trained.losses}
    recipe = small_finetuning()
    classifier = make_finetuned_network(STUDENT.shape(24), recipe, 10, 0)
    with make_run("classifier") as run:
        finished = finetune_network(recipe, classifier, images.batches(recipe, 0), images, 0, run)
    found["classifier"] = {"weights": finished.network.state_dict(), **finished.metrics}
    save_atomically(output / f"on{devices}-rank{fabric.global_rank}.pt", found)


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
