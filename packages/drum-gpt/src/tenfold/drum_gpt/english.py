"""English for a small network to read before it learns to drum, where no pre-trained one is to be had.

The text is what NumPy says of itself in its docstrings (BSD licence): more than a megabyte that is installed anyway.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.optim import AdamW

from tenfold.drum_gpt.config import TrainConfig
from tenfold.drum_gpt.language_models import byte_network, byte_tokenizer
from tenfold.drum_gpt.losses import weighted_loss
from tenfold.drum_gpt.training import learning_rate
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run
from tenfold.shared.seeding import make_generator

LIBRARY = "numpy"
WINDOW, BATCH_SIZE, LEARNING_RATE = 256, 4, 2e-3


def settings(layers: int, steps: int) -> dict[str, Any]:
    """Everything that decides what comes out."""
    text = hashlib.sha256(docstrings().encode()).hexdigest()
    sizes = {"window": WINDOW, "batch_size": BATCH_SIZE, "lr": LEARNING_RATE}
    return {"layers": layers, "steps": steps, **sizes, "text": text}


@cache
def docstrings() -> str:
    """Every docstring of more than 200 characters, once, in the order of the files.

    Raises:
        TenfoldError: there are none; NumPy was installed without its sources.
    """
    spec = importlib.util.find_spec(LIBRARY)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
    paths = [] if folder is None else sorted(folder.rglob("*.py"))
    found: dict[str, None] = {}
    for path in paths:
        if folder is not None and "tests" not in path.relative_to(folder).parts:
            found.update(dict.fromkeys(_docstrings_of(path)))
    if not found:
        raise TenfoldError("NumPy is installed without docstrings; there is no text to read")
    return "\n\n".join(found)


def _docstrings_of(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, nodes)]
    return [text for text in texts if len(text) > 200 and text.isascii()]


def read_english(layers: int, steps: int, seed: int, fabric: Fabric, run: Run) -> dict[str, torch.Tensor]:
    """Train a byte-level network to predict English; returns its weights.

    Args:
        layers: of the network.
        steps: of four windows of 256 bytes.
        seed: of weights and windows.
        fabric: launched; every process does the same.
        run: entered; goes on from its checkpoint.
    """
    tokenizer = byte_tokenizer()
    text = torch.tensor(tokenizer.encode(docstrings(), add_special_tokens=False))
    torch.manual_seed(seed)
    network: Any = byte_network(len(tokenizer), layers)
    network.to(fabric.device)
    optimizer = AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
    config = TrainConfig(steps=steps, lr=LEARNING_RATE, warmup=0.05)
    state = run.resume()
    first = 0
    if state is not None:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        generator = make_generator(seed * 1_000_003 + step)
        starts = torch.randint(len(text) - WINDOW, (BATCH_SIZE, 1), generator=generator)
        tokens = text[starts + torch.arange(WINDOW)].to(fabric.device)
        logits = network(input_ids=tokens, use_cache=False).logits
        counts = torch.ones_like(tokens, dtype=torch.float32)
        counts[:, 0] = 0  # nothing comes before it
        total, weight = weighted_loss(logits, tokens, counts)
        loss = total / weight
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0 or step + 1 == steps:
            run.log(step + 1, english_nats_per_byte=loss.item())
            if run.is_checkpoint_due and step + 1 < steps:
                run.save_checkpoint(
                    step + 1,
                    {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
                )
    weights: dict[str, torch.Tensor] = network.state_dict()
    return weights
