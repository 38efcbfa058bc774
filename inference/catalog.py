"""The models this cloud knows by name, and what it says of them on `/v1/models`.

A model is known because a card describes it; whether it can be had now is the scheduler's affair.
Closed models are stand-ins, and say so.
"""

from __future__ import annotations

import msgspec

from cluster.simulation.llms import LLMS

CREATED = 1_763_856_000
"""When this catalogue was made: OpenAI's clients expect a timestamp on every model."""

DEFAULT_MAX_TOKENS = 2_048
"""What a request may generate when it does not say: it is also what it reserves on a worker."""


class ModelNote(msgspec.Struct, frozen=True):
    """Our own words about a model, beside OpenAI's fields."""

    simulated: bool
    stand_in: str | None
    context_tokens: int


class ModelObject(msgspec.Struct, frozen=True, tag_field="object", tag="model"):
    """A model as `/v1/models` shows it."""

    id: str
    created: int
    owned_by: str
    gpucloud: ModelNote


def list_models() -> list[ModelObject]:
    """Return every model of the catalogue, by id."""
    return [MODELS[model] for model in sorted(MODELS)]


MODELS = {
    card.id: ModelObject(
        id=card.id,
        created=CREATED,
        owned_by=card.owned_by,
        gpucloud=ModelNote(simulated=True, stand_in=card.stand_in, context_tokens=card.context_tokens),
    )
    for card in LLMS.values()
}
