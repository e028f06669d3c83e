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
    as `<|im_end|>`, is read as plain text: a prompt cannot end its own turn.

    Raises:
        InvalidInput: an empty prompt, or messages that the template refuses.
    """
    messages = check_prompt(prompt)
    contents = [message["content"] for message in messages]
    controls = _control_tokens(tokenizer)
    if not any(control in content for content in contents for control in controls):
        text = _apply_template(tokenizer, messages)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    # Private-use characters take the place of the contents while the template is filled in. Outer
    # white space stays, because some templates trim it and some do not.
    placeholders = [f"\ue000{n}\ue001" for n in range(len(messages))]
    contents = [content.strip() for content in contents]
    messages = [
        {**message, "content": message["content"].replace(content, placeholder)}
        for message, content, placeholder in zip(messages, contents, placeholders, strict=True)
    ]
    text = _apply_template(tokenizer, messages)
    ids: list[int] = []
    for placeholder, content in zip(placeholders, contents, strict=True):
        markup, text = text.split(placeholder, 1)
        ids += tokenizer(markup, add_special_tokens=False)["input_ids"]
        ids += tokenizer(content, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids + tokenizer(text, add_special_tokens=False)["input_ids"]


def encode_prompts(tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """`encode_prompt` of many single-turn texts, faster: the template is filled in once.

    Texts with control tokens, or with outer white space that a template may trim, are encoded one
    by one.
    """
    controls = _control_tokens(tokenizer)
    message = {"role": "user", "content": "\ue000"}
    before, after = _apply_template(tokenizer, [message]).split("\ue000")
    is_plain = [
        bool(prompt) and prompt == prompt.strip() and not any(c in prompt for c in controls)
        for prompt in prompts
    ]
    texts = [before + p + after for p, plain in zip(prompts, is_plain, strict=True) if plain]
    ids = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
    return [
        next(ids) if plain else encode_prompt(tokenizer, prompt)
        for prompt, plain in zip(prompts, is_plain, strict=True)
    ]


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes each of the 256 bytes as one printable character (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_of_character()


def token_bytes(tokenizer, token_id: int, special: bool = False) -> bytes:
    """The bytes of one token; those of a special token are its name."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:  # a padded vocabulary has ids without a token
        return f"<{token_id}>".encode()
    if special or not all(character in BYTE_OF_CHARACTER for character in token):
        return token.encode()
    return bytes(BYTE_OF_CHARACTER[character] for character in token)


def _control_tokens(tokenizer) -> list[str]:
    return [added.content for added in tokenizer.added_tokens_decoder.values() if added.special]


def _apply_template(tokenizer, messages: Sequence[dict[str, str]]) -> str:
    """The chat template's text, up to where the answer begins."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise InvalidInput(
            f"the chat template refuses messages of the roles {roles} ({one_line(error)}): "
            "expected the order that this model was trained on, such as user, assistant, user"
        ) from error
