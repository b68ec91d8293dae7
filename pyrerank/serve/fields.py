"""Checks the fields of requests: which of them go together, and which are refused by name.

It knows the wire formats, and nothing of engines or HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pyrerank.media.sources import shown
from pyrerank.serve import wire
from pyrerank.serve.contents import several
from pyrerank.serve.errors import BadRequest

NO_THOUGHT = "enable_thinking", False  # is accepted: the published templates have no thoughts


def refuse_what_is_not_done(request: wire.Request) -> None:
    """Raises BadRequest for a value of `wire.NOT_DONE` that would change a result elsewhere."""
    given = request.model_extra or {}
    for name in given.keys() & wire.NOT_DONE.keys():
        neutral, instead = wire.NOT_DONE[name]
        value = given[name]
        # types are compared as well, because 1 == True
        if value is None or any(value == each and type(value) is type(each) for each in neutral):
            continue
        takes = " or ".join(json.dumps(each) for each in (*neutral, None))
        raise BadRequest(
            f"{name} is {shown(value)}, which is not done here: {instead}. Leave it out, or give "
            f"{takes}",
            name,
        )
    for name, value in (request.chat_template_kwargs or {}).items():
        if name != "instruction" and value is not None and (name, value) != NO_THOUGHT:
            raise BadRequest(
                f"chat_template_kwargs has {shown(name)}, which is not done here: the published "
                "template takes an 'instruction' only",
                "chat_template_kwargs",
            )


def wants_whole(request: wire.Request) -> bool:
    """Whether a text over the limit is an error; other servers have fields that say so."""
    given = request.model_extra or {}
    return given.get("truncate") in (False, "NONE") or given.get("truncation") is False


def scored_fields(request: wire.ScoreRequest) -> tuple[str, str]:
    """The names of the two fields that are given."""
    given = [
        pair for pair in wire.SCORED if any(getattr(request, name) is not None for name in pair)
    ]
    for pair in given:
        if all(getattr(request, name) is not None for name in pair):
            for name in (name for other in given for name in other if name not in pair):
                if getattr(request, name) is not None:
                    raise BadRequest(
                        f"{name} is given beside {pair[0]} and {pair[1]}; leave it out", name
                    )
            return pair
    forms = ", ".join(" and ".join(pair) for pair in wire.SCORED)
    [missing, *_] = [n for n in (given or wire.SCORED)[0] if getattr(request, n) is None]
    raise BadRequest(f"two fields that belong together must be given: {forms}", missing)


def inputs_of(request: wire.EmbeddingRequest) -> tuple[str, list[Any]]:
    """The name of the field that is given, and its inputs."""
    if (request.input is None) == (request.messages is None):
        raise BadRequest("either input or messages must be given", "input")
    field = "input" if request.messages is None else "messages"
    value = getattr(request, field)
    if not isinstance(value, list):
        return field, [value]
    if field == "input" and value and isinstance(value[0], dict) and "role" in value[0]:
        field = "messages"  # conversations under another name, as vLLM takes them
    if value and isinstance(value[0], int):
        return field, [value]
    if field == "messages" and value and not isinstance(value[0], list):
        return field, [value]
    return field, several(value)


def is_ids(value: Any) -> bool:
    """Whether an input consists of token ids."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def _has_system(messages: Any) -> bool:
    return isinstance(messages, list) and any(
        isinstance(message, dict) and message.get("role") == "system" for message in messages
    )


def check_embedding(request: wire.EmbeddingRequest, field: str, inputs: Sequence[Any]) -> None:
    """Refuses fields that do not go with these inputs."""
    kwargs = request.chat_template_kwargs or {}
    told = kwargs.get("instruction", request.instruction) is not None
    longest = max((len(each) for each in inputs if is_ids(each)), default=0)
    limit = request.truncate_prompt_tokens
    if longest:
        if limit is not None and 0 <= limit < longest:
            raise BadRequest(
                f"truncate_prompt_tokens is {limit}, and {field} has {longest} token ids, which "
                "are run as they are; give fewer ids",
                "truncate_prompt_tokens",
            )
        if told:
            raise BadRequest(
                "an instruction is part of the prompt, and token ids are run as they are; give "
                "texts, or no instruction",
                "instruction",
            )
    elif told and field == "messages" and any(_has_system(each) for each in inputs):
        raise BadRequest(
            "the text of the system's message is the instruction; give either", "instruction"
        )
    if not longest and request.add_special_tokens is (field == "messages"):
        given = json.dumps(request.add_special_tokens)
        raise BadRequest(
            f"add_special_tokens is {given}, and the published prompt of {field} has the special "
            "tokens that it has; leave it out",
            "add_special_tokens",
        )
