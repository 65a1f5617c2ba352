"""Every record in the repository keeps to its schema."""

from __future__ import annotations

import importlib
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from tenfold.shared.runs import RunKey

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "benchmarks" / "src" / "tenfold" / "benchmarks" / "schemas"
REPORTED = sorted(ROOT.glob("packages/*/src/tenfold/*/reported.toml"))
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("**/result.json"))


def test_built_papers_report_numbers() -> None:
    built = re.findall(r"^BUILT := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(path.parts[-5] for path in REPORTED) == sorted(built[0].split())


@pytest.mark.parametrize("path", REPORTED, ids=lambda path: path.parts[-5])
def test_reported_numbers_keep_to_the_schema(path: Path) -> None:
    schema = json.loads((SCHEMAS / "reported.schema.json").read_text(encoding="utf-8"))
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(content, schema)
    assert content["paper"] == path.parts[-5]
    keys = [
        tuple(row[key] for key in ("table", "dataset", "setting", "method", "metric"))
        for row in content["rows"]
    ]
    assert len(keys) == len(set(keys)), "two rows say the same thing"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parts[-4]}-{path.parts[-2]}")
def test_reference_results_keep_to_the_schema(path: Path) -> None:
    schema = json.loads((SCHEMAS / "result.schema.json").read_text(encoding="utf-8"))
    result = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(result, schema)
    assert path.parent.name == f"{result['name']}-seed{result['seed']}"
    for figure in result["figures"]:
        assert (path.parent / figure["file"]).is_file()


@pytest.mark.parametrize("path", REPORTED, ids=lambda path: path.parts[-5])
def test_records_of_every_profile_can_be_kept(path: Path) -> None:
    profiles = vars(importlib.import_module(f"tenfold.{path.parent.name}.profiles"))
    names = {name for table, content in profiles.items() if table.endswith("PROFILES") for name in content}
    assert {"smoke", "quick"} <= names
    schema = json.loads((SCHEMAS / "result.schema.json").read_text(encoding="utf-8"))["properties"]["profile"]
    for name in names:
        jsonschema.validate(name, schema)
        RunKey(path.parts[-5], name, "run", 0, "data", "setting", "method")
