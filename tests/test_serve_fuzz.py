"""Whatever is sent, the server does not fail: requests drawn from its own OpenAPI document, and bodies bent out of shape."""

import json
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from serving import app_of, random_conversations, running
from serving import settings as serve_settings

from glmcore import train_tokenizer

ROOT = Path(__file__).parents[1]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LIMITS = {"max_completion_tokens": 2, "max_choices": 3}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
COMPLETION = {"prompt": "hi", "max_tokens": 2}
MESSAGES = {"model": "glm", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
RESPONSE = {"model": "glm", "input": "hi", "max_output_tokens": 16}
PATHS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": {key: MESSAGES[key] for key in ("model", "messages")},
    "/v1/responses": RESPONSE,
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
FIELDS = sorted(
    {*CHAT, *COMPLETION, *MESSAGES, *RESPONSE}
    | {"tools", "tool_choice", "stop", "n", "seed", "logprobs", "top_logprobs", "logit_bias", "stream", "temperature"}
    | {"response_format", "system", "thinking", "echo", "top_p", "top_k", "stop_sequences", "text", "instructions", "tokens"}
)
LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.text(max_size=8), st.floats(), st.integers(), st.integers(-(10**30), 10**30)),
    *(st.sampled_from(["user", "assistant", "tool", "system", "function", "auto", "required", "json_schema", "\ud800", "<|user|>"]),),
)
KEYS = st.one_of(st.sampled_from(["role", "content", "type", "text", "function", "name", "parameters", "tool_calls"]), st.text(max_size=4))
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)


@pytest.fixture(scope="module")
def server():
    tokenizer = train_tokenizer([ROOT / "README.md"], vocab_size=600, progress=False)
    config = serve_settings(limits=LIMITS, engine={"cache_tokens": 16384})
    with running(app_of(random_conversations(tokenizer, config), config), config) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def assert_decent(response):
    """An answer, or a refusal in the shape of the dialect."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.json()["error"]["message"]


SLOW_IS_FINE = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True, "database": None}


def test_requests_drawn_from_the_document_are_answered_as_it_says(server, client):
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:

        @settings(max_examples=12, phases=[Phase.explicit, Phase.generate], **SLOW_IS_FINE)
        @given(case=operation.as_strategy())
        def answers(case):
            case.call_and_validate(checks=CHECKS)

        answers()
    counted = client.get("/metrics").text
    for path in PATHS:
        assert f'path="{path}",status="200"' in counted, f"{path} was only refused"


@settings(max_examples=120, **SLOW_IS_FINE)
@given(path=st.sampled_from(sorted(PATHS)), field=st.sampled_from(FIELDS), value=JSON)
def test_a_field_of_any_value_is_taken_or_refused(client, path, field, value):
    body = json.dumps({**PATHS[path], field: value})
    assert_decent(client.post(path, content=body, headers={"content-type": "application/json"}))


@settings(max_examples=60, **SLOW_IS_FINE)
@given(path=st.sampled_from(sorted(PATHS)), message=JSON)
def test_a_message_of_any_shape_is_taken_or_refused(client, path, message):
    field = "input" if path == "/v1/responses" else "messages"
    body = json.dumps({**PATHS[path], field: [message]})
    assert_decent(client.post(path, content=body, headers={"content-type": "application/json"}))


@settings(max_examples=60, **SLOW_IS_FINE)
@given(path=st.sampled_from(sorted(PATHS)), at=st.integers(0, 200), junk=st.binary(max_size=6))
def test_a_damaged_body_is_refused(client, path, at, junk):
    whole = json.dumps(PATHS[path]).encode()
    at %= len(whole)
    body = whole[:at] + junk + whole[at + 1 :]
    assert_decent(client.post(path, content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"max_tokens": 1' + b"0" * 5000 + b"}",
        b'{"temperature": NaN}',
        b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}], "input": "\\ud800", "max_tokens": 1}',
    ],
    ids=["empty", "null", "list", "no utf-8", "deep", "deep objects", "long number", "nan", "lone surrogate"],
)
def test_bodies_that_break_parsers_are_refused(client, path, body):
    assert_decent(client.post(path, content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("target", ["/%2e%2e/etc/passwd", "/page/../../app.py", "/v1/models/%00", "/" + "a" * 5000, "//"])
def test_no_path_leads_to_a_file(client, target):
    response = client.get(target)
    assert response.status_code in (200, 404)
    assert "import" not in response.text
