"""The runs of a suite: train methods, judge them with failing sensors, compare. A stage's jobs can run in any order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from tenfold.cmt.checkpoints import load_image_pretraining
from tenfold.cmt.comparison import run_comparison, worse_of
from tenfold.cmt.dataset import TestSamples, TrainingSamples
from tenfold.cmt.decoding import Detections
from tenfold.cmt.detector import Cmt
from tenfold.cmt.evaluation import Scores
from tenfold.cmt.figures import draw_detections, draw_precision_recall
from tenfold.cmt.judging import BATCH_SIZE, as_submission, detect_split, detections_per_second, score
from tenfold.cmt.network_files import StoredNetwork, load_network
from tenfold.cmt.object_database import ObjectDatabase, build_database, is_collected
from tenfold.cmt.profiles import PROFILES
from tenfold.cmt.sensor_conditions import CONDITIONS
from tenfold.cmt.suite_runs import PAPER, WORSE, ConditionJob, Job, Suite, TrainJob, condition_title
from tenfold.cmt.suites import Method
from tenfold.cmt.training import fade_step, train_detector
from tenfold.cmt.training_batches import batch_order
from tenfold.shared.logging import TenfoldError, get_logger, progress
from tenfold.shared.parallel import JobPool, available_cores
from tenfold.shared.runs import Run
from tenfold.shared.seeding import seed_everything

logger = get_logger("cmt")

MOST_COLLECTORS = 8
"""Processes that cut out objects; each holds whole clouds."""
DRAWN = 2
"""Samples that are drawn of what a method finds with all its sensors."""


def reproduce(suite: Suite, workers: int | None = 1, quiet: bool = False) -> list[dict[str, Any]]:
    """Do every run of the suite that is not finished yet.

    Args:
        suite: the profile and where its runs are.
        workers: processes that share the runs; None is one for each CPU core, eight at the most, and one on a GPU.
        quiet: whether workers keep silent.

    Returns:
        The results of all runs, finished before or now.
    """
    on_cpu = suite.fabric.device.type == "cpu"
    if on_cpu:
        torch.set_num_threads(1)
    if suite.fabric.world_size > 1:
        workers = 1
    workers = workers or (min(8, available_cores()) if on_cpu else 1)
    stages = suite.jobs()
    if suite.force and suite.fabric.is_global_zero:
        for stage in stages:
            for job in stage:
                suite.run(job).clear()
    if suite.fabric.world_size > 1:
        check_collected(suite)
    if suite.fabric.is_global_zero:  # read tables once, and miss data before anything is computed
        prepare_data(suite)
    suite.fabric.barrier()
    with JobPool(workers, quiet, "tenfold.cmt.experiments") as pool:
        for stage in stages:
            unfinished = [job for job in stage if not suite.run(job).is_finished]
            suite.fabric.barrier()
            done = pool.run(partial(do, suite), unfinished)
            for _ in progress(done, f"{PAPER} {suite.name}", total=len(unfinished)):
                suite.fabric.barrier()
    return [suite.run(job).result or {} for stage in stages for job in stage]


def prepare_data(suite: Suite) -> None:
    """All that runs need, made where it is missing.

    Raises:
        TenfoldError: data or first weights are missing.
    """
    for method in suite.profile.methods:
        network = method.network
        if network.reads_images and method.train.image_backbone_lr < 1 and suite.image_weights is None:
            raise TenfoldError(
                f"{method.name} needs pretrained weights in its image backbone: give --image-weights FILE "
                "(fcos3d_vovnet_imgbackbone-remapped.pth for V-99, nuim_r50.pth for ResNet-50), or train it from "
                "random weights at a rate that is not below the others' (image_backbone_lr 1)"
            )
    collect_data(suite)


def collect_data(suite: Suite) -> None:
    """Scenes, indices and the database of objects, where they are missing."""
    _ = suite.train_index, suite.test_index
    for method in suite.profile.methods:
        open_database(suite, method)


def check_collected(suite: Suite) -> None:
    """Many processes do not wait for hours while one collects objects.

    Raises:
        TenfoldError: objects are to be pasted and have not been collected.
    """
    missing = suite.fabric.is_global_zero and not all(
        is_collected(suite.train_index, suite.profile.data.sweeps, method.network.reads_images, suite.objects)
        for method in suite.profile.methods
        if method.augment.ground_truth_sampling
    )
    if suite.fabric.broadcast(missing):
        profile = suite.name if suite.name in PROFILES else "NAME of one with the same data"
        raise TenfoldError(
            f"collect the objects to paste first: tenfold-cmt prepare --profile {profile}, with the same --output "
            "and --data-root"
        )


def open_database(suite: Suite, method: Method) -> ObjectDatabase | None:
    """Objects to paste, collected from the training split once; None for a method that pastes none."""
    if not method.augment.ground_truth_sampling:
        return None
    index, sweeps = suite.train_index, suite.profile.data.sweeps
    workers = min(MOST_COLLECTORS, available_cores())
    return build_database(index, index.root, sweeps, method.network.reads_images, suite.objects, workers)


def do(suite: Suite, job: Job) -> None:
    """Do one job."""
    with denormals_flushed(suite.fabric.device.type == "cpu"):
        if isinstance(job, TrainJob):
            train_method(suite, job)
        elif isinstance(job, ConditionJob):
            judge_condition(suite, job)
        elif suite.fabric.is_global_zero:
            run_comparison(suite, job)


@contextmanager
def denormals_flushed(enabled: bool) -> Iterator[None]:
    """Weights of attention fade into denormal numbers, with which CPUs compute many times slower: take them for 0."""
    if enabled:
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if enabled:
            torch.set_flush_denormal(False)


def train_method(suite: Suite, job: TrainJob) -> None:
    """Train a network, judge it with all its sensors, keep it and draw what it finds."""
    method, fabric, data = suite.method(job.method), suite.fabric, suite.profile.data
    with suite.run(job) as run:
        seed_everything(job.seed)
        network = Cmt(method.network)
        if suite.image_weights is not None and method.network.reads_images:
            report = load_image_pretraining(network.img_backbone, suite.image_weights)
            logger.info("image backbone: %d tensors loaded, %d ignored", report.loaded, report.ignored)
        index = suite.train_index
        order = batch_order(index, data, method.train.batch_size, job.seed)
        samples = TrainingSamples(
            index.root,
            index,
            method.network,
            data,
            method.augment,
            job.seed,
            open_database(suite, method),
            fade_step(method.train, order.steps_per_epoch),
        )
        trained = train_detector(
            network, samples, order, method.train, method.losses, fabric, run, suite.accelerator.compile
        )
        network.to(fabric.device)
        found, tested = detect_condition(suite, network, "both")
        run.save_artifact("model.pt", StoredNetwork(network, data, suite.profile.scenes).content())
        if not fabric.is_global_zero:
            return
        scores = score(tested, as_submission(tested, found))
        if job.seed == suite.profile.seeds[0]:
            draw_findings(run, tested, found, scores, method.name, DRAWN)
        logger.info("%s: %s", run.directory.name, shown(scores))
        metrics = {**scores.metrics(), "share of mAP": 100.0, "share of NDS": 100.0}
        if fabric.device.type == "cuda":
            metrics["FPS"] = detections_per_second(network, tested, fabric)
        run.finish({**metrics, **trained.losses}, trained.samples_per_second, "samples/s")


def detect_condition(
    suite: Suite, network: Cmt, condition: str, batch_size: int = BATCH_SIZE
) -> tuple[dict[str, Detections], TestSamples]:
    """What a network finds in the test split under a condition."""
    index = suite.test_index
    samples = TestSamples(index.root, index, network.network, suite.profile.data, CONDITIONS[condition])
    return detect_split(network, samples, suite.fabric, batch_size), samples


def judge_condition(suite: Suite, job: ConditionJob) -> None:
    """Judge a trained network with failing sensors."""
    trained = suite.run(TrainJob(job.method, job.seed))
    whole = (trained.result or {"metrics": {}})["metrics"]
    with suite.run(job) as run:
        if job.condition == WORSE:
            run.finish(worse_of(suite, job))
            return
        network = load_network(trained.directory / "model.pt").network.to(suite.fabric.device)
        found, tested = detect_condition(suite, network, job.condition)
        if not suite.fabric.is_global_zero:
            return
        scores = score(tested, as_submission(tested, found))
        if job.seed == suite.profile.seeds[0]:
            draw_findings(run, tested, found, scores, f"{job.method}, {condition_title(job.condition)}", 1)
        logger.info("%s: %s", run.directory.name, shown(scores))
        run.finish({**scores.metrics(), **shares(scores.metrics(), whole)})


def shares(metrics: dict[str, float], whole: dict[str, float]) -> dict[str, float]:
    """How much of mAP and NDS is left, in per cent of those with all sensors; of nothing, 0."""
    return {
        f"share of {name}": 100 * metrics[name] / whole[name] if whole[name] > 0 else 0.0
        for name in ("mAP", "NDS")
    }


def shown(scores: Scores) -> str:
    """Two numbers for the log."""
    return f"mAP {100 * scores.mean_ap:.1f}, NDS {100 * scores.detection_score:.1f}"


def draw_findings(
    run: Run, samples: TestSamples, found: dict[str, Detections], scores: Scores, title: str, drawn: int
) -> None:
    """Boxes in cameras and from above beside the truth, of samples evenly over the split, and precision over recall."""
    step = max(1, len(samples.index) // drawn)
    network = samples.network
    for number, place in enumerate(range(0, step * drawn, step)[: len(samples.index)]):
        keyframe = samples.index.keyframes[place]
        sample, seen = samples.read(place), keyframe.visible
        with run.figure(
            f"sample-{number}.png", f"{title}: boxes in the cameras, and from above beside the truth"
        ) as path:
            draw_detections(
                path,
                sample.images,
                sample.lidar2image,
                sample.points,
                keyframe.boxes[seen],
                keyframe.labels[seen],
                found[keyframe.token],
                title,
                network.lidar.point_range,
            )
    with run.figure("precision-recall.png", f"{title}: precision over recall") as path:
        draw_precision_recall(path, {title: scores.mean_curves()}, title)
