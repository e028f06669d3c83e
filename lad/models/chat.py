"""Token ids of texts and of prompts under a chat template, and the bytes of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from lad.utils import InvalidInput, check_text, one_line

# Text of one turn, or chat messages {"role": ..., "content": ...} of several.
Prompt = str | Sequence[dict[str, str]]

BYTE = re.compile(rb"<0x[0-9A-F]{2}>")  # the byte tokens of a SentencePiece vocabulary
SPACE = "▁".encode()  # in its tokens, a space


def encode_text(tokenizer, text: str, follows: bool = False) -> list[int]:
    """Token ids of plain text, never MASK: a control token in it, or the word MASK, is text too.

    `follows`: it stands behind other tokens, where SentencePiece may put no space in front.
    """
    return _without_mask(tokenizer, _encode(tokenizer, check_text(text), follows, split=True))


def encode_texts(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """`encode_text` of many texts, in one call of the tokenizer."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    found = tokenizer(list(texts), **options)["input_ids"] if texts else []
    return [_without_mask(tokenizer, ids) for ids in found]


def check_prompt(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as chat messages; raises InvalidInput when one is empty, or no text."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    for message in messages if isinstance(messages, list | tuple) else [messages]:
        values = message if isinstance(message, Mapping) else {}
        if not all(isinstance(values.get(key), str) for key in ("role", "content")):
            raise InvalidInput(
                f"a chat message {one_line(message)}: expected "
                "{'role': ..., 'content': ...} with a text each"
            )
    if not messages or not all(check_text(message["content"]).strip() for message in messages):
        raise InvalidInput("the prompt is empty: expected at least one word to answer")
    return list(messages)


def encode_prompt(tokenizer, prompt: Prompt, **options) -> list[int]:
    """Token ids of a prompt under its tokenizer's chat template.

    They are what `apply_chat_template` gives, with its `options`, except that a control token typed
    by the user, such as `<|im_end|>`, is read as plain text: a prompt cannot end its own turn.
    Raises InvalidInput for messages that `check_prompt` or the template refuses.
    """
    messages = check_prompt(prompt)
    contents = [message["content"].strip() for message in messages]
    if typed := _holds_controls(messages, _controls(tokenizer)):
        # Private-use characters take the place of the contents while the template is filled in.
        # Outer white space stays, because some templates trim it and some do not.
        for n, (message, content) in enumerate(zip(messages, contents, strict=True)):
            text = message["content"].replace(content, f"\ue000{n}\ue001")
            messages[n] = {**message, "content": text}
    text = _apply_template(tokenizer, messages, **options)
    ids: list[int] = []
    for n, part in enumerate(re.split("\ue000(\\d+)\ue001", text) if typed else [text]):
        part = contents[int(part)] if n % 2 else part
        ids += _encode(tokenizer, part, follows=bool(ids), split=n % 2 == 1)
    return _without_mask(tokenizer, ids)


def encode_prompts(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """`encode_prompt` of many texts, in one call of the tokenizer unless controls are typed."""
    controls = _controls(tokenizer)
    messages = [check_prompt(prompt) for prompt in prompts]
    typed = [_holds_controls(one, controls) for one in messages]
    texts = [
        _apply_template(tokenizer, one) for one, t in zip(messages, typed, strict=True) if not t
    ]
    found = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    return [
        encode_prompt(tokenizer, prompt) if t else _without_mask(tokenizer, next(found))
        for prompt, t in zip(prompts, typed, strict=True)
    ]


def _controls(tokenizer) -> list[str]:
    return [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]


def _holds_controls(messages: Sequence[dict[str, str]], controls: Sequence[str]) -> bool:
    return any(control in message["content"] for control in controls for message in messages)


def _encode(tokenizer, text: str, follows: bool, split: bool) -> list[int]:
    """Token ids of a text, in which control tokens are text if they are to be `split`."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=split)["input_ids"]

    if not follows or _prepend_scheme(tokenizer) is None:
        return ids(text)
    # A line break, which is part of no other token, takes the space that is put in front.
    return ids("\n" + text)[len(ids("\n")) :]


def _without_mask(tokenizer, ids: list[int]) -> list[int]:
    """Spell the MASK token by its characters, so that its id says that a position is masked."""
    mask = tokenizer.mask_token_id
    if mask not in ids:
        return ids
    spelt = tokenizer.convert_tokens_to_ids([*tokenizer.convert_ids_to_tokens(mask)])
    return [part for token in ids for part in (spelt if token == mask else [token])]


def _apply_template(tokenizer, messages: Sequence[dict[str, str]], **options) -> str:
    """The chat template's text, by default up to where the answer begins."""
    options = {"add_generation_prompt": True} | options
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        for message in messages:  # of earlier answers some templates leave out the reasoning
            if message["role"] != "assistant" and message["content"].strip() not in text:
                raise ValueError(f"it drops the {message['role']} message")
        return text
    except Exception as error:  # a template may raise anything
        roles = ", ".join(message["role"] for message in messages)
        raise InvalidInput(
            f"the chat template refuses messages of the roles {roles} ({one_line(error)}): "
            "expected an order such as user, assistant, user"
        ) from error


def read_vocabulary(tokenizer, ids: Iterable[int], special: Iterable[int]) -> dict[str, object]:
    """The `vocabulary` and the `prepend_scheme` by which `decode_pieces` reads these token ids.

    A byte-level token stands for its bytes, or its name if it is `special`; the scheme is None. One
    of SentencePiece stands for its name; the scheme is "first" where the space in front of a text
    is dropped, and "never" where it stays.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # Byte-level BPE writes each byte as a printable character.
    table = {character: byte for byte, character in bytes_to_unicode().items()}
    vocabulary, scheme = {}, _prepend_scheme(tokenizer)
    for token in ids:  # a padded vocabulary has ids without a token
        name = tokenizer.convert_ids_to_tokens(token) or f"<{token}>"
        is_bytes = scheme is None and token not in special and all(c in table for c in name)
        vocabulary[token] = bytes(table[c] for c in name) if is_bytes else name.encode()
    return {"vocabulary": vocabulary, "prepend_scheme": scheme}


def decode_pieces(pieces: Sequence[bytes], prepend_scheme: str | None) -> list[bytes]:
    """The bytes of tokens in their order: joined, and read as UTF-8, what `tokenizer.decode` gives.

    Byte-level pieces are that already. In SentencePiece's, bytes that are no UTF-8 become U+FFFD.
    """
    if prepend_scheme is None:
        return list(pieces)
    read: list[bytes] = []
    for is_byte, group in groupby(pieces, lambda piece: bool(BYTE.fullmatch(piece))):
        run = [bytes([int(p[3:5], 16)]) if is_byte else p.replace(SPACE, b" ") for p in group]
        try:
            b"".join(run).decode()
        except UnicodeDecodeError:
            run = ["\ufffd".encode()] * len(run)
        read += run
    if prepend_scheme == "first":
        read[:1] = [piece.removeprefix(b" ") for piece in read[:1]]
    return read


def _prepend_scheme(tokenizer) -> str | None:
    decode = tokenizer.backend_tokenizer.decoder.decode
    if decode(["Ġ"]) == " ":
        return None
    return "first" if decode(["▁"]) == "" else "never"
