"""The data that the pages' scripts read: JSON in script files, so that the site works without a server."""

from __future__ import annotations

import json
from typing import Any

from tenfold.benchmarks import formatting
from tenfold.benchmarks.curves import Band, rounded, thinned_curve
from tenfold.benchmarks.run_sets import hardware_name
from tenfold.benchmarks.summary import PaperPage, RunView, flattened

ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def script(paper: str, kind: str, data: Any) -> str:
    """A script that hands ``data`` to the page as ``window.tenfold.<kind>[<paper>]``.

    The JSON travels as a string through JSON.parse, so that keys such as ``__proto__`` stay plain keys, and
    is escaped so that no value can end a script element.
    """
    text = json.dumps(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    place = f"((window.tenfold ??= {{}}).{kind} ??= {{}})[{json.dumps(paper)}]"
    return f"{place} = JSON.parse({text.translate(ESCAPES)});\n"


def curve_data(page: PaperPage) -> dict[str, Any]:
    """The learning-curve figures in the order of the page, and the methods in order of colour."""
    figures = [figure for profile in page.profiles for figure in profile.curves]
    methods = dict.fromkeys(band.method for figure in figures for band in figure.bands)
    return {
        "methods": list(methods),
        "figures": [
            {"name": figure.name, "x_label": figure.x_label, "bands": [_band(band) for band in figure.bands]}
            for figure in figures
        ],
    }


def compare_data(page: PaperPage) -> list[dict[str, Any]]:
    """The runs of a paper as the compare page shows them. Mappings become lists of pairs."""
    return [_run(run) for run in page.runs]


def _band(band: Band) -> dict[str, Any]:
    return {
        "method": band.method,
        "seeds": band.seeds,
        "x": rounded(band.x, digits=9),
        **{name: rounded(getattr(band, name)) for name in ("mean", "low", "high")},
    }


def _run(run: RunView) -> dict[str, Any]:
    content, environment = run.record.content, run.record.content["environment"]
    timing = content["timing"]
    throughput = timing["throughput"]
    unit = f" {timing['throughput_unit']}" if timing["throughput_unit"] else ""
    return {
        "key": run.key,
        **{
            key: content[key] for key in ("profile", "name", "method", "dataset", "setting", "seed", "status")
        },
        "source": run.record.source,
        "date": formatting.date(run.record.started_at),
        "metrics": [[name, value, formatting.number(value)] for name, value in content["metrics"].items()],
        "timing": [
            ["duration", timing["seconds"], formatting.duration(timing["seconds"])],
            ["throughput", throughput, "–" if throughput is None else formatting.number(throughput) + unit],
            ["peak memory", timing["peak_memory_bytes"], formatting.memory(timing["peak_memory_bytes"])],
        ],
        "config": list(run.config.items()),
        "environment": [
            ["hardware", hardware_name(environment)],
            ["command", environment["command"]],
            *flattened({key: environment[key] for key in ("git", "python", "platform", "packages")}).items(),
        ],
        "curves": [[name, thinned_curve(curve)] for name, curve in content["curves"].items() if curve["x"]],
    }
