"""Reproduces the smoke profiles of papers in the processes of torchrun: ``distributed_reproduce.py OUTPUT PAPER...``.

One pair of processes does one paper after another, so that torch is imported twice and not twenty times. Each process
writes the exit status of every paper to ``OUTPUT/statuses-RANK.json``.
"""

import importlib
import json
import os
import sys
from pathlib import Path


def main() -> None:
    output, *papers = sys.argv[1:]
    statuses = {}
    for paper in papers:
        cli = importlib.import_module(f"tenfold.{paper.replace('-', '_')}.cli")
        print(f"== {paper}", file=sys.stderr, flush=True)
        try:
            cli.main(
                ["reproduce", "--profile", "smoke", "--device", "cpu", "--seeds", "0", "--output", output]
            )
        except SystemExit as ending:
            statuses[paper] = ending.code
        Path(output, f"statuses-{os.environ['RANK']}.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main()
