"""gpucloud: the site that joins accounts, inference and cluster."""

__version__ = "0.1.0"
