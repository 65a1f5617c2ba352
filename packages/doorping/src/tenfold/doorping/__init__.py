"""Doorping: backdoor attacks against dataset distillation, and their defences (NDSS 2023)."""

from tenfold.doorping.attacks import AttackConfig, Poison
from tenfold.doorping.augmentation import siamese_augment
from tenfold.doorping.condensation import CondensationConfig, condense, loops_for_ipc
from tenfold.doorping.evaluation import VictimConfig, evaluate_rates, train_ensemble
from tenfold.doorping.gradient_matching import layer_distance, match_loss, matching_step
from tenfold.doorping.image_sets import ImageSet, load_image_set
from tenfold.doorping.networks import build_model, load_official_state_dict
from tenfold.doorping.official_artifacts import DistilledSet, load_distilled, save_distilled
from tenfold.doorping.triggers import (
    optimise_invisible_trigger,
    optimise_trigger,
    patch_mask,
    poison_uint8,
    select_neurons,
    stamp,
    trigger_loss,
)
from tenfold.doorping.unrolled_distillation import DDConfig, distill_unrolled, unrolled_distillation

__all__ = [
    "AttackConfig",
    "CondensationConfig",
    "DDConfig",
    "DistilledSet",
    "ImageSet",
    "Poison",
    "VictimConfig",
    "build_model",
    "condense",
    "distill_unrolled",
    "evaluate_rates",
    "layer_distance",
    "load_distilled",
    "load_image_set",
    "load_official_state_dict",
    "loops_for_ipc",
    "match_loss",
    "matching_step",
    "optimise_invisible_trigger",
    "optimise_trigger",
    "patch_mask",
    "poison_uint8",
    "save_distilled",
    "select_neurons",
    "siamese_augment",
    "stamp",
    "train_ensemble",
    "trigger_loss",
    "unrolled_distillation",
]
