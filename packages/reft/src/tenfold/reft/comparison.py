"""All methods of a suite in pictures, and what the first of a setting has more than the others, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tenfold.reft.evaluation import confidence_interval
from tenfold.reft.figures import draw_ablation, draw_bars, draw_per_class_gain
from tenfold.reft.suite_runs import (
    MOST_BARS,
    ComparisonJob,
    Suite,
)
from tenfold.reft.suites import Method


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """NAP and bAP of all methods, and what the first of a setting has more than the others, seed by seed."""
    found: dict[str, float] = {}
    with suite.run(job) as run:
        settings = dict.fromkeys(
            (method.setting, shots) for method in suite.profile.methods for shots in method.finetuning
        )
        for setting, shots in settings:
            methods = [
                method
                for method in suite.profile.methods
                if method.setting == setting and shots in method.finetuning
            ]
            title = methods[0].title(shots)
            values = {method.name: values_of(suite, method, shots) for method in methods}
            found |= paired(title, values)
            floors = None
            if suite.profile.judge_before:
                before = [
                    values_of(suite, method, min(method.finetuning), learns=False)["nAP"]
                    for method in methods
                ]
                floors = {"nAP": statistics.fmean(statistics.fmean(seeds) for seeds in before)}
            name = f"{setting}-{shots}"
            with run.figure(f"{name}.png", f"{title}: AP of novel and base classes, all seeds") as path:
                if len(methods) > MOST_BARS:
                    draw_ablation(path, {title: values}, ("nAP", "bAP"))
                else:
                    draw_bars(path, values, title, floors)
            if len(methods) > 1 and suite.profile.data.dataset == "digits":
                with run.figure(
                    f"{name}-classes.png", f"{title}: {methods[0].name} less {methods[1].name}, by class"
                ) as path:
                    base, novel = class_gains(suite, methods[0], methods[1], shots)
                    draw_per_class_gain(path, base, novel, f"{methods[0].name} less {methods[1].name}")
        run.finish(found)


def results_of(suite: Suite, method: Method, shots: int, learns: bool = True) -> list[dict[str, float]]:
    """Metrics of a method, seed by seed."""
    return [
        (suite.run(arm).result or {"metrics": {}})["metrics"] for arm in suite.arms(method, shots, learns)
    ]


def values_of(suite: Suite, method: Method, shots: int, learns: bool = True) -> dict[str, list[float]]:
    """AP of the masks of novel and base classes, seed by seed."""
    results = results_of(suite, method, shots, learns)
    return {
        name: [metrics[f"segm_{name}"] for metrics in results]
        for name in ("nAP", "bAP")
        if all(f"segm_{name}" in metrics for metrics in results)
    }


def paired(title: str, values: dict[str, dict[str, list[float]]]) -> dict[str, float]:
    """Differences of the first method to the others, with half the width of a 95 % interval over seeds."""
    first, *others = values
    found = {}
    for other in others:
        for metric, theirs in values[other].items():
            gains = [mine - their for mine, their in zip(values[first][metric], theirs, strict=True)]
            name = f"{title}, {metric}: {first} - {other}"
            found[name] = statistics.fmean(gains)
            if len(gains) > 1:
                found[f"{name}, 95 % half width"] = confidence_interval(gains)[1]
    return found


def class_gains(
    suite: Suite, method: Method, other: Method, shots: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean difference of two methods for each base and each novel class."""
    split, results = suite.source.split, [results_of(suite, one, shots) for one in (method, other)]

    def gains(categories: Sequence[int]) -> dict[str, float]:
        gained = {}
        for name in suite.source.names(categories):
            pairs = zip(*results, strict=True)
            key = f"segm_AP of {name}"
            differences = [mine[key] - theirs[key] for mine, theirs in pairs if key in mine and key in theirs]
            if differences:
                gained[name] = statistics.fmean(differences)
        return gained

    return gains(split.categories("base")), gains(split.categories("fsis"))
