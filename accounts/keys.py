"""What an API key looks like: a secret of the kind `sk-`.

Pure. The form itself, shared with worker tokens, is in `gpucloud.lib.secret`; which keys exist
is the business of `services` and `selectors`, which one may pass that of `keyring`.
"""

from __future__ import annotations

from gpucloud.lib.secret import PREFIX_CHARS, make_secret, mask, prefix_of
from gpucloud.lib.secret import digest_secret as digest_key
from gpucloud.lib.secret import is_well_formed as _is_well_formed

__all__ = ["KIND", "PREFIX_CHARS", "digest_key", "is_well_formed", "make_key", "mask", "prefix_of"]

KIND = "sk-"


def make_key() -> str:
    """Return a new key."""
    return make_secret(KIND)


def is_well_formed(secret: str | bytes) -> bool:
    """Tell whether `secret` could be a key of ours: its length, kind, alphabet and checksum."""
    return _is_well_formed(KIND, secret)
