"""Command line: ``tenfold-tinymim reproduce | pretrain | finetune | evaluate | probe | robustness | export``."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tenfold.shared.accelerator import AcceleratorConfig, launch_fabric
from tenfold.shared.comparison import load_reported, print_comparison
from tenfold.shared.logging import TenfoldError, errors_in_one_line, get_logger, set_quiet
from tenfold.shared.runs import Run, RunKey, config_hash, plain, save_atomically
from tenfold.tinymim.checkpoints import (
    load_file,
    stored_shape,
    timm_model,
    unwrapped,
)
from tenfold.tinymim.config import DataConfig, DatasetName, FinetuneConfig, NetworkConfig, PretrainConfig
from tenfold.tinymim.evaluation import evaluate_classifier
from tenfold.tinymim.experiments import (
    MAIN_METRICS,
    PAPER,
    Suite,
    artifact,
    file_digest,
    finish_pretraining,
    reproduce,
)
from tenfold.tinymim.network_files import check_same_outputs, load_classifier, load_network
from tenfold.tinymim.pretraining import trained_weights
from tenfold.tinymim.profiles import PROFILES, SEGMENTATION_PROFILES
from tenfold.tinymim.robustness import SetName, evaluate_robustness
from tenfold.tinymim.suites import Pretraining, Profile, SegmentationProfile
from tenfold.tinymim.targets import TargetConfig
from tenfold.tinymim.teacher_files import AnyTeacher, load_student_as_teacher, load_teacher
from tenfold.tinymim.teachers import HeadPolicy
from tenfold.tinymim.training import (
    finetune_network,
    judge_frozen,
    load_images,
    make_finetuned_network,
    network_shape,
    pretrain_network,
    statistics_of,
)

logger = get_logger("tinymim")

OF_THE_WEIGHTS = "pretrained"
"""In place of a network's name."""

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Accelerator = Annotated[AcceleratorConfig, tyro.conf.arg(name="")]  # --device, not --accelerator.device


@dataclass(frozen=True)
class Reproduce:
    """Run a profile's suite, compare it with printed numbers, and fail if a claim does not hold."""

    profile: str = "quick"
    """Which suite; `--profile list` prints them."""
    seeds: tuple[int, ...] | None = None
    """Seeds instead of the profile's."""
    methods: tuple[str, ...] | None = None
    """Some of the profile's methods, by name."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    teacher_weights: Path | None = None
    """File of a teacher that the profile does not train: MAE's, TinyMIM's, or model.pt of a run."""
    backbone_weights: Path | None = None
    """File of a network with which segmenters begin."""
    accumulate: int | None = None
    """Parts that batches are divided into, one after another, where they do not fit a device."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    force: bool = False
    """Repeat runs that are finished."""
    workers: int | None = None
    """Processes that share the runs; by default one for each CPU core, eight at the most, and one on a GPU."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float | None = None
    """Time between two checkpoints of a run, by default the profile's."""
    quiet: Quiet = False
    """Only warnings, errors and the final tables."""

    def run(self) -> int:
        profile = _profile(self.profile)
        if self.seeds is not None:
            if not self.seeds or len(set(self.seeds)) < len(self.seeds):
                raise TenfoldError("give --seeds at least one number, each once")
            profile = replace(profile, seeds=self.seeds)
        if self.methods is not None:
            profile = _with_methods(profile, self.methods)
        self._check_weights(profile)
        if self.accumulate is not None:
            if not isinstance(profile, Profile):
                raise TenfoldError("batches of segmenters are not divided: leave out --accumulate")
            profile = profile.accumulating(self.accumulate)
        suite = Suite(
            self.profile,
            profile,
            self.output,
            _data_root(self.data_root),
            self.teacher_weights,
            self.backbone_weights,
            self.download,
            self.force,
            profile.checkpoint_seconds if self.checkpoint_seconds is None else self.checkpoint_seconds,
            self.accelerator,
        )
        results = reproduce(suite, self.workers, self.quiet)
        if not suite.fabric.is_global_zero:
            return 0
        verdicts = print_comparison(load_reported("tenfold.tinymim"), results, self.profile, MAIN_METRICS)
        failed = [verdict.claim.id for verdict in verdicts if verdict.holds is False]
        if failed:
            logger.error("claims that do not hold: %s", ", ".join(failed))
        return 1 if failed else 0

    def _check_weights(self, profile: Profile | SegmentationProfile) -> None:
        """Whether files of weights are there that the profile cannot do without."""
        if isinstance(profile, SegmentationProfile):
            if self.backbone_weights is None:
                raise TenfoldError(
                    "segmenters begin with a pre-trained network: give --backbone-weights a file of the authors, or "
                    "model.pt of a run"
                )
            return
        outside = {
            settings.teacher
            for settings in profile.pretrainings.values()
            if settings.teacher is not None and settings.teacher not in profile.pretrainings
        }
        fetched = self.download and all(name.startswith("timm/") for name in outside)
        if outside and self.teacher_weights is None and not fetched:
            raise TenfoldError(
                f"this profile's teacher is {', '.join(sorted(outside))}: give --teacher-weights its file"
            )
        learned = {method.train.teacher for method in profile.finetunings.values()} - {None}
        if learned and not self.download:
            names = ", ".join(sorted(map(str, learned)))
            raise TenfoldError(f"this profile learns the classes of timm's {names}: add --download")


def _with_methods(profile: Profile | SegmentationProfile, methods: tuple[str, ...]) -> Profile:
    if not isinstance(profile, Profile) or not methods or set(methods) - set(profile.finetunings):
        known = profile.finetunings if isinstance(profile, Profile) else [profile.method]
        raise TenfoldError(f"--methods takes some of: {'; '.join(known)}")
    return profile.needed(methods)


@dataclass(frozen=True)
class Pretrain:
    """Pre-train one network without labels, with every hyperparameter: by distillation, or by masked autoencoding."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: PretrainConfig = field(default_factory=PretrainConfig)
    teacher: str = ""
    """A network of MAE or TinyMIM by name, timm/<model>, or the path of model.pt of a run."""
    teacher_weights: Path | None = None
    """Its file, where it goes by a name."""
    teacher_image_size: int | None = None
    """Side to which images are resized for a teacher that goes by a name; by default they stay."""
    last_heads: int | None = None
    """Of the student's last block; by default the named network's, else as many as the teacher's target block has."""
    head_policy: HeadPolicy = "student"
    """Read the teacher's target block with the student's heads, or with those that it was trained with."""
    seed: int = 0
    """Seed of weights, order, crops, masks and stochastic depth."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints; they are written after an epoch."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        needs_teacher = self.target.family != "none"
        if needs_teacher != bool(self.teacher):
            raise TenfoldError(
                f"{self.target.family} distillation needs --teacher"
                if needs_teacher
                else "masked autoencoding has no teacher: leave out --teacher"
            )
        fabric = launch_fabric(self.accelerator)
        settings = Pretraining(
            self.network,
            self.target,
            self.train,
            self.teacher or None,
            self.last_heads,
            self.head_policy,
            self.teacher_image_size,
        )
        record = {**plain(settings), "data": plain(self.data), "seed": self.seed}
        record["teacher"] = self._teacher_identity()
        name = f"pretrain-{config_hash(record)[:8]}"
        key = RunKey(PAPER, "single", name, self.seed, self.data.dataset, "pre-training", self.target.family)
        run = Run(self.output, key, record, "epoch", self.checkpoint_seconds, fabric.is_global_zero)
        if run.is_finished:
            logger.info("this run is done already: %s", run.directory / "model.pt")
            return 0
        with run:
            images = load_images(self.data, fabric, _data_root(self.data_root), self.download)
            teacher: AnyTeacher | None = None
            if self._is_path:
                teacher = load_student_as_teacher(Path(self.teacher), target_block=self.target.target_block)
            elif self.teacher:
                mean, std = statistics_of(images)
                teacher = load_teacher(
                    self.teacher,
                    self.teacher_weights,
                    target_block=self.target.target_block,
                    img_size=self.teacher_image_size or self.data.image_size,
                    mean=mean,
                    std=std,
                    download=self.download,
                )
            if teacher is not None:
                teacher = teacher.to(fabric.device)
            trained = pretrain_network(settings, images, self.seed, run, teacher, self.accelerator.compile)
            kept = replace(settings, teacher=record["teacher"] or None)
            path = run.save_artifact("model.pt", artifact(trained.network, kept))
            finish_pretraining(run, trained, images, teacher, self.seed, draws=True)
        logger.info("network in %s", path)
        return 0

    @property
    def _is_path(self) -> bool:
        return self.teacher.endswith(".pt")

    def _teacher_identity(self) -> str:
        """What identifies the teacher, without a path."""
        if self._is_path:
            return file_digest(Path(self.teacher))
        return self.teacher + (f" {file_digest(self.teacher_weights)}" if self.teacher_weights else "")


@dataclass(frozen=True)
class Finetune:
    """Train one classifier with labels, from a pre-trained network or from scratch."""

    checkpoint: Path | None = None
    """model.pt of a pre-training run, or weights of the authors (with --network.name); by default from scratch."""
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(OF_THE_WEIGHTS))
    """The classifier; vit_tiny_patch16 has three heads, its student six."""
    data: DataConfig = field(default_factory=DataConfig)
    train: FinetuneConfig = field(default_factory=FinetuneConfig)
    seed: int = 0
    """Seed of new weights, order, crops, stochastic depth and mixed images."""
    output: Path = Path("runs")
    """Directory of all runs."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    download: bool = False
    """Fetch what is missing and can be fetched."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints; they are written after an epoch."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        fabric = launch_fabric(self.accelerator)
        network = self.chosen_network
        origin = "from scratch" if self.checkpoint is None else file_digest(self.checkpoint)
        record: dict[str, Any] = {
            "data": plain(self.data),
            "network": None if network is None else plain(network),
            "train": plain(self.train),
            "origin": origin,
            "seed": self.seed,
        }
        name = f"finetune-{config_hash(record)[:8]}"
        key = RunKey(PAPER, "single", name, self.seed, self.data.dataset, "single", "fine-tuning")
        run = Run(self.output, key, record, "epoch", self.checkpoint_seconds, fabric.is_global_zero)
        if run.is_finished:
            logger.info("this run is done already: %s", run.directory / "model.pt")
            return 0
        with run:
            images = load_images(self.data, fabric, _data_root(self.data_root), self.download)
            weights, known = None, None
            if self.checkpoint is not None:
                content = load_file(self.checkpoint)
                weights = unwrapped(content)
                known = stored_shape(content) if "shape" in content else None
            if self.train.keep_pretrain_heads and known is None:
                raise TenfoldError(
                    "heads of pre-training are known of model.pt of a run alone: leave out --train.keep-pretrain-heads"
                )
            shape = network_shape(network, known, self.data.image_size)
            batches = images.batches(self.train, self.seed)
            heads = None if known is None else known.heads[-1]
            classifier = make_finetuned_network(
                shape, self.train, batches.num_classes, self.seed, weights, heads
            )
            trained = finetune_network(
                self.train,
                classifier,
                batches,
                images,
                self.seed,
                run,
                self.accelerator.compile,
                self.download,
            )
            path = run.save_artifact("model.pt", artifact(trained.network, self.train))
            run.finish(trained.metrics, trained.images_per_second, "images/s")
        logger.info("top-1 %.2f %%, network in %s", trained.metrics["top1"], path)
        return 0

    @property
    def chosen_network(self) -> NetworkConfig | None:
        """None is the network of the weights; a shape that was given counts without a name."""
        if self.network.name != OF_THE_WEIGHTS:
            return self.network
        shape = replace(self.network, name="")
        return None if shape == NetworkConfig() else shape


ClassifierName = Literal[
    "vit_tiny_patch16", "vit_small_patch16", "vit_base_patch16", "vit_large_patch16", "tinymim_star_tiny"
]
NetworkName = (
    ClassifierName
    | Literal["tinymim_vit_tiny_patch16", "tinymim_vit_small_patch16", "tinymim_vit_base_patch16"]
    | Literal["mae_vit_tiny", "mae_vit_small", "mae_vit_base", "mae_vit_large"]
)


@dataclass(frozen=True)
class Evaluate:
    """Top-1 and top-5 of a classifier on test images."""

    checkpoint: Path
    """model.pt of a fine-tuning run, or weights of the authors or of timm (with --model)."""
    model: ClassifierName | None = None
    """The network that other weights are of."""
    dataset: DatasetName = "imagenet"
    """Whose test images."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    workers: int = 8
    """Processes that decode image files."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)

    def run(self) -> int:
        network = load_classifier(self.checkpoint, self.model)
        fabric = launch_fabric(self.accelerator)
        data = DataConfig(self.dataset, network.config.img_size, workers=self.workers)
        images = load_images(data, fabric, _data_root(self.data_root))
        if images.num_classes != network.config.num_classes:
            raise TenfoldError(
                f"{self.checkpoint} knows {network.config.num_classes} classes, {self.dataset} has "
                f"{images.num_classes}: give --dataset what it was fine-tuned on"
            )
        found = evaluate_classifier(network.to(fabric.device), images.judging(), fabric)
        if fabric.is_global_zero:
            print(f"top-1 {found['top1']:.3f} %, top-5 {found['top5']:.3f} %")
        return 0


@dataclass(frozen=True)
class Probe:
    """k-NN and a linear layer on frozen features, of sets in memory."""

    checkpoint: Path
    """model.pt of a run."""
    data: DataConfig = field(default_factory=lambda: DataConfig("digits", 24))
    seed: int = 0
    """Seed of the linear layer."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)

    def run(self) -> int:
        network = load_network(self.checkpoint, None)
        fabric = launch_fabric(self.accelerator)
        if self.data.dataset == "imagenet":
            raise TenfoldError(
                "frozen features of ImageNet do not fit memory: probe digits, clothing128 or cifar10"
            )
        data = replace(self.data, image_size=network.config.img_size)
        images = load_images(data, fabric, _data_root(self.data_root))
        found = judge_frozen(network.to(fabric.device), images, self.seed)
        if fabric.is_global_zero:
            print(f"k-NN {found['knn_top1']:.2f} %, linear {found['probe_top1']:.2f} %")
        return 0


@dataclass(frozen=True)
class Robustness:
    """Accuracy on ImageNet-A and -R, mean corruption error on ImageNet-C."""

    checkpoint: Path
    """model.pt of a fine-tuning run, or weights of the authors or of timm (with --model)."""
    model: ClassifierName | None = None
    """The network that other weights are of."""
    sets: tuple[SetName, ...] = ("a", "r", "c")
    """Which; in imagenet-a/, imagenet-r/ and imagenet-c/ below the data root."""
    data_root: Path | None = None
    """Folder with further data; by default $TENFOLD_DATA, else ./data."""
    workers: int = 8
    """Processes that decode image files."""
    batch_size: int = 256
    """Images of a pass."""
    method: str = "TinyMIM"
    """What the network is, in the record that is compared with the paper's table."""
    output: Path = Path("runs")
    """Directory of all runs."""
    accelerator: Accelerator = field(default_factory=AcceleratorConfig)

    def run(self) -> int:
        network = load_classifier(self.checkpoint, self.model)
        fabric = launch_fabric(self.accelerator)
        letter = {192: "T", 384: "S", 768: "B"}.get(network.config.embed_dim, str(network.config.embed_dim))
        config = {"weights": file_digest(self.checkpoint), "sets": list(self.sets)}
        name = f"{config['weights'][:8]}-{''.join(self.sets)}"
        key = RunKey(PAPER, "robustness", name, 0, "imagenet", f"robustness, ViT-{letter}", self.method)
        run = Run(self.output, key, config, is_writer=fabric.is_global_zero)
        with run:
            found = evaluate_robustness(
                network.to(fabric.device),
                _data_root(self.data_root),
                fabric,
                self.workers,
                self.sets,
                self.batch_size,
            )
            run.finish(found)
        if fabric.is_global_zero:
            for metric, value in found.items():
                print(f"{metric:36} {value:.2f}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write weights by the authors' names (under `model`, as their files), or as timm's state dict."""

    checkpoint: Path
    """model.pt of a run, or weights of the authors (with --model)."""
    output: Path
    """File to write."""
    model: NetworkName | None = None
    """The network that other weights are of."""
    format: Literal["official", "timm"] = "official"
    """official, or timm, whose model is checked to give the same outputs."""
    quiet: Quiet = False
    """Only warnings and errors."""

    def run(self) -> int:
        network = load_network(self.checkpoint, self.model)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        if self.format == "official":
            save_atomically(self.output, {"model": trained_weights(network)})
        else:
            if len(set(network.config.heads)) > 1:
                network.with_last_heads(network.config.num_heads)
                logger.warning("the last block is read with %d heads, as timm's", network.config.num_heads)
            model = timm_model(network).eval()
            check_same_outputs(network, model)
            save_atomically(self.output, dict(model.state_dict()))
        logger.info("%s weights in %s", self.format, self.output)
        return 0


Command = (
    Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Probe, tyro.conf.subcommand("probe")]
    | Annotated[Robustness, tyro.conf.subcommand("robustness")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``tenfold-tinymim``; ends the process with the command's exit status."""
    with errors_in_one_line():
        command = tyro.cli(
            Command,
            prog="tenfold-tinymim",
            description="TinyMIM: distilling masked-image-modelling teachers into tiny ViTs (Ren et al., CVPR 2023).",
            args=arguments,
        )
        set_quiet(getattr(command, "quiet", False))
        sys.exit(command.run())


def _profile(name: str) -> Profile | SegmentationProfile:
    profiles: dict[str, Profile | SegmentationProfile] = {**PROFILES, **SEGMENTATION_PROFILES}
    if name == "list":
        for known, profile in profiles.items():
            print(f"{known:44} {profile.description}")
        sys.exit(0)
    if name not in profiles:
        raise TenfoldError(f"unknown profile {name!r}; choose one of {', '.join(profiles)}")
    return profiles[name]


def _data_root(given: Path | None) -> Path:
    if given is not None and not given.is_dir():
        raise TenfoldError(f"there is no data root {given}; create it or leave out --data-root")
    return given or Path(os.environ.get("TENFOLD_DATA", "data"))
