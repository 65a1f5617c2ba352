"""The loop: interruptions, repeatability, early stopping, LoRA, several processes; and what it feeds on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from tenfold.drum_gpt.config import ModelConfig, TrainConfig
from tenfold.drum_gpt.corpus import Piece, pieces_of
from tenfold.drum_gpt.examples import (
    Batch,
    TrainingSet,
    collate,
    examples_to_judge,
    first_measures,
    texts_to_know,
    tokenize,
)
from tenfold.drum_gpt.language_models import LanguageModel, with_lora
from tenfold.drum_gpt.losses import token_losses, weighted_loss
from tenfold.drum_gpt.prompts import END, SEPARATOR, lines_of
from tenfold.drum_gpt.training import Trained, Trainer, learning_rate, likelihood, make_optimizer, train
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import Run, load_checkpoint

MakeModel = Callable[..., LanguageModel]
MakeTraining = Callable[..., TrainConfig]
MakeRun = Callable[..., Run]


class Killed(BaseException):
    """What ends a process from outside; nothing catches it."""


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    return pieces_of("train")[:10]


@pytest.fixture(scope="module")
def dev() -> list[Piece]:
    return pieces_of("dev")[:3]


def learn(
    model: LanguageModel, data: Any, config: TrainConfig, fabric: Fabric, run: Run, seed: int = 0
) -> Trained:
    pieces, dev = data
    with run:
        trained = train(model, pieces, dev, config, seed, fabric, run)
        run.finish({"best": trained.best_dev})
    return trained


def weights(model: LanguageModel) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.network.state_dict().values()])


@pytest.mark.parametrize("checkpoint", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"patience": 2, "lr": 0.05},
        {"infill_rate": 0.5, "window": None, "max_length": 3000, "steps": 6, "eval_every": 2},
    ],
)
def test_a_killed_run_goes_on_to_the_same_result(
    checkpoint: int,
    settings: dict[str, Any],
    pieces: list[Piece],
    dev: list[Piece],
    cpu: Fabric,
    make_model: MakeModel,
    make_training: MakeTraining,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_training(**settings)
    undisturbed, whole = make_model(), make_run("whole", checkpoint_seconds=3600)
    learn(undisturbed, (pieces, dev), config, cpu, whole)
    saved = 0

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        nonlocal saved
        original(run, step, state)
        saved += 1
        if saved == checkpoint:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed), make_run("killed") as killed:
            train(make_model(), pieces, dev, config, 0, cpu, killed)
    resumed, again = make_model(seed=5), make_run("killed", checkpoint_seconds=3600)
    learn(resumed, (pieces, dev), config, cpu, again)
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert again.history() == whole.history()
    assert again.result is not None
    assert whole.result is not None
    assert again.result["metrics"] == whole.result["metrics"]


def test_lora_goes_on_after_a_kill_with_dropout_and_all(
    pieces: list[Piece],
    dev: list[Piece],
    cpu: Fabric,
    make_model: MakeModel,
    make_training: MakeTraining,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def adapted() -> LanguageModel:
        model = make_model()
        torch.manual_seed(3)
        settings = ModelConfig(lora_rank=2, lora_alpha=4, lora_dropout=0.2)
        return LanguageModel(with_lora(model.network, settings), model.vocabulary)

    config = make_training()
    undisturbed = adapted()
    learn(undisturbed, (pieces, dev), config, cpu, make_run("whole", checkpoint_seconds=3600))

    def save(run: Run, step: int, state: Any, original: Any = Run.save_checkpoint) -> None:
        original(run, step, state)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save)
        with pytest.raises(Killed), make_run("killed") as killed:
            train(adapted(), pieces, dev, config, 0, cpu, killed)
    stored = load_checkpoint(make_run("killed").directory / "checkpoint.pt")["state"]["network"]
    assert all("lora" in name for name in stored)
    resumed = adapted()
    learn(resumed, (pieces, dev), config, cpu, make_run("killed", checkpoint_seconds=3600))
    assert torch.equal(weights(resumed), weights(undisturbed))


def test_lora_leaves_the_network_as_it_was_and_learns(
    pieces: list[Piece],
    dev: list[Piece],
    cpu: Fabric,
    make_model: MakeModel,
    make_training: MakeTraining,
    make_run: MakeRun,
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    settings = ModelConfig(lora_rank=4, lora_dropout=0.0)
    adapted = LanguageModel(with_lora(model.network, settings), model.vocabulary)
    run = make_run("lora")
    learn(adapted, (pieces, dev), make_training(lr=0.03), cpu, run)
    after = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): value
        for name, value in adapted.network.state_dict().items()
        if "lora" not in name
    }
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    curve = [row["dev_nats_per_token"] for row in run.history()]
    assert curve[-1] < curve[0] - 0.1


def test_the_same_seed_learns_the_same_and_another_does_not(
    pieces: list[Piece],
    dev: list[Piece],
    cpu: Fabric,
    make_model: MakeModel,
    make_training: MakeTraining,
    make_run: MakeRun,
) -> None:
    models = [make_model() for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        learn(model, (pieces, dev), make_training(), cpu, make_run(f"run{number}"), seed)
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert not torch.equal(weights(models[0]), weights(models[2]))


def test_training_lowers_the_loss_of_pieces_never_seen(
    pieces: list[Piece],
    dev: list[Piece],
    cpu: Fabric,
    make_model: MakeModel,
    make_training: MakeTraining,
    make_run: MakeRun,
) -> None:
    run = make_run("learn")
    learn(make_model(), (pieces, dev), make_training(steps=40, eval_every=40), cpu, run)
    curve = [row["dev_nats_per_token"] for row in run.history()]
    assert curve[0] == pytest.approx(math.log(257), abs=0.3)
    assert curve[-1] < 1.8


def test_early_stopping_goes_back_to_the_best_weights(
    pieces: list[Piece],
    dev: list[Piece],
    cpu: Fabric,
    make_model: MakeModel,
    make_training: MakeTraining,
    make_run: MakeRun,
) -> None:
    model, run = make_model(), make_run("early")
    config = make_training(steps=200, lr=0.5, patience=2, eval_every=2)
    trained = learn(model, (pieces, dev), config, cpu, run)
    curve = [row["dev_nats_per_token"] for row in run.history()]
    assert trained.steps < 200
    assert trained.steps == run.history()[-1]["step"]
    assert min(curve) == trained.best_dev < curve[-1]
    assert curve.index(min(curve)) == len(curve) - 3
    examples = examples_to_judge(dev[:2], model.vocabulary, config)
    judged = likelihood(model.network, examples, model.vocabulary.end, cpu)
    assert judged.total / judged.tokens == pytest.approx(trained.best_dev, rel=1e-6)


def test_a_loss_that_is_no_number_ends_the_run_in_one_sentence(
    pieces: list[Piece],
    dev: list[Piece],
    cpu: Fabric,
    make_model: MakeModel,
    make_training: MakeTraining,
    make_run: MakeRun,
) -> None:
    with pytest.raises(TenfoldError, match=r"no number any more at step \d+; lower --train.lr"):
        learn(make_model(), (pieces, dev), make_training(lr=1e30, clip_norm=1e30), cpu, make_run("nan"))


def test_two_processes_learn_what_one_does(start: Any, tmp_path: Path) -> None:
    script = Path(__file__).parent / "distributed_train.py"
    for devices in (1, 2):
        process = start(script, devices, tmp_path, cwd=tmp_path)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    alone = torch.load(tmp_path / "on1-rank0.pt", weights_only=True)
    ranks = [torch.load(tmp_path / f"on2-rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, expected in alone.items():
        assert torch.equal(ranks[0][name]["weights"], ranks[1][name]["weights"]), name
        assert torch.equal(ranks[0][name]["steps"], expected["steps"]), name
        if name == "early":  # so high a rate magnifies how sums are rounded
            continue
        torch.testing.assert_close(ranks[0][name]["weights"], expected["weights"], rtol=1e-3, atol=2e-4)
        torch.testing.assert_close(ranks[0][name]["losses"], expected["losses"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ranks[0][name]["best"], expected["best"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.1 / 6), (4, 5 * 0.1 / 6), (5, 0.1), (52, 0.0557), (100, 0.01)]
)
def test_the_rate_rises_and_falls_as_a_cosine_to_a_tenth(step: int, rate: float) -> None:
    config = TrainConfig(lr=0.1, warmup=0.05)
    assert learning_rate(step, 100, config) == pytest.approx(rate, rel=0.02)


def test_norms_do_not_decay(make_model: MakeModel) -> None:
    model = make_model()
    decaying, others = make_optimizer(model, TrainConfig()).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert all(weight.ndim == 2 for weight in decaying["params"])
    assert len(others["params"]) == 3  # two norms of the layer and the last


# -- losses --------------------------------------------------------------------------------------------


def test_token_losses_are_those_of_the_next_token() -> None:
    logits, tokens = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    found = token_losses(logits, tokens)
    assert found.shape == (2, 5)
    assert torch.equal(found[:, 0], torch.zeros(2))
    for row in range(2):
        for place in range(1, 5):
            expected = -logits[row, place - 1].log_softmax(dim=0)[tokens[row, place]]
            torch.testing.assert_close(found[row, place], expected)


def test_weights_leave_tokens_out(make_model: MakeModel) -> None:
    logits, tokens = torch.randn(1, 4, 7), torch.randint(7, (1, 4))
    weights = torch.tensor([[0.0, 0.01, 1.0, 0.0]])
    total, weight = weighted_loss(logits, tokens, weights)
    losses = token_losses(logits, tokens)[0]
    torch.testing.assert_close(total, 0.01 * losses[1] + losses[2])
    assert float(weight) == pytest.approx(1.01)


def test_padding_changes_no_likelihood(make_model: MakeModel, cpu: Fabric, dev: list[Piece]) -> None:
    model = make_model()
    config = TrainConfig(eval_measures=None, max_length=3000)
    examples = examples_to_judge(dev, model.vocabulary, config)
    assert len({len(example.tokens) for example in examples}) > 1
    together = likelihood(model.network, examples, model.vocabulary.end, cpu)
    alone = [likelihood(model.network, [example], model.vocabulary.end, cpu) for example in examples]
    assert together.total == pytest.approx(sum(found.total for found in alone), rel=1e-5)
    assert together.tokens == sum(found.tokens for found in alone)
    assert together.lines == sum(len(lines_of(piece.example.completion)) for piece in dev if piece.example)


# -- examples ------------------------------------------------------------------------------------------


def test_an_example_is_prompt_completion_and_end(make_model: MakeModel, dev: list[Piece]) -> None:
    vocabulary = make_model().vocabulary
    example = dev[0].example
    assert example is not None
    found = tokenize(example, vocabulary)
    assert vocabulary.decode(found.tokens) == example.prompt + example.completion
    assert int(found.tokens[-1]) == vocabulary.end
    assert vocabulary.decode(found.tokens[: found.prompt_tokens]) == example.prompt
    text = example.prompt + example.completion
    separators = text.count(f"{SEPARATOR}\n")
    assert len(found.measure_starts) == separators + 1
    for start in found.measure_starts[1:].tolist():
        assert vocabulary.decode(found.tokens[:start]).endswith(f"{SEPARATOR}\n")


def test_prompts_weigh_little_and_padding_nothing(make_model: MakeModel, dev: list[Piece]) -> None:
    vocabulary = make_model().vocabulary
    examples = [tokenize(piece.example, vocabulary) for piece in dev[:2] if piece.example is not None]
    batch = collate(examples, vocabulary.end, prompt_weight=0.01)
    for row, example in enumerate(examples):
        given, length = example.prompt_tokens, len(example.tokens)
        weights = batch.weights[row]
        assert float(weights[0]) == 0.0
        assert torch.equal(weights[1:given], torch.full((given - 1,), 0.01))
        assert torch.equal(weights[given:length], torch.ones(length - given))
        assert not weights[length:].any()


def test_windows_begin_with_a_measure(
    make_model: MakeModel, pieces: list[Piece], make_training: MakeTraining
) -> None:
    vocabulary = make_model().vocabulary
    data = TrainingSet(pieces, vocabulary, make_training(window=200), seed=0)
    texts = {piece.example.prompt + piece.example.completion for piece in pieces if piece.example}
    beginnings = set()
    for step in range(20):
        for row in data.batch(step).tokens:
            text = vocabulary.decode(row)
            assert any(whole.startswith(text) or f"{SEPARATOR}\n{text}" in whole for whole in texts)
            beginnings.add(text[:60])
    assert len(beginnings) > 20


def test_an_epoch_meets_every_piece_once_in_all_processes_together(
    make_model: MakeModel, pieces: list[Piece], make_training: MakeTraining
) -> None:
    vocabulary = make_model().vocabulary
    config = make_training(window=None, batch_size=3, max_length=3000)
    data = TrainingSet(pieces, vocabulary, config, seed=4)
    for world in (1, 2):
        met = [
            vocabulary.decode(tokens)
            for step in range(data.steps_per_epoch)
            for rank in range(world)
            for batch in [data.batch(step, rank, world)]
            for tokens, weights in zip(batch.tokens, batch.weights, strict=True)
            if weights.any()
        ]
        expected = [piece.example.prompt + piece.example.completion for piece in pieces if piece.example]
        assert sorted(met) == sorted(expected)


def test_infilling_asks_for_one_measure(
    make_model: MakeModel, pieces: list[Piece], make_training: MakeTraining
) -> None:
    vocabulary = make_model().vocabulary
    config = make_training(window=None, infill_rate=1.0, max_length=3000)
    batch = TrainingSet(pieces, vocabulary, config, seed=0).batch(0)
    for tokens, weights in zip(batch.tokens, batch.weights, strict=True):
        text = vocabulary.decode(tokens)
        assert text.count("FILL") == 2
        wanted = vocabulary.decode(tokens[weights == 1.0])
        assert len(wanted.splitlines()) == 17
        assert wanted.splitlines()[-1] == END


def test_conditions_come_first(pieces: list[Piece], make_training: MakeTraining) -> None:
    texts = texts_to_know(pieces, make_training(window=None, condition=True, eval_measures=None))
    for piece, text in zip(pieces, texts, strict=True):
        assert text.startswith(f"style: {piece.style}, bpm: {piece.bpm}\n")


def test_the_first_measures_of_a_text_are_whole(dev: list[Piece]) -> None:
    example = dev[0].example
    assert example is not None
    prompt, text = first_measures(example, 3)
    assert prompt == ""
    assert (example.prompt + example.completion).startswith(text)
    assert text.splitlines()[-1] == SEPARATOR
    assert len(lines_of(text)) == 48
    assert len(lines_of(first_measures(example, 100)[1])) == len(
        lines_of(example.prompt + example.completion)
    )


def test_a_prompt_that_fills_the_length_is_refused_by_name(
    make_model: MakeModel, pieces: list[Piece]
) -> None:
    with pytest.raises(TenfoldError, match=rf"{pieces[0].name}: a prompt has \d+ tokens; give more"):
        TrainingSet(pieces, make_model().vocabulary, TrainConfig(max_length=100), seed=0)


def scaling_fabric() -> Fabric:
    """As on a GPU that computes no bf16: losses are scaled."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    return Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu", scaler)])


def test_scaled_gradients_are_clipped(make_model: MakeModel) -> None:
    model = make_model()
    trainer = Trainer(model, TrainConfig(clip_norm=0.01), scaling_fabric())
    assert not trainer.plain_optimizer.defaults["fused"]
    before = [weight.detach().clone() for weight in model.network.parameters()]
    total, _ = trainer.learn(Batch(torch.arange(24).view(2, 12), torch.ones(2, 12)), 1e-3)
    assert torch.isfinite(total)
    moved = [not torch.equal(*pair) for pair in zip(before, model.network.parameters(), strict=True)]
    assert all(moved)


def test_other_optimisers_are_fused(make_model: MakeModel, cpu: Fabric) -> None:
    assert Trainer(make_model(), TrainConfig(), cpu).plain_optimizer.defaults["fused"]
