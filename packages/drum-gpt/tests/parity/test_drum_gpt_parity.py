"""drum-GPT against the reference implementation."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from tenfold.drum_gpt.encoding import midi_to_drumroll
from tenfold.drum_gpt.prompts import drumroll_to_prompt, without_silent_beginning
from tenfold.drum_gpt.structure import (
    levenshtein,
    measure_stability,
    measures_of,
    structural_summary,
    two_means,
)


def check_midi_to_drumroll(case: Any) -> None:
    """Text, prompt and completion, byte for byte."""
    with zipfile.ZipFile(case.path.with_suffix(".zip")) as archive:
        for entry in case["entries"]:
            name = entry["name"]
            text = midi_to_drumroll(archive.read(f"{name}.mid"))
            assert text is not None, name
            if f"{name}.txt" in archive.namelist():
                assert text.encode() == archive.read(f"{name}.txt"), name
            assert hashlib.sha256(text.encode()).hexdigest() == entry["sha256_txt"], name
            lines = text.splitlines()
            assert len(lines) == entry["lines"], name
            if entry["prompt"] is None:
                assert drumroll_to_prompt(text) is None, name
                continue
            assert drumroll_to_prompt(text) == (entry["prompt"], entry["completion"]), name
            stripped = (len(lines) - len(without_silent_beginning(lines))) // 16
            assert stripped == entry["leading_measures_stripped"], name


def check_levenshtein(case: Any) -> None:
    for first, second, distance in case["pairs"]:
        assert levenshtein(first, second) == distance


def check_structural_analysis(case: Any) -> None:
    """Stability exactly, means and the exact two-means to 1e-9; scikit-learn's local optima vary with its version."""
    with zipfile.ZipFile(case.path.with_suffix(".zip")) as archive:
        for who, pieces in case["results"].items():
            texts = {name: archive.read(f"{who}/{name}.txt").decode() for name in pieces}
            for name, expected in pieces.items():
                stability = measure_stability(texts[name])
                assert stability == expected["stability"], (who, name)
                assert len(measures_of(texts[name])) == expected["measures"], (who, name)
                assert two_means(stability) == pytest.approx(expected["exact_two_means"], rel=1e-9), (
                    who,
                    name,
                )
                mean = structural_summary([texts[name]])["mean_stability"]
                assert mean == pytest.approx(expected["mean"], rel=1e-9), (who, name)


CHECKS: dict[str, Callable[[Any], None]] = {
    "midi_to_drumroll": check_midi_to_drumroll,
    "levenshtein": check_levenshtein,
    "structural_analysis": check_structural_analysis,
}


def test_parity(parity_case: Any) -> None:
    kind = parity_case["kind"]
    assert kind in CHECKS, f"unknown kind of parity case: {kind}"
    CHECKS[kind](parity_case)
