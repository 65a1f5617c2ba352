"""Runs side by side in the terminal: metrics, time, and what differs in configuration and environment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenfold.benchmarks import formatting
from tenfold.benchmarks.records import RunRecord
from tenfold.benchmarks.run_sets import hardware_name
from tenfold.benchmarks.summary import flattened


def print_side_by_side(records: Sequence[RunRecord], console: Console) -> None:
    """Print the tables; with two runs, metrics also get their difference."""
    columns = dict(zip(_letters(len(records)), records, strict=True))
    console.print(_key_table(columns))
    console.print(_metric_table(columns))
    console.print(_timing_table(columns))
    settings = {name: flattened(record.content["config"]) for name, record in columns.items()}
    console.print(_difference_table("configuration: what differs", settings, "the same configuration"))
    surroundings = {name: _surroundings(record) for name, record in columns.items()}
    console.print(_difference_table("environment: what differs", surroundings, "the same environment"))


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + index) if count <= 26 else str(index + 1) for index in range(count)]


def _key_table(columns: Mapping[str, RunRecord]) -> Table:
    table = Table(title=f"runs of {next(iter(columns.values())).paper}", title_justify="left")
    for name in ("", "run", "profile", "method", "dataset", "setting", "status", "date", "from"):
        table.add_column(name)
    for letter, record in columns.items():
        content = record.content
        about = (content["method"], content["dataset"], content["setting"])
        status = "[red]failed[/]" if content["status"] == "failed" else "finished"
        table.add_row(
            letter,
            escape(record.label),
            escape(record.profile),
            *map(escape, about),
            status,
            formatting.date(record.started_at),
            escape(record.source),
        )
    return table


def _metric_table(columns: Mapping[str, RunRecord]) -> Table:
    two = len(columns) == 2
    table = Table(title="metrics", title_justify="left")
    table.add_column("metric")
    for name in [*columns, *(["B − A"] if two else [])]:
        table.add_column(name, justify="right")
    for metric in _union(record.content["metrics"] for record in columns.values()):
        values = [record.content["metrics"].get(metric) for record in columns.values()]
        cells = [formatting.number(value) for value in values]
        if two:
            known = None not in values
            cells.append(formatting.number(values[1] - values[0], signed=True, digits=3) if known else "–")
        table.add_row(escape(metric), *cells)
    return table


def _timing_table(columns: Mapping[str, RunRecord]) -> Table:
    table = Table(title="time and memory", title_justify="left")
    table.add_column("quantity")
    for name in columns:
        table.add_column(name, justify="right")
    timings = [record.content["timing"] for record in columns.values()]
    table.add_row("duration", *(formatting.duration(timing["seconds"]) for timing in timings))
    table.add_row(
        "throughput",
        *(
            f"{formatting.number(timing['throughput'])} {escape(timing['throughput_unit'] or '')}"
            for timing in timings
        ),
    )
    table.add_row("peak memory", *(formatting.memory(timing["peak_memory_bytes"]) for timing in timings))
    return table


def _difference_table(title: str, flat: Mapping[str, Mapping[str, str]], same: str) -> Table | str:
    """The keys whose values are not the same in all columns; a sentence where there are none."""
    rows = [
        (key, [values.get(key, "not set") for values in flat.values()])
        for key in _union(flat.values())
        if len({values.get(key) for values in flat.values()}) > 1
    ]
    if not rows:
        return f"[dim]{same}[/]"
    table = Table(title=title, title_justify="left")
    table.add_column("key")
    for name in flat:
        table.add_column(name)
    for key, values in rows:
        table.add_row(escape(key), *map(escape, values))
    return table


def _surroundings(record: RunRecord) -> dict[str, str]:
    environment = record.content["environment"]
    versions = {key: environment[key] for key in ("git", "python", "platform", "packages")}
    return {
        "hardware": hardware_name(environment),
        "command": environment["command"],
        **flattened(versions),
    }


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys in order of first appearance."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
