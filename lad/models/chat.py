"""Token ids of prompts under a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from lad.utils import InvalidInput, one_line

# Text of one turn, or chat messages {"role": ..., "content": ...} of several.
Prompt = str | Sequence[dict[str, str]]


def check_prompt(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as chat messages; raises InvalidInput when a message is empty."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    if not messages or not all(message["content"].strip() for message in messages):
        raise InvalidInput("the prompt is empty: expected at least one word to answer")
    return messages


def encode_prompt(tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a prompt under its tokenizer's chat template.

    They are what `apply_chat_template` gives, except that a control token typed by the user, such
    as `<|im_end|>`, is read as plain text: a prompt cannot end its own turn. Raises InvalidInput
    for an empty prompt, or messages that the template refuses.
    """
    messages = check_prompt(prompt)
    controls = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    if not any(c in message["content"] for c in controls for message in messages):
        text = _apply_template(tokenizer, messages)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    # Private-use characters take the place of the contents while the template is filled in. Outer
    # white space stays, because some templates trim it and some do not.
    replaced, contents = [], [message["content"].strip() for message in messages]
    for n, (message, content) in enumerate(zip(messages, contents, strict=True)):
        text = message["content"].replace(content, f"\ue000{n}\ue001")
        replaced.append({**message, "content": text})
    text = _apply_template(tokenizer, replaced)
    ids: list[int] = []
    for n, content in enumerate(contents):
        markup, text = text.split(f"\ue000{n}\ue001", 1)
        ids += tokenizer(markup, add_special_tokens=False)["input_ids"]
        ids += tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_text(tokenizer, text: str) -> list[int]:
    """Token ids of a text in which no control token is read."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def encode_prompts(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """`encode_prompt` of many texts."""
    return [encode_prompt(tokenizer, prompt) for prompt in prompts]


def token_bytes(tokenizer, token_id: int, special: bool = False) -> bytes:
    """The bytes of one token; those of a special token are its name."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:  # a padded vocabulary has ids without a token
        return f"<{token_id}>".encode()
    # Byte-level BPE writes each byte as a printable character.
    table = {character: byte for byte, character in bytes_to_unicode().items()}
    if special or not all(character in table for character in token):
        return token.encode()
    return bytes(table[character] for character in token)


def _apply_template(tokenizer, messages: Sequence[dict[str, str]]) -> str:
    """The chat template's text, up to where the answer begins."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InvalidInput(
            f"the chat template refuses messages of the roles {roles} ({one_line(error)}): "
            "expected an order such as user, assistant, user"
        ) from error
