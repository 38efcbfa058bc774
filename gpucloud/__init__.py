"""gpucloud: the site that joins accounts, inference and cluster."""

from __future__ import annotations

__version__ = "0.1.0"
