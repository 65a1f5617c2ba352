"""Every stored result checked again: schema, place, configuration hash, figures, and the claims it carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from tenfold.benchmarks.figures import figures_of
from tenfold.benchmarks.records import Collection, Problem, RunRecord
from tenfold.benchmarks.run_sets import SMOKE, RunSet, run_sets
from tenfold.benchmarks.sources import run_key
from tenfold.shared.comparison import Verdict


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found. ``failures`` are records that are wrong and claims that do not hold."""

    failures: tuple[str, ...]
    notes: tuple[str, ...]
    records: int
    held: int
    failed: int
    incomplete: int


def verify(collection: Collection) -> Verification:
    """Check all records again. Problems that were found while reading are failures, too.

    A claim without the runs of one of its methods is a note: the profile is not finished, but nothing is wrong.
    """
    failures = [str(problem) for problem in collection.problems]
    failures += [str(problem) for record in collection.records for problem in record_problems(record)]
    notes = [
        f"{run.paper}/{run.profile}/{run.label}: has no result yet; the command that began it goes on"
        for run in collection.unfinished
    ]
    outcomes: Counter[bool | None] = Counter()
    for run_set, verdict, paper in judged(collection):
        outcomes[verdict.holds] += 1
        sentence = _sentence(paper, run_set, verdict)
        if verdict.holds is False:
            failures.append(sentence)
        elif verdict.holds is None:
            notes.append(sentence)
    return Verification(
        tuple(failures),
        tuple(notes),
        len(collection.records),
        held=outcomes[True],
        failed=outcomes[False],
        incomplete=outcomes[None],
    )


def record_problems(record: RunRecord) -> Iterator[Problem]:
    """What the schema cannot see: a configuration that does not give its hash, a figure that is not there."""
    from tenfold.shared.runs import config_hash  # here, because it imports torch, which the pages do without

    if config_hash(record.content["config"]) != record.content["config_hash"]:
        reason = "the configuration was changed after the run: it does not give config_hash; repeat the run"
        yield Problem(run_key(record), reason, record.paper)
    for figure in figures_of(record):
        if figure.path is None:
            yield Problem(run_key(record), f"the figure {figure.file} {figure.note}", record.paper)


def judged(collection: Collection) -> Iterator[tuple[RunSet, Verdict, str]]:
    """Each claim with each run set of its profile, without smoke tests."""
    for paper in collection.papers:
        for run_set in run_sets(paper, collection.records_of(paper.id)):
            if run_set.profile != SMOKE:
                yield from ((run_set, verdict, paper.id) for verdict in run_set.verdicts)


def _sentence(paper: str, run_set: RunSet, verdict: Verdict) -> str:
    claim, place = verdict.claim, f"{run_set.source}/{paper}/{run_set.profile}"
    if verdict.difference is None:
        missing = claim.better if verdict.better is None else claim.worse
        return f"{place}: claim {claim.id} is not judged: no finished run of {missing}"
    return (
        f"{place}: claim {claim.id} does not hold: {claim.metric} of {claim.better} and {claim.worse} "
        f"differ by {verdict.difference:+.4g}, needed {claim.margin:g}"
    )
