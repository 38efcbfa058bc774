"""`python -m tests.simulation`: run seeds, or replay one with its log.

python -m tests.simulation --seeds 500
python -m tests.simulation --seed 17
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")


def main() -> int:
    """Run what the arguments ask for and return 1 if anything was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, help="replay this one, with its log")
    parser.add_argument("--seeds", type=int, default=500, metavar="N", help="run so many; default: 500")
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="the first of them; default: 1")
    parser.add_argument("--kinds", nargs="+", default=[], metavar="KIND", help="only faults of these kinds")
    parser.add_argument("--events", type=int, default=300, metavar="N", help="events of a run; default: 300")
    options = parser.parse_args()

    import django

    django.setup()
    from tests.simulation.runner import Report, run_seed, run_seeds

    kinds = tuple(options.kinds)
    if options.seed is None:
        report = run_seeds(range(options.first, options.first + options.seeds), events=options.events, kinds=kinds)
    else:
        log: list[str] = []
        report = Report()
        run_seed(options.seed, report, events=options.events, kinds=kinds, log=log)
        print("\n".join(log))
    print(report)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
