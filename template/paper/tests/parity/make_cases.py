"""Writes the case of the distillation loss, computed by torch's own loss modules: ``make_cases.py FOLDER``.

The cases of a paper come from its authors' code in the same way: run it on inputs that a seed describes, and keep
what it returns.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn


def main() -> None:
    folder = Path(sys.argv[1])
    temperature, label_weight, labels = 4.0, 0.1, [3, 0, 2, 1, 1, 3]
    student, teacher = (3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(s)) for s in (500, 501))
    student.requires_grad_()
    divergence = nn.KLDivLoss(reduction="none")(
        nn.LogSoftmax(dim=1)(student / temperature), nn.Softmax(dim=1)(teacher / temperature)
    )
    soft = temperature**2 * divergence.sum() / len(labels)
    hard = nn.CrossEntropyLoss()(student, torch.tensor(labels))
    loss = (1 - label_weight) * soft + label_weight * hard
    loss.backward()
    case = {
        "kind": "distillation_loss",
        "temperature": temperature,
        "label_weight": label_weight,
        "labels": labels,
        "student": {"fill_input_seed": 500, "shape": [6, 4], "scale": 3.0},
        "teacher": {"fill_input_seed": 501, "shape": [6, 4], "scale": 3.0},
        "note": "nn.KLDivLoss on softened answers, times T^2, and nn.CrossEntropyLoss",
    }
    (folder / "distillation_loss_t4.json").write_text(json.dumps(case, indent=1) + "\n", encoding="utf-8")
    outputs = {"loss": loss.detach().numpy(), "student_grad": student.grad.numpy()}
    np.savez(folder / "distillation_loss_t4.npz", **outputs)


if __name__ == "__main__":
    main()
