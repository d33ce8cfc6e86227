"""Answers that must have a form have it, whatever the weights say: the model here is random. Over a real socket."""

import json
from pathlib import Path

import httpx
import pytest
from serving import app_of, random_conversations, running, settings

from glmcore import train_tokenizer

ROOT = Path(__file__).parents[1]
ASK = {"messages": [{"role": "user", "content": "Well?"}], "chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["s", "m"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"unit": {"enum": ["C", "F"]}, "day": {"type": "integer", "minimum": 1, "maximum": 3}},
                "required": ["unit", "day"],
            },
        },
    }
    for name in ("weather", "tides")
]


@pytest.fixture(scope="module")
def client():
    tokenizer = train_tokenizer([ROOT / "README.md"], vocab_size=600, progress=False)
    config = settings(engine={"cache_tokens": 16384})
    with (
        running(app_of(random_conversations(tokenizer, config), config), config) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def answer(client, **fields) -> dict:
    response = client.post("/v1/chat/completions", json={**ASK, "max_tokens": 300, **fields})
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    return choice


@pytest.mark.parametrize("seed", range(3))
def test_content_fits_the_schema(client, seed):
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}
    choice = answer(client, response_format=form, seed=seed)
    value = json.loads(choice["message"]["content"])
    assert set(value) == {"ok", "size"}
    assert isinstance(value["ok"], bool)
    assert value["size"] in ("s", "m")
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize(("choice", "names"), [("required", {"weather", "tides"}), ("tides", {"tides"})])
def test_a_tool_that_has_to_be_called_is_called_well(client, choice, names, thinking):
    wanted = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    think = {"chat_template_kwargs": {"enable_thinking": thinking}}
    # Random thinking does not end: what ends it here is a bias towards the tag.
    bias = {"logit_bias": {str(tag(client, "</think>")): 20}} if thinking else {}
    made = answer(client, tools=TOOLS, tool_choice=wanted, parallel_tool_calls=False, seed=5, **think, **bias)
    assert made["finish_reason"] == "tool_calls"
    [call] = made["message"]["tool_calls"]
    assert call["function"]["name"] in names
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["unit"] in ("C", "F")
    assert arguments["day"] in (1, 2, 3)
    assert made["message"]["content"] is None


def tag(client, text: str) -> int:
    prompt = {"messages": ASK["messages"], "chat_template_kwargs": {"enable_thinking": False}}
    ids = client.post("/tokenize", json={**prompt, "return_token_strs": True}).json()
    return ids["tokens"][ids["token_strs"].index(text)]


def test_a_tool_that_must_not_be_called_is_not_even_with_a_bias_towards_it(client):
    prompt = {"messages": ASK["messages"], "tools": TOOLS, "return_token_strs": True}
    told = client.post("/tokenize", json=prompt).json()
    begins = told["tokens"][told["token_strs"].index("<tool_call>")]
    made = answer(client, tools=TOOLS, tool_choice="none", logit_bias={str(begins): 100}, max_tokens=20)
    assert "tool_calls" not in made["message"]
    assert "<tool_call>" not in (made["message"]["content"] or "")


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}},
        {"response_format": {"type": "json_object"}, "tools": TOOLS, "tool_choice": "required"},
        {"tools": [TOOLS[0], TOOLS[0]], "tool_choice": "required"},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_cannot_be_had_is_refused(client, fields, stream):
    response = client.post("/v1/chat/completions", json={**ASK, **fields, "stream": stream})
    if response.status_code == 200:  # found by the engine, when the stream has begun
        assert "error" in json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    else:
        assert response.status_code == 400
