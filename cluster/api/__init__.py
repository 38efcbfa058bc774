"""The cluster under `/api`: what it does now (`monitoring`), and what operators want of it (`operations`)."""
