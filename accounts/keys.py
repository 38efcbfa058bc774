"""What an API key looks like: a secret of the kind `sk-`, or `sk-test-` for simulated workers only.

Pure. The form itself, shared with worker tokens, is in `gpucloud.lib.secret`; which keys exist
is the business of `services` and `selectors`, which one may pass that of `keyring`.
"""

from __future__ import annotations

from gpucloud.lib.secret import PRIVATE_CHARS, make_secret, mask, prefix_of
from gpucloud.lib.secret import digest_secret as digest_key
from gpucloud.lib.secret import is_well_formed as _is_well_formed

__all__ = ["KIND", "PRIVATE_CHARS", "TEST_KIND", "digest_key", "is_well_formed", "make_key", "mask", "prefix_of"]

KIND = "sk-"
TEST_KIND = "sk-test-"


def make_key(*, test: bool = False) -> str:
    """Return a new key."""
    return make_secret(TEST_KIND if test else KIND)


def is_well_formed(secret: str | bytes) -> bool:
    """Tell whether `secret` could be a key of ours: its length, kind, alphabet and checksum."""
    return _is_well_formed(KIND, secret) or _is_well_formed(TEST_KIND, secret)
