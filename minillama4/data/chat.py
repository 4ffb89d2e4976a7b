"""Llama 4's chat format: messages to token ids and back.

    <|begin_of_text|>
    <|header_start|>user<|header_end|>\\n\\n  content  <|eot|>        one such line per message
    <|header_start|>assistant<|header_end|>\\n\\n                     left open: the model goes on

`<|eot|>` ends a turn. `<|eom|>` ends a message whose turn goes on: a tool call by the assistant,
and the tool's answer. As in Meta's code, and unlike a rendered template, header, "\\n\\n" and
content are encoded apart, so a content that starts with a newline never merges into the header,
and the names of special tokens inside a content stay ordinary text.

Source: meta-llama/llama-models, models/llama4/chat_format.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from minillama4.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
WRITTEN = {role: role for role in ROLES} | {"tool": "ipython"}  # the word in a header


class ChatError(ValueError):
    """Messages that cannot be written, or ids that are no chat."""


@dataclass(frozen=True)
class Message:
    """One message of a chat.

    `content` is text, or a sequence of texts and of id sequences ready to use, such as the tokens
    of an image. `tool_call` marks an assistant's message that a tool answers.
    """

    role: str
    content: str | Sequence[str | Sequence[int]]
    tool_call: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ChatError(f"no role {self.role!r}; there are {', '.join(ROLES)}")
        if self.tool_call and self.role != "assistant":
            raise ChatError(f"only the assistant calls a tool, not the {self.role}")


def encode_chat(
    tokenizer: Tokenizer,
    messages: Iterable[Message | Mapping],
    open_assistant: bool = True,
) -> list[int]:
    """Ids of a whole chat; with `open_assistant`, the header of the answer to come at its end.

    A message is a `Message` or a mapping such as {"role": "user", "content": "Hi"}. Raises
    ChatError for an unknown role or a mapping with other keys than those of `Message`.
    """
    ids = [tokenizer.begin]
    for message in messages:
        ids += encode_message(tokenizer, _as_message(message))
    return ids + encode_header(tokenizer, "assistant") if open_assistant else ids


def encode_header(tokenizer: Tokenizer, role: str) -> list[int]:
    """Ids of the header that opens a message of `role`."""
    special = tokenizer.special
    name = tokenizer.encode(WRITTEN[role])
    start, end = special["<|header_start|>"], special["<|header_end|>"]
    return [start, *name, end, *tokenizer.encode("\n\n")]


def encode_message(tokenizer: Tokenizer, message: Message) -> list[int]:
    """Ids of one message, from its header to its end; the content is not stripped."""
    parts = [message.content] if isinstance(message.content, str) else message.content
    ids = encode_header(tokenizer, message.role)
    if not isinstance(parts, list | tuple) or not all(isinstance(p, str | list) for p in parts):
        raise ChatError(
            f"content must be text, or a list of texts and lists of ids; got {message.content!r}"
        )
    for part in parts:
        ids += tokenizer.encode(part) if isinstance(part, str) else part
    turn_goes_on = message.tool_call or message.role == "tool"
    return [*ids, tokenizer.special["<|eom|>" if turn_goes_on else "<|eot|>"]]


def _as_message(message: Message | Mapping) -> Message:
    if isinstance(message, Message):
        return message
    try:
        return Message(**message)
    except TypeError:
        raise ChatError(
            f"a message needs role and content, and may have tool_call; got {message!r}"
        ) from None


@dataclass(frozen=True)
class Span:
    """Where a message lies in ids: its content is ids[start:end]; `closing` is the id at end."""

    role: str
    start: int
    end: int
    closing: int | None  # None: the ids stop before the message does


def spans(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Span]:
    """The messages of a chat, the open one at its end included. Raises ChatError for other ids."""
    found, at = [], 0
    if ids and ids[0] == tokenizer.begin:
        at = 1
    closings = (tokenizer.special["<|eom|>"], tokenizer.special["<|eot|>"])
    headers = {role: encode_header(tokenizer, role) for role in ROLES}
    while at < len(ids):
        role = next((r for r, h in headers.items() if list(ids[at : at + len(h)]) == h), None)
        if role is None:
            near = "".join(tokenizer.pieces(ids[at : at + 8]))
            raise ChatError(f"no header of a message at position {at}, where {near!r} stands")
        start = at + len(headers[role])
        end = next((i for i in range(start, len(ids)) if ids[i] in closings), len(ids))
        found.append(Span(role, start, end, ids[end] if end < len(ids) else None))
        at = end + 1
    return found


def read_chat(tokenizer: Tokenizer, ids: Sequence[int]) -> list[Message]:
    """The messages in `ids`; a header left open with nothing after it is no message.

    Undoes `encode_chat` for messages of text. Special tokens inside a content are read as names.
    """
    eom = tokenizer.special["<|eom|>"]
    return [
        Message(
            span.role,
            tokenizer.decode(ids[span.start : span.end]),
            tool_call=span.role == "assistant" and span.closing == eom,
        )
        for span in spans(tokenizer, ids)
        if span.closing is not None or span.end > span.start
    ]


def assistant_mask(tokenizer: Tokenizer, ids: Sequence[int]) -> list[bool]:
    """True where the assistant speaks: its contents and the token that closes them.

    These are the targets of supervised fine-tuning; one entry per id.
    """
    mask = [False] * len(ids)
    for span in spans(tokenizer, ids):
        if span.role == "assistant":
            stop = span.end + (span.closing is not None)
            mask[span.start : stop] = [True] * (stop - span.start)
    return mask
