"""Answers requests: takes them in their wire formats, and returns answers in theirs.

It knows the wire formats and the engines, and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pyrerank.embedder import Embedder, numbers
from pyrerank.media.reader import Content, Reader
from pyrerank.media.sources import Media
from pyrerank.prompts.encoder import PairEncoder
from pyrerank.prompts.items import Pair, Prompt
from pyrerank.reranker import Reranker, Score
from pyrerank.serve import wire
from pyrerank.serve.contents import Size, content, conversation, echo, several, size
from pyrerank.serve.errors import BadRequest, NotFound
from pyrerank.serve.fields import (
    check_embedding,
    inputs_of,
    is_ids,
    refuse_what_is_not_done,
    scored_fields,
    wants_whole,
)
from pyrerank.serve.readers import Entry, Readers
from pyrerank.serve.schedule import Job, Scheduler
from pyrerank.serve.settings import Settings

# Making tokens takes up to half a KiB of memory and a microsecond for each character, even if the
# text is over the model's limit and cut afterwards.  So characters are limited, too.
MAX_CHARACTERS = 2**20  # of one content
CHARACTERS = 16  # for each token that all prompts of a request may have together


class Service:
    """Answers requests.

    Args:
        scheduler: has the queue and the engine.
        settings: limits, and names of the model.
        media: says how pictures are read; it must not allow files of this machine.
        root: the model, as the operator named it.
        instruction: the instruction of requests that have none; None takes the engine's.

    `rerank`, `score` and `embed` take a request, the id of its answer, and its job, and raise what
    `Readers.rows` raises.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settings: Settings,
        media: Media,
        root: str,
        instruction: str | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._settings = settings
        self._root = root
        self._default = instruction
        self._created = int(time.time())
        self._readers = Readers(scheduler, media, settings.max_tokens)

    def close(self) -> None:
        """Answers what is queued, then ends all threads."""
        self._readers.close()
        self.scheduler.close()

    async def rerank(self, request: wire.RerankRequest, id: str, job: Job) -> wire.RerankResponse:
        documents = request.documents
        if not isinstance(documents, list):
            documents = [documents]
        scores = await self._scores(request, "query", [request.query], "documents", documents, job)
        # As in `Reranker.rank`, logits order documents whose scores are rounded to the same number.
        order = sorted(range(len(scores)), key=lambda i: -scores[i].logit)[: request.top_n or None]
        results = []
        for i in order:
            extra = _details(request, job, i, scores[i])
            if request.return_documents is not False:
                extra["document"] = echo(documents[i], whole=request.return_documents is True)
            shown = _shown(request, scores[i])
            results.append(wire.RerankResult(index=i, relevance_score=shown, **extra))
        return wire.RerankResponse(
            id=f"score-{id}",
            model=self._settings.names[0],
            usage=wire.Usage(**_usage(job)),
            results=results,
            **_timing(request, job),
        )

    async def score(self, request: wire.ScoreRequest, id: str, job: Job) -> wire.ScoreResponse:
        first, second = scored_fields(request)
        queries, documents = several(getattr(request, first)), several(getattr(request, second))
        if len(queries) not in (1, len(documents)):
            raise BadRequest(
                f"{first} has {len(queries)} entries and {second} has {len(documents)}: lengths "
                "must be 1:1, 1:N or N:N",
                first,
            )
        scores = await self._scores(request, first, queries, second, documents, job)
        data = [
            wire.ScoreData(
                index=i,
                object="score",
                score=_shown(request, score),
                **_details(request, job, i, score),
            )
            for i, score in enumerate(scores)
        ]
        return wire.ScoreResponse(id=f"score-{id}", data=data, **self._list(request, job))

    async def embed(
        self, request: wire.EmbeddingRequest, id: str, job: Job
    ) -> wire.EmbeddingResponse:
        engine = self.scheduler.engine
        if not isinstance(engine, Embedder):
            raise NotFound("the model served here scores pairs; it makes no embeddings")
        dim = engine.dim if request.dimensions is None else request.dimensions
        if not 1 <= dim <= engine.dim:
            raise BadRequest(f"dimensions must be 1 to {engine.dim}, got {dim}", "dimensions")
        field, inputs = inputs_of(request)
        size = self._check(request, field, inputs, 1)
        check_embedding(request, field, inputs)
        instruction = self._instruction(request, len(inputs))
        entries = [
            self._input(engine, f"{field}[{i}]", each, instruction) for i, each in enumerate(inputs)
        ]
        rows = await self._rows(request, entries, job, size)
        wanted: Any = {"dim": request.dimensions, "normalize": request.use_activation}
        vectors = [
            engine.core.task.result(prompt, row, entry.name, **wanted).vector
            for prompt, row, entry in zip(job.prompts, rows, entries, strict=True)
        ]
        embeddings: Sequence[list[float] | str]
        if request.encoding_format != "base64":
            embeddings = await asyncio.to_thread(lambda: [numbers(each) for each in vectors])
        else:
            embeddings = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
        data = [
            wire.EmbeddingData(
                index=i, object="embedding", embedding=each, **_details(request, job, i)
            )
            for i, each in enumerate(embeddings)
        ]
        return wire.EmbeddingResponse(id=f"embd-{id}", data=data, **self._list(request, job))

    async def _rows(
        self, request: wire.Request, entries: Sequence[Entry], job: Job, size: Size
    ) -> list[torch.Tensor]:
        """As `Readers.rows`; raises BadRequest if a text was cut that the client wants whole."""
        rows = await self._readers.rows(entries, job, request.truncate_prompt_tokens, size)
        if wants_whole(request):
            for entry, prompt in zip(entries, job.prompts, strict=True):
                if prompt.truncated:
                    raise BadRequest(
                        f"{entry.name} is {prompt.truncated} tokens over the model's limit, and "
                        "the request wants no text cut",
                        entry.name,
                    )
        return rows

    def models(self) -> wire.ModelList:
        return wire.ModelList(object="list", data=[self._card(n) for n in self._settings.names])

    async def _scores(
        self,
        request: wire.RerankRequest | wire.ScoreRequest,
        first: str,
        queries: Sequence[Any],
        second: str,
        documents: Sequence[Any],
        job: Job,
    ) -> list[Score]:
        """Scores one query with all documents, or each query with the document of its number.

        ``first`` and ``second`` are the names of the fields that they come from.
        """
        engine = self.scheduler.engine
        if not isinstance(engine, Reranker):
            raise NotFound("the model served here makes embeddings; it does not score pairs")
        uses = len(documents) // len(queries) if queries else 1
        sizes = [
            self._check(request, first, queries, uses),
            self._check(request, second, documents, 1),
        ]
        instruction = self._instruction(request, len(documents))
        encoder = engine.core.encoder

        def entry(i: int) -> Entry:
            name = f"{second}[{i}]"
            n = i if len(queries) > 1 else 0
            blamed = {
                f"the query of {name}": first if first == "query" else f"{first}[{n}]",
                "instruction": "instruction",
            }

            def read(reader: Reader) -> Any:
                query, document = content(queries[n]), content(documents[i])
                pair = encoder.pair(name, query, document, instruction, reader)
                return Pair(
                    pair.instruction,
                    _cut(encoder, pair.query, request.max_tokens_per_query),
                    _cut(encoder, pair.document, request.max_tokens_per_doc),
                )

            return Entry(name, read, blamed)

        entries = [entry(i) for i in range(len(documents))]
        size = Size(*map(sum, zip(*sizes, strict=True)))
        rows = await self._rows(request, entries, job, size)
        each = zip(job.prompts, rows, entries, strict=True)
        return [engine.core.task.result(prompt, row, entry.name) for prompt, row, entry in each]

    def _input(self, engine: Embedder, name: str, value: Any, instruction: str | None) -> Entry:
        encoder = engine.core.encoder

        def read(reader: Reader) -> Any:
            if is_ids(value):
                return _prompt(engine, name, value)
            if name.startswith("messages"):
                own, said = conversation(value, name)
                return encoder.input(name, said, instruction if own is None else own, reader)
            return encoder.input(name, content(value), instruction, reader)

        return Entry(name, read, {"instruction": "instruction"})

    def _check(self, request: wire.Request, field: str, values: Sequence[Any], uses: int) -> Size:
        """Refuses a request that the server does not take, and returns the size of a field.

        Each of the ``values`` of the field is read for as many prompts as ``uses``.
        """
        refuse_what_is_not_done(request)
        limits, engine = self._settings, self.scheduler.engine
        if request.model and request.model not in limits.names:
            raise NotFound(
                f"The model `{request.model}` does not exist; served is {limits.names[0]}.", "model"
            )
        if (request.truncate_prompt_tokens or 0) > engine.max_tokens:
            raise BadRequest(
                f"truncate_prompt_tokens is over the model's limit of {engine.max_tokens}",
                "truncate_prompt_tokens",
            )
        if not values:
            raise BadRequest(f"{field} is empty; give at least one", field)
        if len(values) > limits.max_documents:
            raise BadRequest(
                f"{field} has {len(values)} entries, and the server takes {limits.max_documents}; "
                "send fewer at a time",
                field,
            )
        sizes = [size(value) for value in values]
        longest = max(range(len(values)), key=lambda i: sizes[i].characters)
        if sizes[longest].characters > MAX_CHARACTERS:
            name = field if field == "query" else f"{field}[{longest}]"
            raise BadRequest(
                f"{name} has {sizes[longest].characters} characters, and the server takes "
                f"{MAX_CHARACTERS}; cut it",
                name,
            )
        characters, pictures, fetched = map(sum, zip(*sizes, strict=True))
        characters, most = uses * characters, CHARACTERS * limits.max_tokens
        if characters > most:
            raise BadRequest(
                f"{field} has {characters} characters in all prompts, and the server takes {most}; "
                "send fewer at a time",
                field,
            )
        if pictures > limits.max_pictures:
            raise BadRequest(
                f"{field} has {pictures} images, videos and frames, and the server takes "
                f"{limits.max_pictures}; send fewer at a time",
                field,
            )
        return Size(characters, pictures, fetched)

    def _instruction(self, request: wire.Request, prompts: int) -> Any:
        given = request.chat_template_kwargs or {}
        chosen = given.get("instruction", request.instruction)  # the encoder refuses other types
        most = CHARACTERS * self._settings.max_tokens // prompts
        if isinstance(chosen, str) and len(chosen) > most:
            raise BadRequest(
                f"instruction has {len(chosen)} characters, and the server takes {most} with "
                f"{prompts} prompts; shorten it",
                "instruction",
            )
        return self._default if chosen is None else chosen

    def _list(self, request: wire.Request, job: Job) -> dict[str, Any]:
        """The fields that all answers with lists have in common."""
        usage = wire.FullUsage(
            **_usage(job),
            completion_tokens=0,
            prompt_tokens_details=None,
            completion_tokens_details=None,
        )
        common = {"object": "list", "created": int(time.time()), "usage": usage}
        return common | {"model": self._settings.names[0]} | _timing(request, job)

    def _card(self, name: str) -> wire.ModelCard:
        permission = wire.Permission(
            id=f"modelperm-{name}",
            object="model_permission",
            created=self._created,
            allow_create_engine=False,
            allow_sampling=False,
            allow_logprobs=False,
            allow_search_indices=False,
            allow_view=True,
            allow_fine_tuning=False,
            organization="*",
            group=None,
            is_blocking=False,
        )
        return wire.ModelCard(
            id=name,
            object="model",
            created=self._created,
            owned_by="pyrerank",
            root=self._root,
            parent=None,
            max_model_len=self.scheduler.engine.max_tokens,
            permission=[permission],
        )


def _prompt(engine: Embedder, name: str, ids: list[Any]) -> Prompt:
    """Makes a prompt of the caller's own token ids, to which nothing is added."""
    size = engine.core.checkpoint.config.vocab_size
    if len(ids) > engine.max_tokens:
        raise ValueError(f"{name} has {len(ids)} tokens, over the limit of {engine.max_tokens}")
    if not all(type(id) is int and 0 <= id < size for id in ids):
        raise ValueError(f"{name} must hold token ids from 0 to {size - 1} only")
    return Prompt(ids, 0)


def _cut(encoder: PairEncoder, content: Content, tokens: int | None) -> Content:
    """Cuts the text of a content to its first ``tokens`` tokens; 0 and None leave it whole."""
    if not tokens or content.text is None:
        return content
    return replace(content, text=encoder.first_tokens(content.text, tokens))


def _shown(request: wire.Scoring, score: Score) -> float:
    return score.logit if request.use_activation is False else score.score


def _usage(job: Job) -> dict[str, int]:
    tokens = sum(len(prompt.ids) for prompt in job.prompts)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _details(
    request: wire.Request, job: Job, index: int, score: Score | None = None
) -> dict[str, Any]:
    if not request.return_details:
        return {}
    prompt = job.prompts[index]
    details = {
        "tokens": len(prompt.ids),
        "computed_tokens": job.computed[index],
        "truncated_tokens": prompt.truncated,
    }
    return details if score is None else details | {"logit": score.logit}


def _timing(request: wire.Request, job: Job) -> dict[str, Any]:
    if not request.return_details:
        return {}
    queued, started, done = (job.times[event] for event in ("queued", "started", "done"))
    timing = wire.Timing(
        reading=queued - job.arrived, queued=started - queued, computing=done - started
    )
    return {"timing": timing}
