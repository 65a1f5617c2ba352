"""Every setting of a run: data, network, attack, distillation, and the victims that judge it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tenfold.doorping.attacks import AttackConfig
from tenfold.doorping.condensation import CondensationConfig
from tenfold.doorping.defences.activation_clustering import ClusteringConfig
from tenfold.doorping.defences.attention_distillation import AttentionDistillationConfig
from tenfold.doorping.defences.denoising import DenoisingConfig
from tenfold.doorping.defences.fine_pruning import FinePruningConfig
from tenfold.doorping.defences.neural_cleanse import NeuralCleanseConfig
from tenfold.doorping.defences.neuron_stimulation import NeuronStimulationConfig
from tenfold.doorping.defences.spectral_signatures import SpectralConfig
from tenfold.doorping.defences.strip import StripConfig
from tenfold.doorping.evaluation import VictimConfig
from tenfold.doorping.networks import Activation, Network, NetworkName, Norm, Pooling, build_model
from tenfold.doorping.unrolled_distillation import DDConfig
from tenfold.shared.logging import TenfoldError

Distillation = Literal["dc", "dd", "subset", "whole"]


@dataclass(frozen=True)
class NetworkConfig:
    """A network. The defaults are the paper's ConvNet."""

    name: NetworkName = "ConvNet"
    """ConvNet, ConvNet_B (one linear layer), AlexNet, VGG11 or ResNet18."""
    width: int = 128
    """Channels of a ConvNet."""
    depth: int = 3
    """Blocks of a ConvNet."""
    activation: Activation = "relu"
    """Of a ConvNet."""
    norm: Norm | None = None
    """Of a ConvNet, VGG11 or ResNet18; by default each network's own."""
    pooling: Pooling = "avgpooling"
    """Of a ConvNet."""
    hidden: int = 192
    """Width of a ConvNet's second-last linear layer."""

    def make(self, channels: int, classes: int, image_size: int) -> Network:
        """The network for images of some size, with fresh weights of the global generator."""
        return build_model(
            self.name,
            channels,
            classes,
            width=self.width,
            depth=self.depth,
            activation=self.activation,
            norm=self.norm,
            pooling=self.pooling,
            image_size=image_size,
            hidden=self.hidden,
        )


@dataclass(frozen=True)
class DefencesConfig:
    """What is set against a victim."""

    victims: int = 10
    """Victims of every distilled set that are examined."""
    clean_share: float = 0.05
    """Share of the training images that the defender has clean."""
    test_images: int = 1000
    """Test images for what looks at single inputs."""
    neural_cleanse: NeuralCleanseConfig = field(default_factory=NeuralCleanseConfig)
    neuron_stimulation: NeuronStimulationConfig = field(default_factory=NeuronStimulationConfig)
    fine_pruning: FinePruningConfig = field(default_factory=FinePruningConfig)
    attention: AttentionDistillationConfig = field(
        default_factory=lambda: AttentionDistillationConfig(clean_share=1.0)
    )
    """Its clean share is a share of what the defender has."""
    strip: StripConfig = field(default_factory=StripConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)

    def __post_init__(self) -> None:
        if self.victims < 1 or self.test_images < 2 or not 0 < self.clean_share <= 1:
            raise TenfoldError(
                "defences examine at least 1 victim with 2 test images, and have a clean share above 0 and at most 1"
            )


@dataclass(frozen=True)
class RunConfig:
    """One run: a data set, poisoned and distilled, or trained on as it is."""

    dataset: str = "cifar-10"
    """digits, fashion-mnist, cifar-10, cifar-10-mosaic, cifar-100, stl-10 or svhn."""
    share: float = 1.0
    """Share of the training images that the distillation has."""
    distillation: Distillation = "dc"
    """dc, matching of gradients (DSA with its augmentation); dd, unrolled steps; subset, as many real images drawn at
    random; or whole, all real images."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    as_strong_as: str | None = None
    """A frozen trigger as strong as that of another method's run of the same seed, whose bound it takes."""
    condensation: CondensationConfig = field(default_factory=CondensationConfig)
    unrolled: DDConfig = field(default_factory=DDConfig)
    victim: VictimConfig = field(default_factory=VictimConfig)
    evaluate_every: int = 50
    """Iterations between two evaluations; 0 judges at the end alone."""
    other_victims: tuple[NetworkName, ...] = ()
    """Further networks that are trained on the distilled set at the end."""
    earlier_triggers: bool = False
    """Also try, at the end, those earlier triggers that reached an ASR above 95 % in their time."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise TenfoldError(f"--share is above 0 and at most 1, not {self.share}")
        if self.evaluate_every < 0:
            raise TenfoldError("--evaluate-every is at least 0")
