"""The wire formats, which requests and answers have.

Names, types and nesting are those of vLLM's server, which took them from Jina, Cohere and OpenAI;
``return_documents`` and ``return_details`` are added.  As there, numbers and truth values may stand
in quotes, a null counts as a field that is absent, and a truth value is no number.  Fields that
change results elsewhere but not here are refused by name, see `NOT_DONE`; fields that nobody
documents are ignored, as in vLLM.  This module knows nothing of what is done with a request.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

REQUEST_ID = r"[A-Za-z0-9_.:/+=@-]{1,128}"
PART = {
    "type": "object",
    "properties": {
        "type": {"enum": ["text", "image_url", "video_url", "image", "video"]},
        "text": {"type": "string"},
        "image_url": {"type": "object", "properties": {"url": {"type": "string"}}},
        "video_url": {"type": "object", "properties": {"url": {"type": "string"}}},
    },
    "required": ["type"],
}
PARTS = {"type": "array", "items": PART, "minItems": 1}
CONTENT = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"content": PARTS}, "required": ["content"]},
        {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "image": {"type": "string"},
                "video": {"type": "string"},
            },
            "minProperties": 1,
        },
    ],
    "description": "A text; or parts under `content`; or an object with `text`, `image`, `video`. "
    "Pictures are data: URIs, or URLs of hosts that the server was told to ask.",
}
# Contents are of any type here: `pyrerank.media.reader.Reader` says better what is wrong with one.
Content = Annotated[Any, WithJsonSchema(CONTENT)]
OneOrMore = Annotated[
    Any, WithJsonSchema({"anyOf": [*CONTENT["anyOf"], {"type": "array", "items": CONTENT}]})
]
MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "user", "assistant"]},
        "content": {"anyOf": [{"type": "string"}, PARTS]},
    },
    "required": ["role", "content"],
}
Messages = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": MESSAGE},
                {"type": "array", "items": {"type": "array", "items": MESSAGE}},
            ],
            "description": "One conversation, or several: the system's text is the instruction, "
            "what the user says is embedded; an empty answer may follow.",
        }
    ),
]
Input = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"anyOf": [{"type": "integer"}, *CONTENT["anyOf"]]}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ],
            "description": "A text or several, or token ids, of one input or several.",
        }
    ),
]


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a valid integer, and not true or false")
    return value


Integer = Annotated[int, BeforeValidator(_no_truth_value)]

# Fields of vLLM, Jina, Cohere, OpenAI, Voyage, TEI and DashScope that would change a result there
# and have no effect here.  Each has the values that change nothing, besides null, and what to do
# instead.
CUT = "texts over the limit are cut at their end"
TOLD = "give `instruction`"
FLOATS = "vectors are float32; `encoding_format` may be float or base64"
FEWER = "give `top_n`"
PUBLISHED = "pictures are sized and sampled as published"
ACTIVATION = "give `use_activation`"
NOT_DONE: dict[str, tuple[tuple[Any, ...], str]] = {
    "activation": ((True,), ACTIVATION),
    "chat_template": ((), "the published template is applied"),
    "embed_dtype": (("float32",), FLOATS),
    "embedding_type": (("float", ["float"]), FLOATS),
    "embedding_types": ((["float"],), FLOATS),
    "endianness": (("little", "native"), FLOATS),
    "fps": ((), PUBLISHED),
    "input_type": (("document", "passage", "search_document"), TOLD),
    "instruct": ((), TOLD),
    "late_chunking": ((False,), "each input has a vector of its own text"),
    "max_doc_length": ((), "give `max_tokens_per_doc`"),
    "max_frames": ((), PUBLISHED),
    "max_pixels": ((), PUBLISHED),
    "max_query_length": ((), "give `max_tokens_per_query`"),
    "max_tokens": ((), "give `truncate_prompt_tokens`"),
    "max_tokens_per_doc": ((0,), "give `truncate_prompt_tokens`"),
    "max_tokens_per_query": ((0,), "give `truncate_prompt_tokens`"),
    "media_io_kwargs": (({},), PUBLISHED),
    "min_pixels": ((), PUBLISHED),
    "mm_processor_kwargs": (({},), PUBLISHED),
    "normalize": ((True,), ACTIVATION),
    "normalized": ((True,), ACTIVATION),
    "output_dimension": ((), "give `dimensions`"),
    "output_dtype": (("float",), FLOATS),
    "output_type": (("dense",), "a vector has a number for each of its dimensions"),
    "padding": (("do_not_pad",), "prompts are not padded"),
    "prompt": ((), TOLD),
    "prompt_name": ((), TOLD),
    "rank_fields": (([], ["text"]), "documents are ranked by `text`, `image` and `video`"),
    "raw_scores": ((False,), ACTIVATION),
    "relevant_spans": (({"mode": "disabled"},), "documents are scored as a whole"),
    "return_embeddings": ((False,), "documents are scored, not embedded"),
    "return_multivector": ((False,), "an input has one vector"),
    "return_text": ((False,), "give `return_documents`"),
    "softmax": ((True,), ACTIVATION),
    "task": ((), TOLD),
    "text_type": (("document",), TOLD),
    "top_k": ((), FEWER),
    "truncate": ((True, "END", "end", False, "NONE"), CUT),
    "truncate_dim": ((), "give `dimensions`"),
    "truncation": ((True, False), CUT),
    "truncation_direction": (("Right", "right"), CUT),
    "truncation_side": (("right",), CUT),
}


class Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str | None = Field(None, description="One of the names at /v1/models.")
    instruction: str | None = Field(None, description="What counts as relevant.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Its `instruction` goes before the field of that name."
    )
    truncate_prompt_tokens: Integer | None = Field(
        None,
        ge=-1,
        description="Most tokens of a prompt, to which texts are cut; -1 or nothing: the model's "
        "limit.",
    )
    request_id: str | None = Field(None, pattern=f"^{REQUEST_ID}$")
    return_details: bool | None = Field(
        None, description="Adds logits, token counts and times to the answer."
    )


class Scoring(Request):
    use_activation: bool | None = Field(None, description="false: logits in place of scores.")
    max_tokens_per_query: Integer | None = Field(
        None, ge=0, description="To which it is cut; 0 or nothing: no limit."
    )
    max_tokens_per_doc: Integer | None = Field(
        None, ge=0, description="To which each is cut; 0 or nothing: no limit."
    )


class RerankRequest(Scoring):
    query: Content
    documents: OneOrMore
    top_n: Integer | None = Field(None, ge=0, description="How many results; 0 or nothing: all.")
    return_documents: bool | None = Field(
        None,
        description="true: documents as they came; false: none; nothing: without the data of "
        "pictures.",
    )


# The pairs of fields that belong together: one query or one for each document, and the documents.
SCORED = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)


class ScoreRequest(Scoring):
    """Two fields that belong together: each of one with each of the other, or one with all."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": [*p]} for p in SCORED]})

    text_1: OneOrMore = None
    text_2: OneOrMore = None
    queries: OneOrMore = None
    documents: OneOrMore = None
    items: OneOrMore = None
    data_1: OneOrMore = None
    data_2: OneOrMore = None


class EmbeddingRequest(Request):
    """Inputs, or conversations."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["input"]}, {"required": ["messages"]}]}
    )

    input: Input = None
    messages: Messages = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = None
    use_activation: bool | None = Field(
        None, description="Whether vectors have length 1; nothing: as the checkpoint's files say."
    )
    add_special_tokens: bool | None = Field(
        None, description="The published prompt has the special tokens that it has."
    )


class Timing(BaseModel):
    """Seconds."""

    reading: float = Field(description="until all texts were tokens and all pictures pixels")
    queued: float = Field(description="until the first pass that has a prompt of this request")
    computing: float = Field(description="until its last pass was done")


class Details(BaseModel):
    """What `return_details` adds to a result."""

    tokens: int | None = Field(None, description="of the whole prompt; what usage adds up")
    computed_tokens: int | None = Field(None, description="without what others had computed")
    truncated_tokens: int | None = Field(None, description="cut from the texts")


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class FullUsage(Usage):
    completion_tokens: int
    prompt_tokens_details: None
    completion_tokens_details: None


class RerankDocument(BaseModel):
    text: str | None
    multi_modal: list[Any] | None


class RerankResult(Details):
    index: int
    document: RerankDocument | None = None
    relevance_score: float
    logit: float | None = None


class RerankResponse(BaseModel):
    id: str
    model: str
    usage: Usage
    results: list[RerankResult]
    timing: Timing | None = None


class ScoreData(Details):
    index: int
    object: Literal["score"]
    score: float
    logit: float | None = None


class ScoreResponse(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[ScoreData]
    usage: FullUsage
    timing: Timing | None = None


class EmbeddingData(Details):
    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingResponse(BaseModel):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[EmbeddingData]
    usage: FullUsage
    timing: Timing | None = None


class Permission(BaseModel):
    id: str
    object: Literal["model_permission"]
    created: int
    allow_create_engine: bool
    allow_sampling: bool
    allow_logprobs: bool
    allow_search_indices: bool
    allow_view: bool
    allow_fine_tuning: bool
    organization: str
    group: str | None
    is_blocking: bool


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int
    permission: list[Permission]


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Version(BaseModel):
    version: str


class ErrorInfo(BaseModel):
    message: str
    type: str
    param: str | None = Field(description="the field that is wrong, as `documents[3]`")
    code: int


class ErrorResponse(BaseModel):
    error: ErrorInfo
