"""Several processes: the make target, every paper's smoke profile on two, and which test covers which loop."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPERS = ("coca", "pmt-iqa", "drum-gpt", "emo", "doorping", "tinymim", "reft", "cmt")
"""Those whose suites two processes share; gfkd runs by make below, and reliant refuses."""
LOOPS = {
    "cmt/training.py": "cmt/tests/test_cmt_training.py::test_gradients_of_two_processes_are_the_mean_of_their_halves",
    "coca/methods/base.py": "coca/tests/test_coca_training.py::test_two_processes_learn_what_one_does",
    "doorping/condensation.py": (
        "doorping/tests/test_doorping_condensation.py::test_two_processes_condense_to_what_one_does"
    ),
    "doorping/unrolled_distillation.py": (
        "doorping/tests/test_doorping_unrolled.py::test_two_processes_distil_what_one_does"
    ),
    "drum_gpt/training.py": "drum-gpt/tests/test_drum_gpt_training.py::test_two_processes_learn_what_one_does",
    "emo/training.py": "emo/tests/test_emo_training.py::test_two_processes_learn_what_one_does",
    "emo/ade20k.py": "emo/tests/test_emo_dense.py::test_two_processes_learn_to_segment_what_one_does",
    "emo/detection.py": "emo/tests/test_emo_dense.py::test_two_processes_train_one_detector",
    "gfkd/training.py": "gfkd/tests/test_gfkd_training.py::test_two_processes_end_with_the_weights_of_one",
    "pmt_iqa/training.py": "pmt-iqa/tests/test_pmt_iqa_training.py::test_two_processes_learn_what_one_does",
    "reft/training.py": "reft/tests/test_reft_training.py::test_two_processes_learn_what_one_does",
    "reliant/training.py": (
        "reliant/tests/test_reliant_sampling.py::test_two_processes_share_the_nodes_and_keep_one_network"
    ),
    "reliant/knowledge.py": (
        "reliant/tests/test_reliant_sampling.py::test_two_processes_share_the_nodes_and_keep_one_network"
    ),
    "tinymim/pretraining.py": "tinymim/tests/test_tinymim_training.py::test_two_processes_learn_what_one_does",
    "tinymim/finetuning.py": "tinymim/tests/test_tinymim_training.py::test_two_processes_learn_what_one_does",
    "tinymim/segmentation_training.py": (
        "tinymim/tests/test_tinymim_ade20k.py::test_two_processes_learn_what_one_does"
    ),
}
"""File below ``src/tenfold`` with a loop that several processes share, and its test."""


# -- the make target -----------------------------------------------------------------------------------


def planned(*arguments: str) -> str:
    """The last line that make would run."""
    done = subprocess.run(
        ["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip().splitlines()[-1]


def test_one_process_needs_no_torchrun() -> None:
    assert (
        planned("reproduce-pmt-iqa").split("--no-sync ")[1].startswith("tenfold-pmt-iqa reproduce --profile")
    )
    assert planned("reproduce-gfkd") == planned("reproduce-gfkd", "DEVICES=1", "NODES=1")


def test_several_gpus_of_one_node_are_torchruns() -> None:
    command = planned("reproduce-pmt-iqa", "DEVICES=4", "PROFILE=h100", "SEEDS=0 1", "ARGS=--force")
    assert command.split("--no-sync ")[1] == (
        "torchrun --nproc-per-node 4 --standalone -m tenfold.pmt_iqa reproduce --profile h100 --seeds 0 1 --force"
    )


@pytest.mark.parametrize("devices", ["1", "4"])
def test_several_nodes_meet_at_a_master(devices: str) -> None:
    command = planned("reproduce-gfkd", f"DEVICES={devices}", "NODES=2", "MASTER=first:29400")
    meeting = "--nnodes 2 --rdzv-backend c10d --rdzv-endpoint first:29400 --rdzv-id tenfold"
    assert f"torchrun --nproc-per-node {devices} {meeting} -m tenfold.gfkd reproduce" in command
    other = planned("reproduce-gfkd", "NODES=2", "MASTER=first:29400", "RENDEZVOUS_ID=mine")
    assert "--rdzv-id mine" in other


def test_several_nodes_without_a_master_are_refused_in_one_sentence() -> None:
    done = subprocess.run(
        ["make", "reproduce-gfkd", "NODES=2"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "say where 2 nodes meet: MASTER=host:port" in done.stderr


# -- every paper ---------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """One thread each, and the programs of this Python first."""
    ours = str(Path(sys.executable).parent)
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": os.pathsep.join((ours, os.environ["PATH"]))}


def check_records(folder: Path) -> None:
    """All runs are finished, and nothing was logged twice."""
    records = list(folder.rglob("config.json"))
    assert records
    for record in records:
        assert json.loads(record.with_name("result.json").read_text())["status"] == "finished", (
            record.parent.name
        )
        if (log := record.with_name("metrics.jsonl")).exists():
            lines = Counter(log.read_text().splitlines())
            assert set(lines.values()) <= {1}, f"{record.parent.name} was written by several processes"


def test_make_reproduces_a_paper_in_two_processes(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *("make", "reproduce-gfkd", "DEVICES=2", "PROFILE=smoke", "SEEDS=0", "RUN="),
            f"ARGS=--device cpu --output {tmp_path}",
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_records(tmp_path / "gfkd")
    assert "MEMBER: 1/2" in done.stdout + done.stderr
    assert done.stdout.count("gcn3_32-gcn2_32 smoke    │ GFKD     │ test_accuracy") == 1, (
        "a table for each process"
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of all papers' runs by two processes, and what was said."""
    folder = tmp_path_factory.mktemp("together")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(Path(__file__).parent / "distributed_reproduce.py"), str(folder), *PAPERS, "reliant"),
        ],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


@pytest.mark.parametrize("paper", PAPERS)
def test_two_processes_reproduce_a_paper_and_leave_one_set_of_records(
    together: tuple[Path, str], paper: str
) -> None:
    folder, _ = together
    statuses = [json.loads((folder / f"statuses-{rank}.json").read_text())[paper] for rank in (0, 1)]
    assert statuses == [0, 0]
    check_records(folder / paper)


def test_whole_graphs_are_refused_before_anything_is_written(together: tuple[Path, str]) -> None:
    folder, said = together
    statuses = [json.loads((folder / f"statuses-{rank}.json").read_text())["reliant"] for rank in (0, 1)]
    assert statuses == [2, 2]
    assert "share the runs among processes with --workers" in said
    assert not (folder / "reliant").exists()


# -- SLURM ---------------------------------------------------------------------------------------------


def test_the_batch_script_starts_one_process_for_each_gpu_and_passes_arguments_on(tmp_path: Path) -> None:
    script = ROOT / "shared" / "examples" / "reproduce.sbatch"
    wanted = dict(
        re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert (wanted["nodes"], wanted["ntasks-per-node"], wanted["gpus-per-node"]) == ("2", "4", "4")
    assert wanted["job-name"] not in ("bash", "interactive"), "Fabric takes these for a shell"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    variables = {
        **environment(),
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "SLURM_CPUS_PER_TASK": "8",
    }
    command = ["bash", str(script), "pmt-iqa", "livec", "--data-root", "a folder"]
    done = subprocess.run(
        command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [
        *("--kill-on-bad-exit=1", "--cpus-per-task=8", "tenfold-pmt-iqa", "reproduce"),
        *("--profile", "livec", "--data-root", "a folder"),
    ]
    bare = subprocess.run(
        command[:2], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    assert bare.returncode != 0 and "say which paper" in bare.stderr


# -- every loop ----------------------------------------------------------------------------------------


def shared_loops() -> set[str]:
    """Files of the papers that compute gradients which processes average: by Fabric's DDP, or by hand."""
    found = set()
    for package in (ROOT / "packages").iterdir():
        source = package / "src" / "tenfold"
        for path in source.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            has_gradients = ".backward(" in text or "autograd.grad" in text
            if has_gradients and ("fabric.setup(" in text or ".all_reduce(" in text):
                found.add(path.relative_to(source).as_posix())
    return found


def test_every_loop_that_processes_share_has_a_test_on_two() -> None:
    assert shared_loops() == set(LOOPS)
    for loop, node in LOOPS.items():
        file, name = node.split("::")
        source = (ROOT / "packages" / file).read_text(encoding="utf-8")
        assert f"def {name}(" in source, f"{loop}: no test {name} in {file}"
        fixtures = (ROOT / "packages" / file).with_name("conftest.py").read_text(encoding="utf-8")
        assert re.search(r"distributed_\w+\.py|\nif __name__ ==", source + fixtures), (
            f"{loop}: {file} starts no second process"
        )
