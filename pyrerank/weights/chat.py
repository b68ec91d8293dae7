"""Chat templates: the wording of prompts that a checkpoint's folder carries.

sentence-transformers renders each prompt with the folder's Jinja template.  Here the template is
rendered once, with marks in place of instruction and contents.  The texts between the marks are the
wording, and text of callers never goes through a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pyrerank.errors import CheckpointError

# A mark has blanks around it; a template that trims or rewrites contents loses them.
_MARK = re.compile("\n \ue000(\\w+)\ue001 \n")
# A template with one of these takes contents as lists of parts; so sentence-transformers guesses.
_STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "message.content[")


@dataclass(frozen=True)
class Chat:
    """A chat template, the name of its file, and the variables it is rendered with."""

    source: str
    file: str
    variables: Mapping[str, Any]
    structured: bool  # whether contents are lists of parts, and not texts
    _known: dict[tuple[str, ...], list[str]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @classmethod
    def of_folder(
        cls,
        path: Path,
        tokenizer: Mapping[str, Any],
        variables: Mapping[str, Any],
        format: str | None,
    ) -> Chat:
        """The template that sentence-transformers uses; raises `CheckpointError` if there is none.

        Args:
            tokenizer: what ``tokenizer_config.json`` says.
            variables: ``chat_template`` of ``processing_kwargs``, whose own "chat_template" may
                name one of several templates.
            format: "structured" contents or "flat" ones; None and "auto" leave it to the template.
        """
        found = _templates(path, tokenizer)
        values = {k: v for k, v in tokenizer.items() if k.endswith("_token") and isinstance(v, str)}
        values |= {
            k: v for k, v in variables.items() if k not in ("chat_template", "restore_suffix")
        }
        name = variables.get("chat_template") or "default"
        if name in found:
            source, file = found[name]
        elif "{" in name:
            source, file = name, "sentence_bert_config.json"
        else:
            raise CheckpointError(
                f"{path}: sentence_bert_config.json asks for the chat template {name!r}, and the "
                f"folder has {', '.join(found) or 'none'}; download the whole model again"
            )
        structured = format == "structured"
        if format in (None, "auto"):
            structured = any(pattern in source for pattern in _STRUCTURED)
        return cls(source, file, values, structured)

    def embedding(self, system: bool) -> list[str]:
        """The wording of an embedder's prompt, with an instruction or without.

        Texts of the template are at even places, and between them the names of what stands there:
        "system", which is the instruction, and "user", which is the content.  `CheckpointError` is
        raised if the template cannot be followed.
        """
        return self._parts(system, "user")

    def scoring(self, system: bool) -> list[str] | None:
        """As `embedding`, for a pair, whose contents are "query" and "document"; None if the
        template knows no pairs."""
        return self._parts(system, "query", "document") or None

    def _parts(self, system: bool, *contents: str) -> list[str]:
        """The wording with these contents; empty if they are a pair and the template knows none."""
        roles = ("system", *contents) if system else contents
        if roles not in self._known:
            rendered = self._render(roles)
            parts = _MARK.split(rendered)
            shown = any(f"\ue000{role}\ue001" in rendered for role in contents)
            if "query" in contents and not shown:
                parts = []
            elif sorted(parts[1::2]) != sorted(roles):
                raise CheckpointError(
                    f"{self.file}: this chat template does not render each of {', '.join(roles)} "
                    "once and as it is; pyrerank cannot follow it"
                )
            self._known[roles] = parts
        return self._known[roles]

    def _message(self, role: str) -> dict[str, Any]:
        text = f"\n \ue000{role}\ue001 \n"
        content = [{"type": "text", "text": text}] if self.structured else text
        return {"role": role, "content": content}

    def _render(self, roles: tuple[str, ...]) -> str:
        """The template with a mark in each message; empty if it refuses a pair."""
        # jinja2 comes with torch, and most folders do not need it
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        # as transformers sets it up
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(self.source)
            variables = {"add_generation_prompt": False} | dict(self.variables)
            return template.render(variables, messages=[self._message(role) for role in roles])
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            if "query" in roles:
                return ""
            raise CheckpointError(
                f"{self.file}: this chat template cannot be rendered: {error}"
            ) from error


def _templates(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """A template's name -> its source and its file.  A file of its own comes before a key."""
    found: dict[str, tuple[str, str]] = {}
    stored = tokenizer.get("chat_template") or []
    if isinstance(stored, str):
        stored = [{"name": "default", "template": stored}]
    for entry in stored:
        found[str(entry["name"])] = str(entry["template"]), "tokenizer_config.json"
    old = path / "chat_template.json"
    if old.is_file():
        try:
            found["default"] = json.loads(old.read_text("utf-8"))["chat_template"], old.name
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{old} holds no chat_template: {error}") from error
    files = [path / "chat_template.jinja", *path.glob("additional_chat_templates/*.jinja")]
    for file in filter(Path.is_file, files):
        name = "default" if file.name == "chat_template.jinja" else file.stem
        found[name] = file.read_text("utf-8"), file.name
    return found
