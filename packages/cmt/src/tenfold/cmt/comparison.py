"""Methods and sensor conditions beside each other."""

from __future__ import annotations

from tenfold.cmt.figures import draw_conditions
from tenfold.cmt.suite_runs import ComparisonJob, ConditionJob, Suite, TrainJob, condition_title

SHARES = ("share of mAP", "share of NDS")


def metrics_of(suite: Suite, job: TrainJob | ConditionJob) -> dict[str, float]:
    """Metrics of a finished run."""
    metrics: dict[str, float] = (suite.run(job).result or {"metrics": {}})["metrics"]
    return metrics


def worse_of(suite: Suite, job: ConditionJob) -> dict[str, float]:
    """The lesser of each metric with LiDAR alone and with cameras alone."""
    single = [
        metrics_of(suite, ConditionJob(job.method, job.seed, condition))
        for condition in ("no-lidar", "no-cameras")
    ]
    names = [name for name in ("mAP", "NDS", *SHARES) if all(name in one for one in single)]
    return {name: min(one[name] for one in single) for name in names}


def run_comparison(suite: Suite, job: ComparisonJob) -> None:
    """Draw mAP and NDS of all methods under all conditions, and keep the means."""
    profile = suite.profile
    found: dict[str, float] = {}
    with suite.run(job) as run:
        for metric in ("mAP", "NDS"):
            values = {
                method.name: {
                    condition_title(condition): [
                        metrics_of(
                            suite,
                            TrainJob(method.name, seed)
                            if condition == "both"
                            else ConditionJob(method.name, seed, condition),
                        ).get(metric, 0.0)
                        for seed in profile.seeds
                    ]
                    for condition in ("both", *method.conditions)
                }
                for method in profile.methods
            }
            with run.figure(
                f"conditions-{metric}.png", f"{metric} of all methods with failing sensors"
            ) as path:
                draw_conditions(path, values, metric, f"{metric}, {profile.setting}")
            for name, by_condition in values.items():
                for condition, seeds in by_condition.items():
                    found[f"{metric}: {name}, {condition}"] = sum(seeds) / len(seeds)
        run.finish(found)
