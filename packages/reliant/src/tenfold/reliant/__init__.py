"""RELIANT: fair knowledge distillation for graph neural networks.

Dong, Zhang, Yuan, Zou, Wang and Li, SDM 2023, https://arxiv.org/abs/2301.01150. A student that imitates a graph network
inherits its bias. RELIANT gives the student two more input features per node, a proxy of bias that learns to explain
differences between groups; whoever uses the student feeds it the mean proxy, which explains nothing.
"""

from tenfold.reliant.bias import bias_surrogate, step_polynomial
from tenfold.reliant.checkpoints import load_official_state_dict
from tenfold.reliant.datasets import load_dataset
from tenfold.reliant.fairness_metrics import equal_opportunity, statistical_parity
from tenfold.reliant.graphs import FairGraph
from tenfold.reliant.label_propagation import build_label_propagation_student
from tenfold.reliant.node_output import NodeOutput
from tenfold.reliant.proxies import BiasProxies
from tenfold.reliant.sgc_student import build_sgc_student
from tenfold.reliant.similarity_graph import build_similarity_edges
from tenfold.reliant.teachers import build_teacher
from tenfold.reliant.training import distill, train_teacher

__all__ = [
    "BiasProxies",
    "FairGraph",
    "NodeOutput",
    "bias_surrogate",
    "build_label_propagation_student",
    "build_sgc_student",
    "build_similarity_edges",
    "build_teacher",
    "distill",
    "equal_opportunity",
    "load_dataset",
    "load_official_state_dict",
    "statistical_parity",
    "step_polynomial",
    "train_teacher",
]
