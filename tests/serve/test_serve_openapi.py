"""The OpenAPI document and the server say the same, whatever is sent."""

import pytest
from checkpoints import write_random
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving import Served

from pyrerank import Embedder, Reranker

pytestmark = [pytest.mark.slow, pytest.mark.long]

schemathesis = pytest.importorskip("schemathesis")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
POSTS, GETS = 6, 4
SCORING = {"/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score"}


@pytest.mark.parametrize("task", [Reranker, Embedder])
def test_any_request_is_answered_as_described(task, tmp_path):
    write_random(tmp_path, "qwen3-vl-reranker", tied=True)
    served = Served(task(tmp_path, device="cpu"))
    document = schemathesis.openapi.from_asgi("/openapi.json", served.app)
    asked: dict[str, set[int]] = {}

    def ask(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = "served"  # others are 404, whatever else is in the request
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        asked.setdefault(case.path, set()).add(response.status_code)

    try:
        for operation in (found.ok() for found in document.get_all_operations()):
            valid, invalid = (operation.as_strategy(mode) for mode in schemathesis.GenerationMode)
            posts = operation.method.upper() == "POST"
            cases = st.one_of(valid, invalid) if posts else valid
            limits = settings(
                max_examples=20 if posts else 2,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            limits(given(cases)(ask))()
    finally:
        served.close()
    answered = {path for path, codes in asked.items() if {200, 400} <= codes}
    assert len(asked) == POSTS + GETS
    assert answered == ({"/v1/embeddings"} if task is Embedder else SCORING)
