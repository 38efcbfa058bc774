"""Asks `/api` whatever its own schema allows, and much that it does not, and judges the answers by the schema.

No answer may be a 5xx, of an undeclared status or type, or of another shape than declared, and what the
schema forbids must not succeed. Schemathesis makes up the questions from the schema alone. What the
schema allows may still be refused: it cannot say that a time must lie in the future.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import positive_data_acceptance
from schemathesis.specs.openapi.schemas import OpenApiSchema

QUICK = settings(
    max_examples=4,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def fuzz(
    schema: OpenApiSchema,
    token: Callable[[], str],
    known: Mapping[str, Any],
    *,
    budget: settings = QUICK,
    **transport: Any,
) -> int:
    """Ask everything, a fresh `token` for each operation; return how many questions that were.

    `known` has path parameters that lead to something; without them ids are made up.
    """
    asked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        given_names = {parameter.name for parameter in operation.path_parameters}
        paths = [None, {name: known[name] for name in given_names}] if given_names else [None]
        headers = {"Authorization": f"Bearer {token()}"}
        for mode in GenerationMode:
            for path in paths:
                asked += _ask(operation, mode, path, headers, budget, transport)
    return asked


def _ask(
    operation: APIOperation[Any, Any, Any, Any],
    mode: GenerationMode,
    path: dict[str, Any] | None,
    headers: dict[str, str],
    budget: settings,
    transport: dict[str, Any],
) -> int:
    asked = 0

    @budget
    @given(case=operation.as_strategy(generation_mode=mode, path_parameters=path))
    def ask(case: Any) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance], **transport)

    ask()
    return asked
