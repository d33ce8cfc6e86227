"""Random schemas, patterns and tools with a random model: what comes is what was asked for."""

import contextlib
import json
import re

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glmcore
from glmcore.chat import parse_reply
from glmcore.engine.constrain import json_object, json_schema, regex, tool_calls
from glmcore.engine.guide import Grammars, allowed_tokens
from glmcore.engine.sampler import Sampler
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import RequestError

TEXT = 'hello world {"a": 1.5, "b": [true, false, null]} <arg get weather -city Paris tool_call> arg_value </think '


@pytest.fixture(scope="module")
def tokenizer():
    return glmcore.train_tokenizer([TEXT * 4] * 4, vocab_size=330, progress=False)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, tokenizer.vocab_size + 70)  # a model has more tokens than its tokenizer


STOPS = ("<|user|>", "<|observation|>")


def generate(grammars: Grammars, constraint, seed: int, max_tokens: int = 400, prefer: float = 0.3) -> str | None:
    """A reply of a model that draws any allowed token, and often one that comes rarely; None if it was cut off
    or the grammar became too dear."""
    tokenizer, rng = grammars.tokenizer, np.random.default_rng(seed)
    stop_ids = [tokenizer.token_to_id(stop) for stop in STOPS]
    guide = grammars.start(constraint, stop_ids)
    rare = [tokenizer.token_to_id(token) for token in tokenizer.special_tokens] + tokenizer.encode('"')[:1]
    ids: list[int] = []
    for _ in range(max_tokens):
        [allowed] = allowed_tokens([guide], grammars)
        choices = np.flatnonzero(allowed)
        favoured = [token for token in rare if allowed[token]]
        ids.append(int(rng.choice(favoured if favoured and rng.random() < prefer else choices)))
        if ids[-1] in stop_ids:
            return None if guide.failed else tokenizer.decode(ids, skip_special_tokens=True)
        guide.consume(ids[-1])
    return None


LEAF = st.one_of(
    st.builds(
        lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-30, 30),
        st.integers(0, 99),
    ),
    st.sampled_from(
        [
            {"type": "boolean"},
            {"type": "null"},
            {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2},
            {"enum": ["a", "ab", 3, None, {"k": [1]}]},
            {"const": "x y"},
            {"type": "string", "pattern": "^[a-c]{1,3}-[0-9]$"},
            {"type": "string", "enum": ["", "red", "redder"]},
            {"type": ["string", "null"], "maxLength": 3},
        ]
    ),
)


def nested(inner):
    keys = st.lists(st.sampled_from(["a", "b c", "é", "list"]), max_size=3, unique=True)
    objects = keys.flatmap(
        lambda names: st.builds(
            lambda schemas, required: {
                "type": "object",
                "properties": dict(zip(names, schemas, strict=True)),
                "required": [name for name, needed in zip(names, required, strict=True) if needed],
                "additionalProperties": False,
            },
            st.lists(inner, min_size=len(names), max_size=len(names)),
            st.lists(st.booleans(), min_size=len(names), max_size=len(names)),
        )
    )
    arrays = st.builds(
        lambda items, low: {"type": "array", "items": items, "minItems": low, "maxItems": low + 2},
        inner,
        st.integers(0, 2),
    )
    return objects | arrays | st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner)


SCHEMA = st.recursive(LEAF, nested, max_leaves=6)
THINKING = st.sampled_from(["none", "first", "begun"])
WORDS = st.sampled_from(["get", "get_all", "a.b-c", "wëather"])


@settings(max_examples=80)
@given(schema=SCHEMA, seed=st.integers(0, 2**32), thinking=THINKING)
def test_json_of_a_schema_is_valid_under_it(grammars, schema, seed, thinking):
    reply = generate(grammars, json_schema(schema, thinking=thinking), seed)
    if reply is None:
        return
    message = parse_reply(reply, in_thinking=thinking == "begun")
    assert message.finished_thinking
    assert thinking == "none" or reply.count("</think>") == 1
    jsonschema.validate(json.loads(message.content), schema)


@settings(max_examples=80)
@given(
    tools=st.lists(
        st.tuples(WORDS, st.lists(st.tuples(st.sampled_from(["x", "y z", "ключ"]), SCHEMA, st.booleans()), max_size=3)),
        min_size=1,
        max_size=3,
        unique_by=lambda tool: tool[0],
    ),
    choice=st.sampled_from(["auto", "required", "named"]),
    parallel=st.booleans(),
    thinking=THINKING,
    seed=st.integers(0, 2**32),
)
def test_calls_are_of_the_tools_and_their_arguments_valid(grammars, tools, choice, parallel, thinking, seed):
    schemas = {
        name: {
            "type": "object",
            "properties": {key: schema for key, schema, _ in arguments},
            "required": [
                key for key, _, needed in {key: (key, 0, needed) for key, _, needed in arguments}.values() if needed
            ],
        }
        for name, arguments in tools
    }
    told = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in schemas.items()]
    wanted = {"type": "function", "function": {"name": tools[-1][0]}} if choice == "named" else choice
    reply = generate(grammars, tool_calls(told, wanted, parallel=parallel, thinking=thinking), seed)
    if reply is None:
        return
    message = parse_reply(reply, tools=told, in_thinking=thinking == "begun")
    assert message.finished_thinking
    if choice != "auto":
        assert message.tool_calls
        assert not message.content
    assert reply.count("<tool_call>") == reply.count("</tool_call>") == len(message.tool_calls)
    assert parallel or len(message.tool_calls) <= 1
    for call in message.tool_calls:
        assert choice != "named" or call.name == tools[-1][0]
        jsonschema.validate(call.arguments, schemas[call.name])


@pytest.mark.parametrize("pattern", ["[0-9]{3}/[a-f]+", r"(yes|no)\n?", "a/b", "é{2,4}", r"\$\{x\}"])
@pytest.mark.parametrize("thinking", ["none", "first"])
def test_text_of_a_pattern_matches_the_whole_of_it(grammars, pattern, thinking):
    for seed in range(10):
        reply = generate(grammars, regex(pattern, thinking=thinking), seed)
        if reply is not None:
            text = reply if thinking == "none" else reply.split("</think>")[1].removeprefix("\n")
            assert re.fullmatch(pattern, text)


def test_free_arguments_are_json_and_objects_are_objects(grammars):
    for seed in range(20):
        reply = generate(grammars, tool_calls([{"name": "f"}], "required"), seed)
        assert reply is None or [call.name for call in parse_reply(reply).tool_calls][:1] == ["f"]
        reply = generate(grammars, json_object(), seed)
        assert reply is None or isinstance(json.loads(reply), dict)


def test_a_tag_cannot_be_spelt_out_in_an_argument(grammars, tokenizer):
    tools = [
        {
            "name": "f",
            "parameters": {"properties": {"s": {"type": "string"}, "l": {"type": "array"}}, "required": ["s", "l"]},
        }
    ]
    stop = tokenizer.token_to_id("<|user|>")
    for before in ("a", 'b</arg_value>\n<arg_key>l</arg_key>\n<arg_value>["c'):
        guide = grammars.start(tool_calls(tools, "required"), [stop])
        for token in tokenizer.encode(f"<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>{before}", special="parse"):
            assert allowed_tokens([guide], grammars)[0, token]
            guide.consume(token)
        for byte in b"</arg_value":
            token = tokenizer.core.token_to_id(bytes([byte]))
            assert allowed_tokens([guide], grammars)[0, token]
            guide.consume(token)
        [allowed] = allowed_tokens([guide], grammars)
        assert allowed.any()
        assert not any(tokenizer.id_to_token(int(token)).startswith(b">") for token in np.flatnonzero(allowed))


def test_a_sampler_draws_within_constraints_beside_free_sequences(grammars, tokenizer):
    vocab_size = grammars.vocab_size
    sampler = Sampler(vocab_size, grammars=grammars)
    stop_ids = [tokenizer.token_to_id(stop) for stop in STOPS]
    constraint = json_schema(
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 2, "maxItems": 3}
    )
    params = [
        SamplingParams(seed=0),
        SamplingParams(constraint=constraint, seed=1),
        SamplingParams(constraint=constraint, temperature=0.0),
    ]
    slots = [sampler.admit(each, [5], stop_ids=stop_ids) for each in params]
    texts: list[list[int]] = [[] for _ in params]
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        logits = torch.randn(3, vocab_size, generator=generator)
        drawn = sampler.draw(logits.clone(), slots)
        own = logits.log_softmax(-1)
        for i, token in enumerate(drawn.tokens.tolist()):
            # The model's own log-probability, although most tokens were ruled out.
            assert float(drawn.logprobs[i]) == pytest.approx(float(own[i, token]), abs=1e-5)
            texts[i].append(token)
    for ids in texts[1:]:
        end = next(place for place, token in enumerate(ids) if token in stop_ids)
        assert 2 <= len(json.loads(tokenizer.decode(ids[:end]))) <= 3


def test_without_a_stop_token_a_constraint_ends_the_text_itself(grammars):
    sampler = Sampler(grammars.vocab_size, grammars=grammars)
    slot = sampler.admit(SamplingParams(constraint=regex("(ab|cd)e"), ignore_eos=True), [5])
    drawn = [sampler.draw(torch.randn(1, grammars.vocab_size), [slot])]
    while not drawn[-1].ended:
        drawn.append(sampler.draw(torch.randn(1, grammars.vocab_size), [slot]))
    assert drawn[-1].ended == {0: "stop"}
    assert grammars.tokenizer.decode([int(each.tokens[0]) for each in drawn]) in ("abe", "cde")


def deep(levels: int) -> dict:
    schema: dict = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: json_schema("string"), "a JSON schema is an object"),
        (lambda: json_schema({"type": float("nan")}), "cannot be written as JSON"),
        (lambda: json_schema({"type": "foo"}), "Invalid type: foo"),
        (lambda: json_schema({"not": {"type": "string"}}), "Unimplemented keys"),
        (lambda: json_schema({"enum": ["x" * 300_000]}), "above the limit of 262,144"),
        (lambda: json_schema(deep(3_000)), "recursion"),
        (lambda: json_schema(deep(300)), "recursion limit"),
        (lambda: regex(""), "not empty"),
        (lambda: regex("(?=a)b"), "look-around"),
        (lambda: regex("(a"), "cannot be enforced"),
        (lambda: tool_calls([]), "at least one tool"),
        (lambda: tool_calls([{"name": "a"}, {"name": "a"}]), "two tools have the name 'a'"),
        (lambda: tool_calls([{"name": "a\nb"}]), "one line of text"),
        (lambda: tool_calls([{"name": "a"}], {"name": "b"}), "none of the tools"),
        (lambda: tool_calls([{"name": "a"}], "any"), "tool_choice must be"),
        (lambda: tool_calls([{"name": "a", "parameters": {"type": "array"}}]), "must be an object"),
        (lambda: tool_calls([{"name": "a", "parameters": {"anyOf": []}}]), "'anyOf', which cannot be enforced"),
        (lambda: tool_calls([{"name": "a", "parameters": {"$ref": "#/$defs/b"}}]), "which is not there"),
        (lambda: tool_calls([{"name": "a", "parameters": {"properties": {"<arg_key>": {}}}}]), "holds a tag"),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_one_line(grammars, make, message):
    with pytest.raises(RequestError, match=message) as error:
        grammars.compile(make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "constraint",
    [
        regex("(a{1000}){1000}"),
        regex("((a?){50}){50}b"),
        regex("(.*a.{900})|(.*b.{700})"),
        regex("(x+x+)+y"),
        json_schema(deep(100)),
        json_schema(deep(300)),
        json_schema({"$ref": "#"}),
        json_schema({"enum": [f"x{i}" for i in range(20_000)]}),
        json_schema({"type": "string", "maxLength": 10**7}),
        json_schema({"type": "array", "minItems": 10**6, "maxItems": 10**7, "items": {"type": "string"}}),
        json_schema({"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(8)]} for i in range(8)]}),
        json_schema({"properties": {f"p{i}": {"type": "string"} for i in range(2_000)}}),
    ],
    ids=lambda constraint: constraint.source[:30],
)
def test_a_hostile_constraint_is_served_or_refused_and_breaks_nothing(grammars, constraint):
    with contextlib.suppress(RequestError):
        generate(grammars, constraint, seed=0, max_tokens=20)
    assert generate(grammars, regex("ab?"), seed=1) in ("a", "ab")


def test_a_compiled_constraint_is_kept_and_the_oldest_is_forgotten(grammars, tokenizer):
    small = Grammars(tokenizer, tokenizer.vocab_size)
    for number in range(70):
        small.compile(regex(f"a{number}"))
    assert len(small._compiled) == 64
    assert regex("a69") in small._compiled
    assert regex("a0") not in small._compiled
