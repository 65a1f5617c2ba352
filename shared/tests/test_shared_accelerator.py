"""Fabric with our defaults: one process, two processes, precision, devices."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from tenfold.shared.accelerator import (
    AcceleratorConfig,
    channels_last,
    fuses_clipped,
    launch_fabric,
    make_fabric,
    maybe_compile,
    resolve_device,
    resolve_precision,
    resolve_processes,
)
from tenfold.shared.logging import TenfoldError

SetVariables = Callable[[dict[str, str]], None]
ON_TWO_NODES = {
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_NNODES": "2",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}

# Started by torchrun, by srun and by Fabric itself; every process reports what it saw.
TWO_PROCESSES = """
import json, sys
sys.modules["torchmetrics"] = None  # Fabric imports it, for seconds, only to ask for its version
from pathlib import Path
import torch
from tenfold.shared.accelerator import AcceleratorConfig, make_fabric
from tenfold.shared.logging import get_logger
from tenfold.shared.runs import Run, RunKey
from tenfold.shared.seeding import seed_everything

fabric = make_fabric(AcceleratorConfig(device="cpu", devices=int(sys.argv[1])))
fabric.launch()
seed_everything(0)
key = RunKey("coca", "smoke", "two", 0, "MNIST", "small", "CoCa")
run = Run(Path(sys.argv[2]), key, {}, is_writer=fabric.is_global_zero)
get_logger("coca").info("said by one")
network = torch.nn.Linear(2, 1)
model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
with run:
    before = run.resume()
    summed = fabric.all_reduce(torch.tensor(fabric.global_rank + 1.0), reduce_op="sum")
    loss = model(torch.full((4, 2), float(fabric.global_rank))).mean()  # another batch in each process
    fabric.backward(loss)
    optimizer.step()
    run.log(1, loss=float(summed))
    run.save_checkpoint(1, {"epoch": 1})
    fabric.barrier()
    resumed = run.resume()
    result = run.finish({"summed": float(summed)})
report = {"rank": fabric.global_rank, "world": fabric.world_size, "summed": float(summed),
          "weights": network.weight.flatten().tolist(), "before": before, "resumed": resumed, "wrote": bool(result)}
Path(sys.argv[2], f"report-{fabric.global_rank}.json").write_text(json.dumps(report))
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def srun_variables(rank: int, tasks: int = 2) -> dict[str, str]:
    """What srun tells one of its processes on one node."""
    return {
        "SLURM_JOB_ID": "12345",
        "SLURM_JOB_NAME": "reproduce",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
    }


@pytest.fixture
def set_variables(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Sets variables of the environment, and no others of torchrun or SLURM."""

    def of_a_starter(name: str) -> bool:
        return name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")

    def set_them(variables: dict[str, str]) -> None:
        for name in filter(of_a_starter, list(os.environ)):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_them


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All ways of starting two processes, side by side: (folder, what was said, exit status)."""
    script = tmp_path_factory.mktemp("two") / "two.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES))
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    alone: dict[str, str] = {}
    ways = {
        "torchrun": ([*torchrun, f"--master_port={free_port()}", str(script)], 1, [alone]),
        "srun": ([str(script)], 1, [{**srun_variables(rank), **meeting} for rank in (0, 1)]),
        "fabric": ([str(script)], 2, [alone]),
    }
    clean = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    }
    started = {}
    for way, (command, devices, environments) in ways.items():
        folder = tmp_path_factory.mktemp(way)
        processes = [
            subprocess.Popen(
                [sys.executable, *command, str(devices), str(folder)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**clean, **variables, "OMP_NUM_THREADS": "1"},
            )
            for variables in environments
        ]
        started[way] = (folder, processes)
    return {
        way: (
            folder,
            "".join(process.communicate(timeout=300)[0] for process in processes),
            max(process.returncode for process in processes),
        )
        for way, (folder, processes) in started.items()
    }


@pytest.mark.parametrize("way", ["torchrun", "srun", "fabric"])
class TestTwoProcesses:
    """torchrun and srun are given no --devices: the default joins what they started."""

    @pytest.fixture
    def reports(self, two_processes: dict[str, Any], way: str) -> list[dict[str, Any]]:
        folder, said, status = two_processes[way]
        assert status == 0, said
        return [json.loads((folder / f"report-{rank}.json").read_text()) for rank in (0, 1)]

    def test_they_are_ranks_of_one_world_and_exchange_numbers(self, reports: list[dict[str, Any]]) -> None:
        assert [(r["rank"], r["world"], r["summed"]) for r in reports] == [(0, 2, 3.0), (1, 2, 3.0)]

    def test_gradients_are_averaged(self, reports: list[dict[str, Any]]) -> None:
        assert reports[0]["weights"] == reports[1]["weights"]
        torch.manual_seed(0)
        start = torch.nn.Linear(2, 1).weight.detach().flatten()
        assert reports[0]["weights"] == pytest.approx((start - 0.1 * 0.5).tolist())

    def test_only_the_first_writes_and_both_resume(
        self, reports: list[dict[str, Any]], two_processes: dict[str, Any], way: str
    ) -> None:
        assert [report["wrote"] for report in reports] == [True, False]
        assert [report["before"] for report in reports] == [None, None]
        assert [report["resumed"] for report in reports] == [{"epoch": 1}, {"epoch": 1}]
        directory = two_processes[way][0] / "coca/smoke/two-seed0"
        assert (directory / "metrics.jsonl").read_text() == '{"step": 1, "loss": 3.0}\n'
        assert json.loads((directory / "result.json").read_text())["metrics"] == {"summed": 3.0}

    def test_things_are_said_once(
        self, reports: list[dict[str, Any]], two_processes: dict[str, Any], way: str
    ) -> None:
        assert two_processes[way][1].count("said by one") == 1
        assert "Traceback" not in two_processes[way][1]


class TestOneProcess:
    def test_a_model_trains_on_the_cpu(self) -> None:
        fabric = make_fabric(AcceleratorConfig(device="cpu"))
        fabric.launch()
        assert (fabric.world_size, fabric.is_global_zero, fabric.device.type) == (1, True, "cpu")
        network = torch.nn.Linear(3, 1)
        model, optimizer = fabric.setup(network, torch.optim.SGD(network.parameters(), lr=0.1))
        inputs = torch.ones(4, 3)
        losses = []
        for _ in range(3):
            loss = model(inputs).square().mean()
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[2] < losses[1] < losses[0]

    def test_bf16_autocast_can_be_had_on_the_cpu(self) -> None:
        fabric = make_fabric(AcceleratorConfig(device="cpu", precision="bf16-mixed"))
        with fabric.autocast():
            assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16

    @pytest.mark.gpu
    def test_a_model_trains_on_cuda_in_the_precision_it_suits(self) -> None:
        fabric = make_fabric(AcceleratorConfig())
        fabric.launch()
        assert fabric.device.type == "cuda"
        network = torch.nn.Conv2d(3, 4, 3)
        model, optimizer = fabric.setup(
            channels_last(network.to(fabric.device), fabric.device),
            torch.optim.SGD(network.parameters(), 0.1),
        )
        assert network.weight.is_contiguous(memory_format=torch.channels_last)
        loss = model(torch.ones(2, 3, 8, 8, device=fabric.device)).square().mean()
        before = network.weight.detach().clone()
        fabric.backward(loss)
        optimizer.step()
        assert not torch.equal(network.weight, before)

    @pytest.mark.gpu
    def test_float32_products_use_tf32_where_there_are_tensor_cores_for_it(self) -> None:
        make_fabric(AcceleratorConfig(device="cuda"))
        if torch.cuda.get_device_capability()[0] >= 8:
            assert torch.get_float32_matmul_precision() == "high"

    @pytest.mark.gpu
    def test_more_gpus_than_there_are_is_refused(self) -> None:
        with pytest.raises(TenfoldError, match="lower --devices"):
            make_fabric(AcceleratorConfig(device="cuda", devices=torch.cuda.device_count() + 1))


class TestChoices:
    @pytest.mark.parametrize(("cuda", "mps", "chosen"), [(1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
    def test_auto_takes_a_gpu_where_there_is_one(
        self, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: int, chosen: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
        assert resolve_device("auto") == chosen
        assert resolve_device("cpu") == "cpu"

    @pytest.mark.parametrize("device", ["cuda", "mps", "tpu"])
    def test_a_device_that_is_not_here_is_refused(self, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        with pytest.raises(TenfoldError, match=f"no device '{device}'; use --device auto or --device cpu"):
            make_fabric(AcceleratorConfig(device=device))  # type: ignore[arg-type]

    @pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16-mixed"), (False, "16-mixed")])
    def test_auto_precision_on_a_gpu_is_the_one_it_computes(
        self, monkeypatch: pytest.MonkeyPatch, bf16: bool, precision: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
        assert resolve_precision("auto", "cuda") == precision

    @pytest.mark.parametrize("device", ["cpu", "mps"])
    def test_auto_precision_elsewhere_is_full(self, device: str) -> None:
        assert resolve_precision("auto", device) == "32-true"

    def test_a_named_precision_is_kept(self) -> None:
        assert resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
        assert resolve_precision("16-mixed", "cuda") == "16-mixed"

    def test_fp16_on_the_cpu_is_refused_rather_than_replaced(self) -> None:
        with pytest.raises(TenfoldError, match="fp16 needs a GPU"):
            make_fabric(AcceleratorConfig(device="cpu", precision="16-mixed"))

    @pytest.mark.parametrize(("devices", "nodes"), [(0, 1), (-1, 1), (1, 0)])
    def test_less_than_one_process_is_refused(self, devices: int, nodes: int) -> None:
        with pytest.raises(TenfoldError, match="at least 1"):
            make_fabric(AcceleratorConfig(device="cpu", devices=devices, nodes=nodes))

    @pytest.mark.parametrize("asked", [(1, 1), (2, 3)])
    def test_torchruns_processes_are_joined(
        self, monkeypatch: pytest.MonkeyPatch, asked: tuple[int, int]
    ) -> None:
        for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "6"), ("LOCAL_WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        assert resolve_processes(*asked) == (2, 3)

    def test_another_number_than_torchruns_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        with pytest.raises(TenfoldError, match="torchrun started 2 processes on 1 nodes, but --devices 4"):
            resolve_processes(4, 1)


class TestSlurm:
    @pytest.mark.parametrize("asked", [(1, 1), (4, 2)])
    def test_sruns_processes_are_joined(self, set_variables: SetVariables, asked: tuple[int, int]) -> None:
        set_variables({**srun_variables(5), **ON_TWO_NODES})
        assert resolve_processes(*asked) == (4, 2)

    def test_another_number_than_sruns_is_refused(self, set_variables: SetVariables) -> None:
        set_variables({**srun_variables(5), **ON_TWO_NODES})
        with pytest.raises(TenfoldError, match="srun started 4 processes on 2 nodes, but --devices 2"):
            resolve_processes(2, 1)

    def test_nodes_with_different_numbers_of_processes_are_refused(self, set_variables: SetVariables) -> None:
        set_variables({**srun_variables(0), **ON_TWO_NODES, "SLURM_NTASKS": "6"})
        with pytest.raises(TenfoldError, match="srun started 6 processes, which are not 4 on each node"):
            resolve_processes(1, 1)

    def test_processes_of_unknown_nodes_are_refused_in_one_sentence(
        self, set_variables: SetVariables
    ) -> None:
        variables = srun_variables(0)
        del variables["SLURM_NTASKS_PER_NODE"]
        set_variables(variables)
        with pytest.raises(TenfoldError, match="--ntasks-per-node"):
            make_fabric(AcceleratorConfig(device="cpu"))

    @pytest.mark.parametrize(
        "differences",
        [
            {"SLURM_JOB_NAME": "bash"},
            {"SLURM_JOB_NAME": "interactive"},
            {"SLURM_STEP_ID": None},
            {"SLURM_STEP_ID": None, "SLURM_PROCID": None, "SLURM_LOCALID": None, "SLURM_NODEID": None},
            {"SLURM_STEP_ID": None, "SLURM_NTASKS_PER_NODE": None},
            {"SLURM_NTASKS": "1"},
        ],
        ids=[
            "srun of a shell",
            "interactive step",
            "batch script",
            "salloc",
            "ntasks alone",
            "one task of 4",
        ],
    )
    def test_one_process_of_an_allocation_for_several_works_alone(
        self, set_variables: SetVariables, differences: dict[str, str | None]
    ) -> None:
        variables = {**srun_variables(0, tasks=4), **differences}
        set_variables({name: value for name, value in variables.items() if value is not None})
        fabric = make_fabric(AcceleratorConfig(device="cpu"))
        fabric.launch()
        assert (fabric.world_size, fabric.global_rank) == (1, 0)

    def test_torchrun_inside_an_allocation_counts(self, set_variables: SetVariables) -> None:
        torchrun = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        set_variables({**srun_variables(0, tasks=8), **torchrun})
        assert resolve_processes(1, 1) == (2, 1)


class TestLaunching:
    def test_a_process_has_one_launched_fabric_for_a_config(self) -> None:
        fabric = launch_fabric(AcceleratorConfig(device="cpu"))
        assert fabric._launched
        assert launch_fabric(AcceleratorConfig(device="cpu")) is fabric
        assert launch_fabric(AcceleratorConfig(device="cpu", precision="bf16-mixed")) is not fabric


class TestFusing:
    def test_a_clipped_optimiser_is_fused_where_no_loss_is_scaled(self) -> None:
        assert fuses_clipped(make_fabric(AcceleratorConfig(device="cpu")))
        assert fuses_clipped(make_fabric(AcceleratorConfig(device="cpu", precision="bf16-mixed")))

    @pytest.mark.parametrize("fused", [True, False])
    def test_fabric_clips_scaled_gradients_of_optimisers_that_are_not_fused(self, fused: bool) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        fabric = Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
        assert not fuses_clipped(fabric)
        network = torch.nn.Linear(2, 1)
        model, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), fused=fused))
        fabric.backward(10 * model(torch.ones(4, 2)).mean())
        if fused:
            with pytest.raises(NotImplementedError):
                fabric.clip_gradients(model, optimizer, max_norm=1.0)
        else:
            fabric.clip_gradients(model, optimizer, max_norm=1.0)
            assert network.weight.grad is not None
            assert network.weight.grad.norm() <= 1.001


class TestModels:
    def test_channels_last_leaves_models_on_the_cpu_alone(self) -> None:
        network = torch.nn.Conv2d(3, 4, 3)
        assert channels_last(network, torch.device("cpu")) is network
        assert network.weight.is_contiguous()

    def test_compiling_is_a_choice(self) -> None:
        network = torch.nn.Linear(2, 2)
        assert maybe_compile(network, enabled=False) is network
        compiled = maybe_compile(network, enabled=True)
        assert compiled is not network
        assert compiled.weight is network.weight


def test_the_configuration_has_a_help_text_for_every_field() -> None:
    source = Path(sys.modules[AcceleratorConfig.__module__].__file__ or "").read_text()
    body = source.split("class AcceleratorConfig:")[1].split("\ndef ")[0]
    for field in AcceleratorConfig.__dataclass_fields__:
        after = body.split(f"\n    {field}: ")[1].split("\n")[1]
        assert after.strip().startswith('"""')
