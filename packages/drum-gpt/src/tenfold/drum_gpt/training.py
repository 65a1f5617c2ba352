"""The fine-tuning loop: AdamW, warm-up and cosine, one loss; resumable between looks at the development set."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import AdamW

from tenfold.drum_gpt.config import TrainConfig
from tenfold.drum_gpt.corpus import Piece
from tenfold.drum_gpt.examples import TokenizedExample, TrainingSet, collate, examples_to_judge
from tenfold.drum_gpt.language_models import LanguageModel
from tenfold.drum_gpt.losses import token_losses, weighted_loss
from tenfold.shared.accelerator import fuses_clipped, maybe_compile
from tenfold.shared.logging import TenfoldError, get_logger
from tenfold.shared.runs import Run

logger = get_logger("drum-gpt")


@dataclass(frozen=True)
class Likelihood:
    """-log p of completions given their prompts, in nats."""

    total: float
    tokens: int
    lines: int
    pieces: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """Per token, per line (which compares networks with different tokens), per piece, and perplexity per line."""
        per_line = self.total / self.lines
        return {
            f"{prefix}_nats_per_token": self.total / self.tokens,
            f"{prefix}_nats_per_line": per_line,
            f"{prefix}_nats_per_piece": self.total / self.pieces,
            f"{prefix}_perplexity_per_line": math.exp(min(per_line, 700.0)),
        }


@dataclass(frozen=True)
class Trained:
    """How a training went."""

    steps: int
    """Done, fewer than planned where it was stopped early."""
    best_dev: float
    """Nats for each token of the development set, the least that was seen."""
    tokens_per_second: float
    """While training, since the run was resumed."""


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear from 0 over the warm-up, then a cosine from the peak to a tenth of it.

    Args:
        step: from 0.
        steps: in all.
        config: peak and share of the warm-up.
    """
    warmup = round(config.warmup * steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    return config.lr * (0.55 + 0.45 * math.cos(math.pi * progress))


def fitted(config: TrainConfig, model: LanguageModel) -> TrainConfig:
    """With texts no longer than the network can read, which is said."""
    if model.positions >= config.max_length:
        return config
    logger.warning("this network reads %d tokens: what is longer is cut off", model.positions)
    return replace(config, max_length=model.positions)


def planned_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Steps of a training that is not stopped early."""
    return config.steps or config.epochs * steps_per_epoch


def make_optimizer(model: LanguageModel, config: TrainConfig, fused: bool = True) -> AdamW:
    """AdamW; norms and biases do not decay."""
    learned = [weight for weight in model.network.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in learned if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in learned if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def train(
    model: LanguageModel,
    pieces: Sequence[Piece],
    dev: Sequence[Piece],
    config: TrainConfig,
    seed: int,
    fabric: Fabric,
    run: Run,
    compile_network: bool = False,
) -> Trained:
    """Fine-tune a network in place.

    Args:
        model: on the CPU, in fp32; it ends on Fabric's device.
        pieces: to learn from.
        dev: the development set.
        config: of the training.
        seed: of order, windows, and dropout.
        fabric: launched; its processes divide the pieces of every step.
        run: entered; goes on from its checkpoint.
        compile_network: with torch.compile.

    Raises:
        TenfoldError: the loss is no number any more, or a piece does not fit.
    """
    config = fitted(config, model)
    data = TrainingSet(pieces, model.vocabulary, config, seed)
    to_judge = examples_to_judge(dev[: config.eval_pieces], model.vocabulary, config)
    steps = planned_steps(config, data.steps_per_epoch)
    eval_every = config.eval_every or data.steps_per_epoch
    trainer = Trainer(model, config, fabric, compile_network)
    state = run.resume()
    if state is not None:
        trainer.load_state_dict(state)
    else:
        torch.manual_seed(seed)  # of dropout, whatever was drawn for the weights
    if trainer.step == 0:
        run.log(0, dev_nats_per_token=trainer.look(to_judge))
    seconds, seen = 0.0, 0
    while trainer.step < steps and not trainer.is_stopped:
        started = time.monotonic()
        sums: list[tuple[Tensor, Tensor]] = []
        until = min(steps, (trainer.step // eval_every + 1) * eval_every)
        while trainer.step < until:
            batch = data.batch(trainer.step, fabric.global_rank, fabric.world_size)
            seen += batch.tokens.numel() * fabric.world_size
            sums.append(trainer.learn(batch.to(fabric.device), learning_rate(trainer.step, steps, config)))
        loss = float(sum(total for total, _ in sums) / sum(weight for _, weight in sums))
        seconds += time.monotonic() - started
        if not math.isfinite(loss):
            raise TenfoldError(f"the loss is no number any more at step {trainer.step}; lower --train.lr")
        found = trainer.look(to_judge)
        run.log(trainer.step, train_nats_per_token=loss, dev_nats_per_token=found)
        if run.is_checkpoint_due and trainer.step < steps:
            run.save_checkpoint(trainer.step, trainer.state_dict())
    trainer.end()
    return Trained(trainer.step, trainer.best, seen / seconds if seconds else 0.0)


class Trainer:
    """Network, optimiser, and how far they are."""

    def __init__(
        self, model: LanguageModel, config: TrainConfig, fabric: Fabric, compile_network: bool = False
    ) -> None:
        self.config, self.fabric = config, fabric
        network: Any = model.network
        if config.gradient_checkpointing:
            network.gradient_checkpointing_enable()
            network.enable_input_require_grads()
        self.plain_network = network.to(fabric.device)
        self.plain_optimizer = make_optimizer(model, config, fuses_clipped(fabric))
        self.network, self.optimizer = fabric.setup(
            maybe_compile(self.plain_network, compile_network), self.plain_optimizer
        )
        self.end_token = model.vocabulary.end
        self.step, self.best, self.worse = 0, math.inf, 0
        self.best_weights: dict[str, Tensor] = {}

    @property
    def is_stopped(self) -> bool:
        """Whether the development set has not got better for too long."""
        return self.config.patience is not None and self.worse >= self.config.patience

    def learn(self, batch: Any, lr: float) -> tuple[Tensor, Tensor]:
        """One step; returns the summed loss and weight of all processes, on the device."""
        for group in self.plain_optimizer.param_groups:
            group["lr"] = lr
        self.network.train()
        logits = self.network(input_ids=batch.tokens, use_cache=False).logits
        total, weight = weighted_loss(logits, batch.tokens, batch.weights)
        weight = self._summed(weight)
        # DDP averages gradients over processes; the loss is a sum over them, divided by all weights.
        self.fabric.backward(total * self.fabric.world_size / weight)
        self.fabric.clip_gradients(
            self.network, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return self._summed(total.detach()), weight

    def _summed(self, value: Tensor) -> Tensor:
        summed: Any = self.fabric.all_reduce(value, reduce_op="sum")
        return torch.as_tensor(summed)

    def look(self, examples: Sequence[TokenizedExample]) -> float:
        """Nats for each token of the development set; the best weights are kept where training may stop early."""
        if not examples:
            return math.nan
        found = likelihood(self.network, examples, self.end_token, self.fabric)
        value = found.total / found.tokens
        if value < self.best:
            self.best, self.worse = value, 0
            if self.config.patience is not None:
                self.best_weights = {
                    name: tensor.detach().cpu().clone() for name, tensor in self._learned().items()
                }
        elif self.step:
            self.worse += 1
        return value

    def end(self) -> None:
        """Put the best weights back where training may stop early."""
        if self.best_weights:
            self.plain_network.load_state_dict(self.best_weights, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "network": self._learned(),
            "optimizer": self.plain_optimizer.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "step": self.step,
            "best": self.best,
            "worse": self.worse,
            "best_weights": self.best_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.plain_network.load_state_dict(state["network"], strict=False)
        self.plain_optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.best, self.worse = state["step"], state["best"], state["worse"]
        self.best_weights = state["best_weights"]

    def _learned(self) -> dict[str, Tensor]:
        """The weights that are trained; LoRA's alone, for instance."""
        return {
            name: weight for name, weight in self.plain_network.named_parameters() if weight.requires_grad
        }


@torch.no_grad()
def likelihood(
    network: Any,
    examples: Sequence[TokenizedExample],
    end: int,
    fabric: Fabric,
    batch_size: int = 16,
) -> Likelihood:
    """How likely completions are, given their prompts.

    Args:
        network: set up by Fabric.
        examples: at least one; of similar length side by side is fastest.
        end: token of the end, and of padding.
        fabric: every process judges all examples.
        batch_size: texts at once.
    """
    network.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size], end, prompt_weight=0.0).to(fabric.device)
        logits = network(input_ids=batch.tokens, use_cache=False).logits
        total += (token_losses(logits, batch.tokens).double() * batch.weights).sum().cpu()
        count += int(batch.weights.sum())
    network.train()
    return Likelihood(float(total), count, sum(example.lines for example in examples), len(examples))
