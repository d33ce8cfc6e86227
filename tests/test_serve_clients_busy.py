"""What Anthropic's clients are told while the server has much to do."""

import anthropic
import httpx
from live_server import serving
from scripted import Reply, write_scripted_model

PLAIN = Reply("Paris is the capital of France.", thinking="They ask for a capital city.")
ASK = [{"role": "user", "content": "What is the capital of France?"}]


def test_anthropic_is_told_529_while_the_server_is_full(tmp_path):
    """One answer fills this server: one that goes on for the whole context, until its reader leaves."""
    directory = write_scripted_model(tmp_path / "model", [PLAIN], 65_536)
    settings = {"limits": {"max_sequences_in_flight": 1}, "engine": {"cache_tokens": 65_536}}
    body = {"model": "glm", "max_tokens": 99, "messages": ASK}
    with serving(directory, **settings) as address, httpx.Client(base_url=address) as client:
        endless = {"model": "glm", "messages": ASK, "stream": True, "ignore_eos": True}
        with client.stream("POST", "/v1/chat/completions", json=endless) as reading:
            chunks = reading.iter_bytes()  # without a name it would be closed, and the stream with it
            next(chunks)
            refused = httpx.post(f"{address}/v1/messages", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (529, "overloaded_error")
        assert int(refused.headers["retry-after"]) >= 1
        with anthropic.Anthropic(base_url=address, api_key="none", max_retries=5) as patient:
            assert patient.messages.create(**body).content[0].text == PLAIN.content


def test_anthropic_is_kept_company_while_a_long_prompt_is_read(tmp_path):
    """Reading 12,000 words takes far longer than the twentieth of a second between two pings."""
    directory = write_scripted_model(tmp_path / "model", [PLAIN], 32_768)
    long = [{"role": "user", "content": "word " * 12_000}]
    body = {"model": "glm", "max_tokens": 99, "messages": long, "stream": True}
    with serving(directory, limits={"heartbeat_s": 0.05}) as address, httpx.Client(timeout=60) as client:
        with client.stream("POST", f"{address}/v1/messages", json=body) as response:
            names = [line.removeprefix("event: ") for line in response.iter_lines() if line.startswith("event: ")]
        assert names[:3] == ["message_start", "ping", "ping"]
        with anthropic.Anthropic(base_url=address, api_key="none") as patient:
            assert patient.messages.create(**{**body, "stream": False}).content[0].text == PLAIN.content
