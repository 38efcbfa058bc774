"""What of the ledger is under `/api`: usage, requests, and how requests went.

One rule says whose rows these are, in `spans.WhoseView`. All of it is read through `selectors`.
"""
