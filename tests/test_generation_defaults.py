"""What a checkpoint's generation_config.json says holds where a request does not say."""

import json

import pytest
from exports import model, tokenizer

from glmcore.engine.defaults import GenerationDefaults
from glmcore.engine.llm import LLM
from glmcore.engine.sampling import SamplingParams
from glmcore.errors import CheckpointError
from glmcore.serve.anthropic.request import sampling_of
from glmcore.serve.anthropic.schema import MessagesRequest
from glmcore.serve.openai.chat_schema import ChatRequest

SAID = {"temperature": 0.6, "top_p": 0.95, "top_k": 40, "eos_token_id": [3, 5], "do_sample": True}


def test_an_engine_is_sampled_from_as_the_checkpoint_says(tmp_path):
    directory = tmp_path / "export"
    model().save_pretrained(directory)
    tokenizer().save(directory)
    (directory / "generation_config.json").write_text(json.dumps(SAID))
    llm = LLM(directory)
    assert llm.sampling == SamplingParams(temperature=0.6, top_p=0.95, top_k=40)
    assert llm.engine.stop_token_ids == {3, 5}
    [told] = llm.generate([[7, 8]])
    assert [told] == llm.generate([[7, 8]], llm.sampling)


def test_a_checkpoint_without_the_file_says_nothing(tmp_path):
    assert GenerationDefaults.of(tmp_path) == GenerationDefaults(SamplingParams(), None)


@pytest.mark.parametrize("text", ["[", "[]", '{"temperature": -1}', '{"eos_token_id": "x"}'])
def test_a_broken_file_is_refused_by_name(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationDefaults.of(tmp_path)


def test_what_a_request_says_goes_before_what_the_checkpoint_says():
    defaults = SamplingParams(temperature=0.6, top_p=0.95, top_k=40, repetition_penalty=1.1)
    messages = [{"role": "user", "content": "x"}]
    asked = ChatRequest.model_validate({"messages": messages, "temperature": 0.2, "top_k": -1})
    params = asked.sampling(8, 0, 100, defaults)
    assert (params.temperature, params.top_p, params.top_k, params.repetition_penalty) == (0.2, 0.95, 0, 1.1)
    body = MessagesRequest.model_validate({"model": "m", "max_tokens": 8, "messages": messages, "top_p": 0.5})
    params = sampling_of(body, defaults)
    assert (params.temperature, params.top_p, params.max_tokens) == (0.6, 0.5, 8)
