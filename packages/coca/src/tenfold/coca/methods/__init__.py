"""The methods by name."""

from tenfold.coca.methods.base import Method, Replay, StepBatch
from tenfold.coca.methods.coca import CoCa, CocaStep, coca_step_loss
from tenfold.coca.methods.fdr import Fdr
from tenfold.coca.methods.gradient_projection import AGem, AGemR, Gem
from tenfold.coca.methods.icarl import ICarl
from tenfold.coca.methods.ocd_net import OcdNet
from tenfold.coca.methods.replay import Der, DerPlusPlus, Er, ErAce, Sgd

METHODS: dict[str, type[Method]] = {
    "JOINT": Sgd,
    "SGD": Sgd,
    "ER": Er,
    "ER-ACE": ErAce,
    "A-GEM": AGem,
    "A-GEM-R": AGemR,
    "GEM": Gem,
    "iCaRL": ICarl,
    "FDR": Fdr,
    "DER": Der,
    "DER++": DerPlusPlus,
    "CoCa": CoCa,
    "OCD-Net": OcdNet,
}
"""JOINT is SGD on all tasks at once."""

__all__ = ["METHODS", "CoCa", "CocaStep", "Method", "Replay", "StepBatch", "coca_step_loss"]
