"""`python -m cluster.worker`: a worker on a machine that has no Django."""

from __future__ import annotations

import sys

from cluster.worker.cli import main

if __name__ == "__main__":
    sys.exit(main())
