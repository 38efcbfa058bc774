"""The language models: their shapes, and what their weights and caches take.

Only data and arithmetic. To serve another model, add a card to `LLMS`. What fits on a worker is
decided in `kvcache.py`, how fast a model runs in `latency.py`.

Shapes are those of the published checkpoints' config.json. The vendors of `gpt-*` and `claude-*`
have published none: their cards run with the shape of an open model, name it in `stand_in`, and
say so to clients. Nothing about such a model's speed is a statement about the vendor's.
"""

from __future__ import annotations

import msgspec


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """How weights are stored. Embeddings and the output head stay in 16 bit."""

    attention_bytes: float
    mlp_bytes: float
    dequantisation: float
    """Share of the weight bandwidth that is left after unpacking."""
    fp8_compute: bool = False


DTYPES: dict[str, Precision] = {
    "bf16": Precision(attention_bytes=2.0, mlp_bytes=2.0, dequantisation=1.0),
    "fp8": Precision(attention_bytes=1.0, mlp_bytes=1.0, dequantisation=0.95, fp8_compute=True),
    "int4": Precision(attention_bytes=0.5625, mlp_bytes=0.5625, dequantisation=0.70),
    "mxfp4": Precision(attention_bytes=2.0, mlp_bytes=0.53, dequantisation=0.85),
}
KV_BYTES = 2
"""Keys and values are kept in 16 bit, whatever the weights are in."""


class Shape(msgspec.Struct, frozen=True):
    """A decoder-only transformer, as far as time and memory depend on it."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    params: int
    experts: int = 1
    experts_used: int = 1
    kv_read_share: float = 1.0
    """One half where every second layer looks back over a short window only."""

    @property
    def attention_params(self) -> int:
        """Attention weights per layer."""
        return 2 * self.width * self.head_width * (self.heads + self.kv_heads)

    @property
    def mlp_params(self) -> int:
        """Feed-forward weights per layer and expert."""
        return 3 * self.width * self.mlp_width

    def experts_touched(self, tokens: int) -> float:
        """Return how many experts per layer a batch reads, with uniform routing."""
        if self.experts == 1:
            return 1.0
        return float(self.experts * (1 - (1 - self.experts_used / self.experts) ** tokens))

    def weights_bytes(self, dtype: str) -> int:
        """Return the size of all weights."""
        precision = DTYPES[dtype]
        attention = self.layers * self.attention_params
        mlp = self.layers * self.experts * self.mlp_params
        rest = max(self.params - attention - mlp, 0)
        return round(attention * precision.attention_bytes + mlp * precision.mlp_bytes + rest * 2)

    def kv_bytes_per_token(self, tp: int) -> int:
        """Return the cache of one token on one GPU; below one head per GPU, heads are copied."""
        return 2 * self.layers * max(1, self.kv_heads // tp) * self.head_width * KV_BYTES


class LlmCard(msgspec.Struct, frozen=True, kw_only=True):
    """One model id that workers can serve."""

    id: str
    owned_by: str
    shape: Shape
    context_tokens: int
    dtype: str = "bf16"
    """The precision it is served in unless the operator asks for another."""
    stand_in: str | None = None
    """The open model whose shape is simulated in place of one that its vendor keeps closed."""


_LLAMA_2_7B = Shape(32, 4096, 32, 32, 128, 11008, 32000, 6_738_000_000)
_LLAMA_2_70B = Shape(80, 8192, 64, 8, 128, 28672, 32000, 68_977_000_000)
_LLAMA_3_8B = Shape(32, 4096, 32, 8, 128, 14336, 128256, 8_030_000_000)
_LLAMA_3_70B = Shape(80, 8192, 64, 8, 128, 28672, 128256, 70_554_000_000)
_MISTRAL_7B = Shape(32, 4096, 32, 8, 128, 14336, 32000, 7_242_000_000)
_MIXTRAL_8X7B = Shape(32, 4096, 32, 8, 128, 14336, 32000, 46_703_000_000, experts=8, experts_used=2)
_GPT_OSS_20B = Shape(24, 2880, 64, 8, 64, 2880, 201088, 20_915_000_000, experts=32, experts_used=4, kv_read_share=0.5)
_GPT_OSS_120B = Shape(
    36, 2880, 64, 8, 64, 2880, 201088, 116_829_000_000, experts=128, experts_used=4, kv_read_share=0.5
)


def _openai(id: str, shape: Shape, context_tokens: int, stand_in: str) -> LlmCard:
    return LlmCard(
        id=id, owned_by="openai", shape=shape, context_tokens=context_tokens, dtype="mxfp4", stand_in=stand_in
    )


def _anthropic(id: str) -> LlmCard:
    return LlmCard(
        id=id,
        owned_by="anthropic",
        shape=_LLAMA_3_70B,
        context_tokens=200_000,
        dtype="fp8",
        stand_in="llama-3.1-70b",
    )


_CARDS = (
    _openai("gpt-4", _GPT_OSS_120B, 8_192, "gpt-oss-120b"),
    _openai("gpt-4o", _GPT_OSS_120B, 128_000, "gpt-oss-120b"),
    _openai("gpt-3.5-turbo", _GPT_OSS_20B, 16_385, "gpt-oss-20b"),
    _anthropic("claude-3"),
    _anthropic("claude-3-opus"),
    _anthropic("claude-3-sonnet"),
    LlmCard(id="llama-2-7b", owned_by="meta", shape=_LLAMA_2_7B, context_tokens=4_096),
    LlmCard(id="llama-2-70b", owned_by="meta", shape=_LLAMA_2_70B, context_tokens=4_096),
    LlmCard(id="llama-3-8b", owned_by="meta", shape=_LLAMA_3_8B, context_tokens=8_192),
    LlmCard(id="llama-3-70b", owned_by="meta", shape=_LLAMA_3_70B, context_tokens=8_192),
    LlmCard(id="mistral-7b", owned_by="mistralai", shape=_MISTRAL_7B, context_tokens=32_768),
    LlmCard(id="mixtral-8x7b", owned_by="mistralai", shape=_MIXTRAL_8X7B, context_tokens=32_768),
)
LLMS: dict[str, LlmCard] = {card.id: card for card in _CARDS}


class UnknownLlm(LookupError):
    """No card has this id; the text lists those that exist."""


def get_llm(id: str) -> LlmCard:
    """Return the card of that model id."""
    card = LLMS.get(id)
    if card is None:
        raise UnknownLlm(f"Model {id!r} is not known; choose among {', '.join(LLMS)}.")
    return card
