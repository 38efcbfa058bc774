"""Carriers between gateways and the dispatcher. `base` is the whole contract."""
