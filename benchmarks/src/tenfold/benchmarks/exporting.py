"""A paper's tables as CSV, Markdown or LaTeX, for an appendix or a spreadsheet.

CSV keeps every number in a column of its own. Markdown and LaTeX show ``mean ± std`` as one would print it; LaTeX needs
the packages booktabs and longtable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Literal

import pandas as pd

from tenfold.benchmarks.evidence import paired_evidence
from tenfold.benchmarks.run_sets import SMOKE
from tenfold.benchmarks.summary import PaperPage
from tenfold.shared.comparison import Measurement
from tenfold.shared.logging import TenfoldError

Contents = Literal["reported", "measured", "claims"]
Format = Literal["csv", "markdown", "latex"]

TITLES: dict[Contents, str] = {
    "reported": "printed and reproduced numbers",
    "measured": "measured results",
    "claims": "claims",
}
CAPTIONS: dict[Contents, str] = {
    "claims": (
        "; intervals are percentile bootstrap intervals (95 %) of the mean difference of pairs with the same seed, "
        "too narrow for fewer than five pairs"
    )
}


def export(page: PaperPage, contents: Contents, form: Format, *, with_missing: bool = False) -> str:
    """One table of a paper as text.

    Args:
        page: the paper.
        contents: printed rows beside reproduced numbers, everything measured, or claims with their evidence.
        form: the text's format.
        with_missing: of printed rows, also those that were not reproduced.

    Raises:
        TenfoldError: there is nothing to export.
    """
    rows = list(
        {"reported": _reported(page, with_missing), "measured": _measured(page), "claims": _claims(page)}[
            contents
        ]
    )
    if not rows:
        paper = page.paper.id
        raise TenfoldError(
            f"there are no {TITLES[contents]} of {paper} to export: run `tenfold-{paper} reproduce` first"
        )
    table = pd.DataFrame(rows)
    if form == "csv":
        return str(table.to_csv(index=False))
    printed = _printed(table, latex=form == "latex")
    if form == "markdown":
        sides = ["right" if name in NUMBERS else "left" for name in printed.columns]
        cells = printed.map(lambda text: text.replace("|", "\\|"))
        return str(cells.to_markdown(index=False, disable_numparse=True, colalign=sides)) + "\n"
    caption = f"{page.paper.name}: {TITLES[contents]}{CAPTIONS.get(contents, '')}"
    columns = "".join("r" if name in NUMBERS else "l" for name in printed.columns)
    style = printed.style.hide(axis="index").format(escape="latex", subset=_texts(printed))
    return str(
        style.format_index(escape="latex", axis="columns").to_latex(
            hrules=True,
            environment="longtable",
            column_format=columns,
            caption=_latex_text(caption),
            label=f"tab:{page.paper.id}",
        )
    )


NUMBERS = ("paper", "reproduced", "measured", "difference", "needed", "paired", "interval", "pairs", "n")
"""Columns of Markdown and LaTeX tables that hold numbers."""


def _reported(page: PaperPage, with_missing: bool) -> Iterator[dict[str, Any]]:
    for table in page.tables:
        for row, joins in table.rows:
            about = {
                "table": table.name,
                "dataset": row.dataset,
                "setting": row.setting,
                "method": row.method,
                "metric": row.metric,
                "unit": row.unit,
                "paper": row.value,
                "paper_std": row.std,
            }
            for join in joins:
                measured = join.measurement
                yield about | {
                    "reproduced": measured.mean,
                    "reproduced_std": measured.std,
                    "difference": join.comparison.difference,
                    "n": len(measured.values),
                    "profile": join.run_set.profile,
                    "source": join.run_set.source,
                }
            if not joins and with_missing:
                yield about | {
                    "reproduced": None,
                    "reproduced_std": None,
                    "difference": None,
                    "n": 0,
                    "profile": "",
                    "source": "",
                }


def _measured(page: PaperPage) -> Iterator[dict[str, Any]]:
    for profile in page.profiles:
        for measured in profile.measurements if profile.run_set.profile != SMOKE else ():
            yield {
                "profile": profile.run_set.profile,
                "source": profile.run_set.source,
                "dataset": measured.dataset,
                "setting": measured.setting,
                "method": measured.method,
                "metric": measured.metric,
                "measured": measured.mean,
                "measured_std": measured.std,
                "n": len(measured.values),
            }


def _claims(page: PaperPage) -> Iterator[dict[str, Any]]:
    for judged in page.claims:
        claim = judged.claim
        for run_set, verdict in judged.judged:
            evidence = paired_evidence(verdict)
            low, high = (evidence and evidence.interval) or (None, None)
            yield {
                "profile": run_set.profile,
                "source": run_set.source,
                "claim": claim.text,
                "metric": claim.metric,
                "better": _with_mean(claim.better, verdict.better),
                "worse": _with_mean(claim.worse, verdict.worse),
                "difference": verdict.difference,
                "needed": claim.margin,
                "paired": None if evidence is None else evidence.mean,
                "interval_low": low,
                "interval_high": high,
                "pairs": 0 if evidence is None else len(evidence.pairs),
                "holds": {True: "yes", False: "no", None: "not judged"}[verdict.holds],
            }


def _with_mean(method: str, measurement: Measurement | None) -> str:
    return method if measurement is None else f"{method} ({measurement.mean:.4g})"


def _printed(table: pd.DataFrame, *, latex: bool) -> pd.DataFrame:
    """Every cell as text: a mean with its deviation in one column, an interval with both ends."""
    shown: dict[str, list[str]] = {}
    rows = table.to_dict(orient="records")
    for name in table.columns:
        if name.endswith("_std") or name == "interval_high":
            continue
        if name == "interval_low":
            shown["interval"] = [_interval(row["interval_low"], row["interval_high"], latex) for row in rows]
        elif name in NUMBERS:
            shown[name] = [_number(row[name], row.get(f"{name}_std"), latex) for row in rows]
        else:
            shown[name] = [" ".join(str(row[name]).split()) for row in rows]
    return pd.DataFrame(shown)


def _latex_text(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _number(mean: float | None, std: float | None, latex: bool) -> str:
    if mean is None or math.isnan(mean):
        return "–"
    text, sign = f"{mean:.4g}", r"\pm" if latex else "±"
    if std is not None and not math.isnan(std):
        decimals = max(0, min(6, 1 - math.floor(math.log10(std)))) if std > 0 else 2
        text = f"{mean:.{decimals}f} {sign} {std:.{decimals}f}"
    return f"${_power_of_ten(text)}$" if latex else text


def _power_of_ten(text: str) -> str:
    """``1e-05`` as mathematics."""
    return re.sub(r"e([+-]\d+)", lambda found: rf" \cdot 10^{{{int(found[1])}}}", text)


def _interval(low: float | None, high: float | None, latex: bool) -> str:
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return "–"
    text = f"[{low:.3g}, {high:.3g}]"
    return f"${_power_of_ten(text)}$" if latex else text


def _texts(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name not in NUMBERS]
