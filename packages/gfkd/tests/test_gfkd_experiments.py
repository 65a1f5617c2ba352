"""The suites: their hyperparameters, their records, and that a kill does no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from tenfold.gfkd.checkpoints import load_model, read_fake_graphs
from tenfold.gfkd.config import GenerationConfig, TrainingConfig
from tenfold.gfkd.experiments import GenerationJob, Suite, TeacherJob, load_split, reproduce, train_teacher
from tenfold.gfkd.generation import GraphGenerator
from tenfold.gfkd.generation_runs import generate
from tenfold.gfkd.graphs import GraphSet
from tenfold.gfkd.models import build_model
from tenfold.gfkd.profiles import PROFILES, Profile
from tenfold.gfkd.training import fit, teacher_and_loss
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.runs import load_checkpoint

ALL_SETS = ("mutag", "ptc", "proteins", "imdb-b", "collab", "reddit-b")
SIX_PAIRS_AND_CROSS = 8
# data sets, teacher epochs, iterations, decay every, student epochs, seeds, pairs
PAPER = ((400, 2500, 1000, 400), 5, SIX_PAIRS_AND_CROSS)
EXPECTED: dict[str, tuple[tuple[str, ...], tuple[int, int, int, int], int, int]] = {
    "quick": (("mutag",), (300, 1500, 700, 300), 3, 1),
    "mutag-released": (("mutag",), (300, 1500, 700, 300), 5, 2),
    "h100": (ALL_SETS[:4], (400, 2500, 1000, 400), 5, 4),
    **{name: ((name,), *PAPER) for name in ALL_SETS},
    "gfkd-bio": (ALL_SETS[:3], *PAPER),
    "gfkd-social": (ALL_SETS[3:], *PAPER),
    "mutag-ablation": (("mutag",), PAPER[0], 5, 1),
    "mutag-graph-count": (("mutag",), PAPER[0], 5, 1),
}
# features, fewest and most nodes of a fake graph, structure learning rate, training graphs
SETS: dict[str, tuple[str, int, int, float, int]] = {
    "mutag": ("one-hot", 10, 29, 1.0, 131),
    "ptc": ("one-hot", 13, 38, 1.0, 240),
    "proteins": ("one-hot", 20, 58, 5.0, 779),
    "imdb-b": ("degree", 10, 29, 1.0, 700),
    "collab": ("degree", 38, 111, 5.0, 3500),
    "reddit-b": ("degree", 215, 644, 5.0, 1400),
}
SCHEMA = Path(__file__).parents[3] / "benchmarks/src/tenfold/benchmarks/schemas/result.schema.json"


def suite_of(name: str, profile: Profile, output: Path, **options: Any) -> Suite:
    options = {"checkpoint_seconds": 0.0, "accelerator": AcceleratorConfig(device="cpu"), **options}
    return Suite(name, profile, output, **options)


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(root.rglob("result.json"))}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the smoke profile, done without disturbance."""
    root = tmp_path_factory.mktemp("smoke")
    reproduce(suite_of("smoke", PROFILES["smoke"], root, checkpoint_seconds=3600.0))
    return root


def test_smoke_leaves_a_valid_record_of_every_run(smoke: Path) -> None:
    found = records(smoke)
    # one teacher; three methods of generation and five of training, with two seeds each
    assert len(found) == 1 + 2 * (3 + 5)
    schema = json.loads(SCHEMA.read_text())
    for name, record in found.items():
        jsonschema.validate(record, schema)
        assert record["status"] == "finished" and record["profile"] == "smoke", name
        folder = smoke / "gfkd" / "smoke" / name
        assert not (folder / "checkpoint.pt").exists()
        assert (
            folder / ("graphs.pt" if name.endswith(("graphs-seed0", "graphs-seed1")) else "model.pt")
        ).exists()
        for figure in record["figures"]:
            assert (folder / figure["file"]).stat().st_size > 1000
    for method in ("gfkd", "deepinvg"):
        figures = {figure["file"] for figure in found[f"mutag-gcn3_32-{method}-graphs-seed0"]["figures"]}
        assert figures == {"figures/fake_graphs.png", "figures/objective.png"}


def test_methods_share_the_random_graphs_they_begin_with(smoke: Path) -> None:
    folder = smoke / "gfkd" / "smoke"
    sets = [
        load_checkpoint(folder / f"mutag-gcn3_32-{m}-graphs-seed1" / "graphs.pt")
        for m in ("randg", "deepinvg")
    ]
    assert torch.equal(sets[0]["edges"], sets[1]["edges"]) and torch.equal(
        sets[0]["labels"], sets[1]["labels"]
    )


def test_finished_runs_are_not_repeated_but_forced_ones_are(smoke: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    results = reproduce(suite_of("smoke", PROFILES["smoke"], smoke))
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == times
    assert len(results) == len(times)
    profile = replace(PROFILES["smoke"], methods=("KD",), seeds=(1,))
    reproduce(suite_of("smoke", profile, smoke, force=True))
    changed = {path.parent.name for path, before in times.items() if path.stat().st_mtime_ns != before}
    assert changed == {"mutag-gcn3_32-teacher-seed0", "mutag-gcn3_32-gcn2_32-kd-seed1"}


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    moment = "mutag-gcn3_32-deepinvg-graphs-seed0"
    arguments = ("-m", "tenfold.gfkd", "reproduce", "--profile", "smoke", "--device", "cpu", "-q")
    command = (*arguments, "--checkpoint-seconds", 0, "--output", tmp_path)
    kill_at(f"gfkd/smoke/{moment}/checkpoint.pt", *command, cwd=tmp_path)
    assert len(records(tmp_path)) < len(records(smoke))

    process = start(*command, cwd=tmp_path)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    assert expected.keys() == found.keys()
    for name, record in found.items():
        assert record["metrics"] == pytest.approx(expected[name]["metrics"], rel=1e-5), name
        for curve, points in record["curves"].items():
            assert points["x"] == expected[name]["curves"][curve]["x"], (name, curve)
            assert points["y"] == pytest.approx(expected[name]["curves"][curve]["y"], rel=1e-5), (name, curve)


class Killed(BaseException):
    """As a signal would, it passes every ``except Exception``."""


CHUNKS = replace(
    PROFILES["smoke"],
    generation=GenerationConfig(num_graphs=8, graphs_per_batch=3, iterations=5),
    seeds=(9,),  # the only one whose graphs would be drawn
)
TEACHER = TeacherJob("mutag", "gcn3_32")


def generated(suite: Suite, *seeds: int) -> dict[int, GraphSet]:
    """The fake graphs of some seeds, made now in one batch unless they are finished."""
    job = GenerationJob("mutag", "gcn3_32", "GFKD", seeds)
    generate(suite, job)
    runs = suite.generation_runs(job)
    return {seed: GraphSet(**load_checkpoint(run.directory / "graphs.pt")) for seed, run in runs.items()}


def generation_records(suite: Suite) -> list[tuple[Any, Any]]:
    found = records(suite.output)
    return [
        (found[f"mutag-gcn3_32-gfkd-graphs-seed{seed}"][part])
        for seed in (0, 1)
        for part in ("metrics", "curves")
    ]


@pytest.mark.parametrize("steps", [0, 4, 6, 14])
def test_generation_in_chunks_goes_on_after_a_kill(steps: int, tmp_path: Path) -> None:
    undisturbed, disturbed = (suite_of("test", CHUNKS, tmp_path / name) for name in "ab")
    for suite in (undisturbed, disturbed):
        train_teacher(suite, TEACHER)
    expected = generated(undisturbed, 0, 1)
    step, done = GraphGenerator.step, 0

    def dying_step(self: GraphGenerator) -> torch.Tensor:
        nonlocal done
        done += 1
        if done > steps:
            raise Killed
        return step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphGenerator, "step", dying_step)
        with pytest.raises(Killed):
            generated(disturbed, 0, 1)
    found = generated(disturbed, 0, 1)
    for seed in (0, 1):
        assert len(found[seed]) == 8
        for field, value in expected[seed].state_dict().items():
            other = found[seed].state_dict()[field]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert generation_records(disturbed) == generation_records(undisturbed)


def test_seeds_that_begin_later_give_what_they_give_together(tmp_path: Path) -> None:
    together, apart = (suite_of("test", CHUNKS, tmp_path / name) for name in "ab")
    for suite in (together, apart):
        train_teacher(suite, TEACHER)
    expected = generated(together, 0, 1, 2)
    generated(apart, 1)
    found = generated(apart, 0, 1, 2)
    for seed in (0, 1, 2):
        assert torch.equal(found[seed].edges, expected[seed].edges)
        assert torch.equal(found[seed].nodes, expected[seed].nodes)


def test_lost_graphs_are_made_again(tmp_path: Path) -> None:
    suite = suite_of("test", CHUNKS, tmp_path)
    train_teacher(suite, TEACHER)
    before = generated(suite, 0)[0]
    (lost,) = tmp_path.rglob("graphs.pt")
    lost.unlink()
    assert torch.equal(generated(suite, 0)[0].edges, before.edges)


@pytest.mark.parametrize("name", EXPECTED)
def test_hyperparameters_are_the_specifications(name: str) -> None:
    profile = PROFILES[name]
    assert profile.generation.num_graphs is None  # as many as training graphs
    datasets, (teacher_epochs, iterations, decay_every, student_epochs), seeds, pairs = EXPECTED[name]
    assert profile.datasets == datasets and len(profile.seeds) == seeds and len(profile.pairs) == pairs
    assert profile.teacher == TrainingConfig(teacher_epochs, lr=0.01, batch_size=32, shuffle=True)
    assert profile.student == TrainingConfig(
        student_epochs, lr=0.01, batch_size=32, shuffle=False, temperature=2.0
    )
    assert profile.split_seed == 29
    for dataset in datasets:
        features, fewest, most, structure_lr, num_train = SETS[dataset]
        fixed = replace(profile, generation=replace(profile.generation, num_graphs=num_train))
        suite = suite_of(name, fixed, Path())
        for method in profile.all_methods():
            generation = suite.generation(dataset, method)
            if generation is None:
                assert method in ("Labels", "KD")
                continue
            changed = dict(profile.ablations).get(method, {})
            assert generation == GenerationConfig(
                num_graphs=changed.get("num_graphs", num_train),
                min_nodes=fewest,
                max_nodes=most,
                features=features,
                iterations=0 if method == "RandG" else iterations,
                structure_lr=structure_lr,
                feature_lr=0.01,
                lr_decay=0.1,
                lr_decay_every=decay_every,
                bn_weight=changed.get("bn_weight", 0.01),
                onehot_weight=changed.get("onehot_weight", 1e-6),
                estimator="arm",
                keep="best-pair",
                graphs_per_batch={"collab": 500, "reddit-b": 50}.get(dataset),
            )


def test_every_profile_is_in_the_table() -> None:
    assert set(PROFILES) == {*EXPECTED, "smoke"}
    names = {name for pair in PROFILES["gfkd-bio"].pairs for name in pair}
    assert names == {f"{kind}{size}" for kind in ("gcn", "gin") for size in ("5_64", "5_32", "3_64", "3_32")}
    assert [name for name, _ in PROFILES["mutag-ablation"].ablations] == [
        "GFKD without R_bn",
        "GFKD without R_oh",
        "GFKD without both",
    ]


def test_as_many_graphs_are_made_as_there_are_training_graphs() -> None:
    suite = suite_of("gfkd-bio", PROFILES["gfkd-bio"], Path())
    made = {name: suite.generation(name, "GFKD") for name in ("mutag", "ptc", "proteins", "imdb-b")}
    assert {name: config and config.num_graphs for name, config in made.items()} == {
        name: SETS[name][4] for name in made
    }


def write_small_collection(root: Path, name: str, classes: int) -> None:
    """A random data set in the layout of the TUDataset collection: 13 undirected graphs of 20 nodes."""
    raw = root / "gfkd" / "tudataset" / name / "raw"
    raw.mkdir(parents=True)
    made = torch.Generator().manual_seed(0)
    edges: list[str] = []
    for start in range(0, 260, 20):
        chosen = (torch.rand(20, 20, generator=made) < 0.3).triu(1).nonzero() + start + 1
        edges += [f"{a}, {b}" for a, b in chosen.tolist()] + [f"{b}, {a}" for a, b in chosen.tolist()]
    (raw / f"{name}_A.txt").write_text("\n".join(edges) + "\n")
    (raw / f"{name}_graph_indicator.txt").write_text("".join(f"{node // 20 + 1}\n" for node in range(260)))
    (raw / f"{name}_graph_labels.txt").write_text("".join(f"{graph % classes}\n" for graph in range(13)))


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_starts_with_its_last_data_set(name: str, tmp_path: Path) -> None:
    write_small_collection(tmp_path, "COLLAB", 3)
    write_small_collection(tmp_path, "REDDIT-BINARY", 2)
    profile = PROFILES[name]
    shortened = replace(
        profile,
        datasets=("collab",) if name == "gfkd-social" else profile.datasets[-1:],
        pairs=profile.pairs[-1:],
        teacher=replace(profile.teacher, epochs=1),
        student=replace(profile.student, epochs=1),
        generation=replace(profile.generation, iterations=2, num_graphs=2),
        methods=tuple(method for method in profile.methods if method in ("KD", "GFKD")),
        ablations=profile.ablations[:1],
        seeds=profile.seeds[:1],
        students_per_seed=1,
    )
    results = reproduce(
        suite_of(name, shortened, tmp_path / "runs", data_root=tmp_path, checkpoint_seconds=60.0)
    )
    assert all(result["status"] == "finished" for result in results)
    made = [result["metrics"]["final_loss"] for result in results if "final_loss" in result["metrics"]]
    scored = [
        result["metrics"]["test_accuracy"] for result in results if "test_accuracy" in result["metrics"]
    ]
    assert made and None not in made
    assert len(scored) > len(made) and all(0 <= accuracy <= 100 for accuracy in scored)


def test_a_student_learns_from_the_released_graphs(data_root: Path, cpu: Any, make_run: Any) -> None:
    released, split = data_root / "gfkd" / "released", load_split("mutag", 29, None)
    teacher, _ = load_model(released / "gcn5_64_mutag_ckpt_best_29.pth", "gcn5_64")
    graphs = read_fake_graphs(released / "GCN5_64fake_mutag29_1.txt", 7, 2)
    assert len(graphs) == 131
    targets, loss = teacher_and_loss(teacher, graphs, 2.0, "pyg")
    with make_run("student", checkpoint_seconds=3600.0) as run:
        config = TrainingConfig(epochs=100)
        _, fitted = fit(
            lambda: build_model("gcn3_32", 7, 2), graphs, targets, loss, split.test, config, 6, cpu, run
        )
    assert fitted.best_accuracy > 68.4  # the majority class; the authors' code reached 78.9 in 300 epochs
