"""Chat templates of other models, beside jinja2 as `transformers` sets it up."""

import datetime
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_chat import CONVERSATION, GLM47_TEMPLATE, TOOL
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from glmcore import train_tokenizer
from glmcore.chat import ChatTemplate
from glmcore.errors import RequestError
from glmcore.tokenizer import TEMPLATE_FILE

LABELLED = """{% for message in messages %}
{{ '<|start|>' + message['role'] + '\n' }}
{%- if message.role == 'assistant' %}
{% generation %}{{ message['content'] | trim }}<|end|>{% endgeneration %}

{%- else %}
{{- message['content'].strip() + '<|end|>' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|start|>assistant\n' -}}
{% endif %}"""

WITH_MACROS = """{%- macro show(value, depth=0) -%}
  {%- if value is mapping -%}
    {%- for key, item in value | dictsort -%}{{ key }}={{ show(item, depth + 1) }};{%- endfor -%}
  {%- elif value is string -%}'{{ value }}'
  {%- elif value is iterable -%}[{% for item in value %}{{ show(item) }}{{ ", " if not loop.last }}{% endfor %}]
  {%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- set state = namespace(last=-1, calls=[]) -%}
{%- for message in messages[::-1] -%}
  {%- if state.last < 0 and message.role == 'user' -%}{%- set state.last = messages | length - loop.index0 - 1 -%}{%- endif -%}
{%- endfor -%}
{{ bos_token }}{% for message in messages %}
{%- if loop.previtem is defined and loop.previtem.role == message.role %}~{% endif %}
[{{ loop.index }}/{{ loop.length }} {{ message.role | upper }}{{ '*' if loop.index0 > state.last }}]
{%- if message.content is string and message.content.startswith('/') %} {% continue %}{% endif %}
{{- message.content.split('\n')[-1].rstrip().replace('a', 'bb') }}
{%- for call in message.tool_calls or [] %}
{%- set called = call.function if call.function is defined else call %}
<call>{{ called.name }} {{ called.arguments | tojson }} {{ show(called.arguments) }} {{ called.arguments }}</call>
{%- endfor %}
{%- endfor %}
{% if tools %}{{ tools | tojson(indent=2) }} {{ tools | map(attribute='type') | join('+') }}{% endif %}
{{ none }} {{ true }} {{ 1.0 }} {{ 1e-7 }} {{ [1, 'a', none, "it's"] }} {{ {'k': false} }} {{ missing }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 'a' ~ 1 }}"""

REFUSING = """{% for message in messages %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate, not ' + message.role) }}{% endif %}{% endfor %}ok"""


def expected(source, messages, tools=None, add_generation_prompt=False, **variables):
    [text], _ = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=source,
        add_generation_prompt=add_generation_prompt,
        **variables,
    )
    return text


@pytest.mark.parametrize("source", [LABELLED, WITH_MACROS, TEMPLATE_FILE.read_text(), GLM47_TEMPLATE.read_text()])
@settings(deadline=None, max_examples=60)
@given(messages=CONVERSATION, tools=st.sampled_from([None, [TOOL]]), prompt=st.booleans())
def test_text_is_jinjas(source, messages, tools, prompt):
    template = ChatTemplate(source, bos_token="<s>")
    assert template.render(messages, tools, prompt) == expected(source, messages, tools, prompt, bos_token="<s>")


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**100), 2**100), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@example(value=["\x7f", "\x1f", "~", "é\x7f"], options={"ensure_ascii": True})
@given(
    value=VALUES.filter(lambda value: "\\ufdd" not in json.dumps(value)),
    options=st.fixed_dictionaries(
        {}, optional={"indent": st.integers(0, 4), "ensure_ascii": st.booleans(), "sort_keys": st.booleans()}
    ),
)
def test_json_in_a_template_is_pythons(value, options):
    if any(isinstance(number, float) and number in (float("inf"), -float("inf")) for number in _leaves(value)):
        return  # JSON has no infinity
    written = "".join(f", {key}={json.dumps(option).lower()}" for key, option in options.items())[2:]
    text = ChatTemplate(f"{{{{ value | tojson({written}) }}}}").render([], value=value)
    assert text == json.dumps(value, **{"ensure_ascii": False, **options})


def _leaves(value):
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


@settings(deadline=None, max_examples=60)
@given(messages=CONVERSATION)
def test_ids_and_mask_are_those_of_transformers(labelled, messages):
    tokenizer, theirs = labelled
    ours = ChatTemplate(LABELLED).tokens(tokenizer, messages)
    told = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.ids.tolist() == told["input_ids"]
    assert ours.loss_mask.tolist() == told["assistant_masks"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    special = ["<|start|>", "<|end|>"]
    tokenizer = train_tokenizer(["some text, user assistant system tool"], 270, special_tokens=special, progress=False)
    tokenizer.save(directory)
    theirs = PreTrainedTokenizerFast.from_pretrained(directory)
    theirs.chat_template = LABELLED
    return tokenizer, theirs


def test_a_template_that_refuses_says_why_and_where():
    template = ChatTemplate(REFUSING)
    assert template.render([{"role": "user", "content": "a"}]) == "ok"
    with pytest.raises(RequestError, match=r"roles must alternate, not tool \(line 2\)"):
        template.render([{"role": "tool", "content": "a"}])


def test_a_template_knows_the_day():
    text = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render([])
    assert abs(datetime.date.fromisoformat(text) - datetime.date.today()) <= datetime.timedelta(days=1)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% set s = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set s.x = s.x ~ s.x %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_a_hostile_template_ends_in_bounded_time_and_memory(source):
    with pytest.raises(RequestError, match="chat template: "):
        ChatTemplate(source).render([])


@pytest.mark.parametrize("source", ["fine\n{% if %}", "\n{%}}}"])
def test_a_broken_template_names_its_line(source):
    with pytest.raises(RequestError, match="line 2"):
        ChatTemplate(source)


def test_a_template_comes_with_its_special_tokens_from_a_checkpoint(tmp_path):
    config = {"chat_template": [{"name": "default", "template": "{{ bos_token }}{{ eos_token }}!"}]}
    config |= {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.from_pretrained(tmp_path).render([]) == "<s></s>!"
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert ChatTemplate.from_pretrained(tmp_path).render([{"role": "user", "content": "hi"}]) == "hi"
    with pytest.raises(RequestError, match="has no chat template"):
        ChatTemplate.from_pretrained(tmp_path / "none")
