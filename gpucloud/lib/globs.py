"""Lists of globs over model ids, such as `["llama-*", "gpt-4o"]`: who may use or serve which model.

The one place where they are checked; `["*"]` means any model.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from django.core.exceptions import ValidationError

MAX_GLOBS = 64
MAX_GLOB_CHARS = 64


def validate_globs(value: object) -> None:
    """Refuse what is not a list of one or more globs."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_GLOBS:
        raise ValidationError(f'Expected a list of 1 to {MAX_GLOBS} globs of model ids, such as ["llama-*"].')
    for glob in value:
        if not isinstance(glob, str) or not 1 <= len(glob) <= MAX_GLOB_CHARS or not glob.isprintable():
            raise ValidationError(f"{glob!r} is not a glob: expected 1 to {MAX_GLOB_CHARS} printable characters.")


def any_model() -> list[str]:
    """Return the globs that match every model."""
    return ["*"]


def is_match(model: str, globs: Iterable[str]) -> bool:
    """Tell whether a model's id matches one of the globs, in this very case."""
    return any(fnmatchcase(model, glob) for glob in globs)
