"""Chat templates: the wording of prompts that a checkpoint's folder carries.

sentence-transformers renders a prompt with the folder's Jinja template.  Here the template is
rendered with marks in place of instruction and contents, once, and what stands between the marks is
the wording: user text never goes through a template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyrerank.errors import CheckpointError

# A mark has blanks around it, which a template that trims or rewrites contents would lose.
_MARK = re.compile("\n \ue000(\\w+)\ue001 \n")
# how a template shows that it takes contents as lists of parts, as sentence-transformers guesses it
_STRUCTURED = ("content[0]", ".type", "'type'", '"type"', "message.content[")


@dataclass(frozen=True)
class Chat:
    """A chat template with the variables it is rendered with.

    Attributes:
        source: the template, and ``file``, where it was found.
        variables: names and values.
        structured: whether contents are lists of parts, not texts.
    """

    source: str
    file: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    structured: bool = True
    _embedding: dict[bool, list[str]] = field(default_factory=dict, compare=False, repr=False)
    _scoring: dict[bool, list[str] | None] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of_folder(
        cls,
        path: Path,
        tokenizer: Mapping[str, Any],
        variables: Mapping[str, Any],
        format: str | None,
    ) -> Chat:
        """The template of the folder ``path`` that sentence-transformers uses.

        Args:
            tokenizer: what ``tokenizer_config.json`` says.
            variables: ``chat_template`` of ``processing_kwargs``: it may name one of several
                templates, under "chat_template".
            format: of contents, "structured" or "flat"; None and "auto" leave it to the template.

        Raises:
            CheckpointError: there is no such template.
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
        """Wording of an embedder's prompt, with an instruction or without; see `_parts`."""
        if system not in self._embedding:
            self._embedding[system] = self._parts(["user"], system)
        return self._embedding[system]

    def scoring(self, system: bool) -> list[str] | None:
        """As `embedding`, of a pair's prompt; None where the template knows no pairs."""
        if system not in self._scoring:
            try:
                self._scoring[system] = self._parts(["query", "document"], system)
            except _NoPairs:
                self._scoring[system] = None
        return self._scoring[system]

    def _parts(self, roles: list[str], system: bool) -> list[str]:
        """Texts of the template at even places, between them the names of what stands there:
        "system", which is the instruction, and the roles."""
        wanted = ["system"] * system + roles
        rendered = self._render([self._message(role) for role in wanted])
        parts = _MARK.split(rendered)
        found = parts[1::2]
        if "query" in roles and not any(f"\ue000{role}\ue001" in rendered for role in roles):
            raise _NoPairs
        if sorted(found) != sorted(wanted):
            raise CheckpointError(
                f"{self.file}: this chat template does not render each of {', '.join(wanted)} "
                "once and as it is; pyrerank cannot follow it"
            )
        return parts

    def _message(self, role: str) -> dict[str, Any]:
        text = f"\n \ue000{role}\ue001 \n"
        content = [{"type": "text", "text": text}] if self.structured else text
        return {"role": role, "content": content}

    def _render(self, messages: list[dict[str, Any]]) -> str:
        # it comes with torch, and most folders need none
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise TemplateError(message)

        # as transformers sets it up
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(self.source)
            return template.render(
                {"add_generation_prompt": False} | dict(self.variables), messages=messages
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            if any(message["role"] == "query" for message in messages):
                raise _NoPairs from error
            raise CheckpointError(
                f"{self.file}: this chat template cannot be rendered: {error}"
            ) from error


class _NoPairs(Exception):
    """A template that has no place for queries and documents."""


def _templates(path: Path, tokenizer: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> source and file of each template; files of their own come before keys."""
    found: dict[str, tuple[str, str]] = {}
    stored = tokenizer.get("chat_template")
    entries: list[Any] = (
        stored if isinstance(stored, list) else [{"name": "default", "template": stored}]
    )
    for entry in entries:
        if stored is not None:
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
