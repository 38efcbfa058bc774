"""What may be asked of `/v1/chat/completions`: the request, parsed and checked.

`parse_chat` is the way in. Every parameter of OpenAI's is named here: those that work have a type,
those not built yet have the values that change nothing and are accepted, and anything else is
refused. None is ignored in silence.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from inference.openai.errors import ApiError, invalid
from inference.openai.parsing import decode_json

MAX_MESSAGES = 2_048
MAX_METADATA = 16

Name = Annotated[str, Meta(min_length=1, max_length=64)]


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """One text part of a message."""

    text: str


class _ImagePart(msgspec.Struct, tag_field="type", tag="image_url"):
    image_url: Raw = Raw(b"null")


class _AudioPart(msgspec.Struct, tag_field="type", tag="input_audio"):
    input_audio: Raw = Raw(b"null")


class _FilePart(msgspec.Struct, tag_field="type", tag="file"):
    file: Raw = Raw(b"null")


class _RefusalPart(msgspec.Struct, tag_field="type", tag="refusal"):
    refusal: str


Part = TextPart | _ImagePart | _AudioPart | _FilePart | _RefusalPart
Content = str | Annotated[list[Part], Meta(min_length=1)]


class SystemMessage(msgspec.Struct, tag_field="role", tag="system", forbid_unknown_fields=True):
    content: Content
    name: Name | None = None


class DeveloperMessage(msgspec.Struct, tag_field="role", tag="developer", forbid_unknown_fields=True):
    content: Content
    name: Name | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user", forbid_unknown_fields=True):
    content: Content
    name: Name | None = None


class ToolCall(msgspec.Struct):
    """A call an assistant made earlier in the conversation; read as history only."""

    id: str
    function: Raw = Raw(b"null")


class AssistantMessage(msgspec.Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True):
    content: Content | None = None
    name: Name | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: Raw | None = None
    audio: Raw | None = None
    annotations: Raw | None = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool", forbid_unknown_fields=True):
    content: Content
    tool_call_id: str | None = None
    name: Name | None = None


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a chat completion. Parameters typed `Raw` are listed in `_HARMLESS`."""

    model: Annotated[str, Meta(max_length=256)]
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1, le=2**53)] | None = None
    stop: (
        Annotated[str, Meta(min_length=1)]
        | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=4)]
        | None
    ) = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    user: Annotated[str, Meta(max_length=256)] | None = None
    safety_identifier: Annotated[str, Meta(max_length=256)] | None = None
    metadata: dict[str, Any] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    store: bool | None = None
    parallel_tool_calls: bool | None = None
    service_tier: Literal["auto", "default", "flex", "priority"] | None = None
    response_format: Raw | UnsetType = UNSET
    modalities: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    tool_choice: Raw | UnsetType = UNSET
    functions: Raw | UnsetType = UNSET
    function_call: Raw | UnsetType = UNSET
    audio: Raw | UnsetType = UNSET
    moderation: Raw | UnsetType = UNSET
    prediction: Raw | UnsetType = UNSET
    prompt_cache_key: Raw | UnsetType = UNSET
    prompt_cache_retention: Raw | UnsetType = UNSET
    prompt_cache_options: Raw | UnsetType = UNSET
    reasoning_effort: Raw | UnsetType = UNSET
    verbosity: Raw | UnsetType = UNSET
    web_search_options: Raw | UnsetType = UNSET
    priority: Raw | UnsetType = UNSET

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, none, one or several."""
        match self.stop:
            case None:
                return ()
            case str():
                return (self.stop,)
            case _:
                return tuple(self.stop)


def parse_chat(body: bytes) -> ChatRequest:
    """Return the request in `body`, or raise an `ApiError` that names the parameter at fault."""
    chat = decode_json(body, _decoder)
    if not chat.model:
        raise invalid("you must provide a model parameter", code=None, param=None)
    _check_combinations(chat)
    _check_unbuilt(chat)
    _check_messages(chat.messages)
    return chat


def text_of(content: Content | None, path: str) -> str:
    """Return a message's text, its parts joined; refuse parts that are not text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        match part:
            case TextPart():
                texts.append(part.text)
            case _RefusalPart():
                texts.append(part.refusal)
            case _:
                kind = part.__struct_config__.tag
                raise invalid(
                    f"Content parts of type '{kind}' are not supported: send parts of type 'text'.",
                    code="unsupported_value",
                    param=f"{path}.content[{index}].type",
                )
    return "".join(texts)


def _check_combinations(chat: ChatRequest) -> None:
    if chat.stream_options is not None and not chat.stream:
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            code="invalid_value",
            param="stream_options",
        )
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        raise invalid(
            "Set 'max_tokens' or 'max_completion_tokens', not both.",
            code="invalid_value",
            param="max_completion_tokens",
        )
    if chat.metadata:
        _check_metadata(chat.metadata)


def _check_metadata(metadata: dict[str, Any]) -> None:
    if len(metadata) > MAX_METADATA:
        raise invalid(
            f"Invalid 'metadata': expected at most {MAX_METADATA} properties.",
            code="object_above_max_properties",
            param="metadata",
        )
    for key, value in metadata.items():
        path = f"metadata.{key[:64]}"
        if not isinstance(value, str):
            raise invalid(f"Invalid type for '{path}': expected a string.", code="invalid_type", param=path)
        if len(key) > 64 or len(value) > 512:
            raise invalid(
                "'metadata' holds keys of at most 64 and values of at most 512 characters.",
                code="string_above_max_length",
                param=path,
            )


def _check_unbuilt(chat: ChatRequest) -> None:
    """Refuse what is not built, unless the value asks for what happens anyway."""
    if _unbuilt_values(chat) == _UNBUILT_DEFAULTS:
        return
    if chat.logit_bias and not all(key.lstrip("-").isdecimal() for key in chat.logit_bias):
        raise invalid("'logit_bias' maps token ids to biases.", code="invalid_value", param="logit_bias")
    if chat.priority is not UNSET:
        raise invalid(
            "'priority' is not a parameter: ask for a queue class by 'service_tier'.",
            code="invalid_value",
            param="priority",
        )
    for name, harmless in _HARMLESS.items():
        value = getattr(chat, name)
        if value is None or value is UNSET or value in harmless:
            continue
        if isinstance(value, Raw) and msgspec.json.decode(value) in harmless:
            continue
        raise invalid(
            f"Unsupported parameter: '{name}' is not supported here with this value.",
            code="unsupported_parameter",
            param=name,
        )


_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "store": (False,),
    "parallel_tool_calls": (True, False),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_key": (None,),
    "prompt_cache_retention": (None,),
    "prompt_cache_options": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
}
"""Parameters that are not built yet, with the values that change nothing."""


_unbuilt_values = attrgetter(*_HARMLESS, "priority")
_UNBUILT_DEFAULTS = tuple(
    field.default
    for name in (*_HARMLESS, "priority")
    for field in msgspec.structs.fields(ChatRequest)
    if field.name == name
)


def _check_messages(messages: list[ChatMessage]) -> None:
    answers_tools = False
    for index, message in enumerate(messages):
        match message:
            case AssistantMessage():
                answers_tools = bool(message.tool_calls)
                if message.content is None and not message.tool_calls and not message.refusal:
                    raise invalid(
                        "An assistant message needs content, or tool_calls.",
                        code="invalid_type",
                        param=f"messages[{index}].content",
                    )
            case ToolMessage():
                if not answers_tools:
                    raise ApiError(
                        400,
                        "Invalid parameter: messages with role 'tool' must be a response to a preceding message "
                        "with 'tool_calls'.",
                        param=f"messages.[{index}].role",
                    )
                if message.tool_call_id is None:
                    raise invalid(
                        f"Missing required parameter: 'messages[{index}].tool_call_id'.",
                        code="missing_required_parameter",
                        param=f"messages[{index}].tool_call_id",
                    )
            case _:
                answers_tools = False


_decoder = msgspec.json.Decoder(ChatRequest)
