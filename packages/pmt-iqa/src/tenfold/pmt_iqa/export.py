"""Networks for other runtimes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from tenfold.pmt_iqa.backbones import MEAN, STD
from tenfold.pmt_iqa.model import verdict
from tenfold.pmt_iqa.scoring import Scorer
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import replaced


class ScoreOfBytes(nn.Module):
    """Crops as bytes [n, 3, S, S] to scores from 0 to 100, [n], and probabilities of levels, the worst first, [n, K].

    Normalisation and scale are part of it, so that another runtime needs nothing but pixels.
    """

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.network, self.train_config, self.scale = scorer.network, scorer.config.train, scorer.scale
        device = scorer.fabric.device
        self.register_buffer("mean", torch.tensor(MEAN, device=device).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD, device=device).view(1, 3, 1, 1))
        self.register_buffer("level_scores", scorer.level_scores.to(device))
        self.mean: Tensor
        self.std: Tensor
        self.level_scores: Tensor

    def forward(self, crops: Tensor) -> tuple[Tensor, ...]:
        output = self.network((crops.float() / 255 - self.mean) / self.std)
        score, levels = verdict(
            output, self.level_scores, self.train_config.learns_scores, self.train_config.learns_levels
        )
        share = ((score - self.scale.low) / (self.scale.high - self.scale.low)).clamp(0, 1)
        percent = 100 * (share if self.scale.higher_is_better else 1 - share)
        if levels is None:
            return (percent,)
        return percent, levels if self.scale.higher_is_better else levels.flip(1)


def export_onnx(scorer: Scorer, path: Path) -> None:
    """Write a scorer's network as ONNX, for any number of crops of its size.

    Raises:
        TenfoldError: the extra ``onnx`` is not installed.
    """
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise TenfoldError("export needs the onnx extra: pip install 'tenfold-pmt-iqa[onnx]'")
    size = scorer.config.train.crop_size
    crops = torch.zeros(2, 3, size, size, dtype=torch.uint8, device=scorer.fabric.device)
    has_levels = scorer.config.model.kind == "multitask" and scorer.config.train.learns_levels
    names = ["score", "levels"] if has_levels else ["score"]
    with torch.no_grad():
        program = torch.onnx.export(
            ScoreOfBytes(scorer).eval(),
            (crops,),
            input_names=["crops"],
            output_names=names,
            dynamic_shapes={"crops": {0: torch.export.Dim("n")}},
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise TenfoldError("the network could not be exported")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as temporary:
        program.save(temporary)
