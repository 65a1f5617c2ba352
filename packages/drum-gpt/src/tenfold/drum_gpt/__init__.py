"""drum-GPT: language models are drummers.

Zhang, Callison-Burch. Language Models are Drummers: Drum Composition with Natural Language Pre-Training.
AAAI-23 workshop Creative AI Across Modalities, arXiv 2301.01162.
"""

from tenfold.drum_gpt.checkpoints import load_artifact
from tenfold.drum_gpt.config import ModelConfig, RunConfig, SampleConfig, TrainConfig
from tenfold.drum_gpt.corpus import Piece, bundled_midi, bundled_pieces, pieces_of
from tenfold.drum_gpt.encoding import drumroll_to_midi, midi_bytes, midi_to_drumroll
from tenfold.drum_gpt.generation import complete
from tenfold.drum_gpt.language_models import LanguageModel, load_language_model
from tenfold.drum_gpt.ngram import LineNgram
from tenfold.drum_gpt.prompts import drumroll_to_prompt, prompt_of, to_drumroll
from tenfold.drum_gpt.structure import (
    levenshtein,
    measure_occurrences,
    measure_stability,
    random_baseline,
    repeat_baseline,
    structural_summary,
    two_means,
)
from tenfold.drum_gpt.training import train

__all__ = [
    "LanguageModel",
    "LineNgram",
    "ModelConfig",
    "Piece",
    "RunConfig",
    "SampleConfig",
    "TrainConfig",
    "bundled_midi",
    "bundled_pieces",
    "complete",
    "drumroll_to_midi",
    "drumroll_to_prompt",
    "levenshtein",
    "load_artifact",
    "load_language_model",
    "measure_occurrences",
    "measure_stability",
    "midi_bytes",
    "midi_to_drumroll",
    "pieces_of",
    "prompt_of",
    "random_baseline",
    "repeat_baseline",
    "structural_summary",
    "to_drumroll",
    "train",
    "two_means",
]
