"""Trains a teacher without dropout and then a student on sampled batches: ``distributed_distill.py DEVICES OUTPUT``.

Every batch of the teacher holds all training nodes with all neighbours, split evenly over the processes.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from conftest import random_graph

from tenfold.reliant.config import DistillationConfig, SamplingConfig, TeacherConfig
from tenfold.reliant.teachers import build_teacher
from tenfold.reliant.training import distill, train_teacher
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.runs import Run, RunKey


def main() -> None:
    devices, output = int(sys.argv[1]), Path(sys.argv[2])
    fabric = make_fabric(AcceleratorConfig(device="cpu", devices=devices))
    fabric.launch()
    graph = random_graph()
    assert len(graph.train) % 2 == 0

    def build() -> torch.nn.Module:
        network = build_teacher("gcn", graph.num_features, 16)
        network.dropout.p = 0.0
        return network

    def run(name: str) -> Run:
        key = RunKey("reliant", "test", f"{name}-on{devices}", 0, "random", "test", "test")
        return Run(output, key, {}, is_writer=fabric.is_global_zero)

    sampling = SamplingConfig(batch_size=30 // devices, fanout=(-1, -1, -1))
    with run("teacher") as record:
        config = TeacherConfig(epochs=5, sampling=sampling)
        teacher = train_teacher(graph, config, 0, fabric, record, build=build)
        record.save_artifact("weights.pt", teacher.network.state_dict())
        record.finish({})
    with run("student") as record:
        config = DistillationConfig(
            epochs=3, alpha=5.0, lr=0.01, sampling=replace(sampling, fanout=(4, 4, 4))
        )
        student = distill(graph, teacher.output, config, 0, fabric, record)
        state = torch.cat([value.flatten() for value in student.network.state_dict().values()])
        state = torch.cat([state, student.proxies.values.detach().flatten()])
        gathered = fabric.all_gather(state)
        differ = float((gathered - state).abs().max()) if devices > 1 else 0.0
        record.finish({"ranks_differ": differ})
    assert fabric.world_size == devices


if __name__ == "__main__":
    main()
    torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
