"""What the server refuses and what it lets go of, over a real socket. The model is random: its answers do not end."""

import asyncio
import json
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from serving import app_of, random_conversations, running, settings

from glmcore import train_tokenizer
from glmcore.serve.security import ApiKeys

KEY = "a-key-of-this-test"
ROOT = Path(__file__).parents[1]
ASK = {"messages": [{"role": "user", "content": "Tell me."}], "seed": 1}
LONG = {**ASK, "max_tokens": 1900}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([ROOT / "README.md"], vocab_size=600, progress=False)


class Served:
    """A server and what it runs on."""

    def __init__(self, url, conversations):
        self.url = url
        self.conversations = conversations
        self.client = httpx.Client(base_url=url, timeout=60)

    def wait_until(self, holds, what):
        end = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end, what
            time.sleep(0.01)

    def is_idle(self):
        stats = self.conversations.service.stats()
        return self.conversations.admission.in_flight == stats.running == stats.waiting == 0 and stats.cache_used == 0


@pytest.fixture
def serve(tokenizer):
    """Starts servers; each ends with the test, with nothing left running."""
    open_blocks = []

    def start(keys=(), **sections):
        config = settings(**{"engine": {"cache_tokens": 16384, "reuse_prefixes": False}, **sections})
        conversations = random_conversations(tokenizer, config)
        block = running(app_of(conversations, config, ApiKeys(keys)), config)
        server = block.__enter__()
        served = Served(server.url, conversations)
        open_blocks.append((block, served))
        return served

    yield start
    for block, served in open_blocks:
        served.client.close()
        block.__exit__(None, None, None)


def kind(response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["type"]


def test_every_path_but_health_asks_for_the_key(serve):
    served = serve(keys=[KEY])
    client = served.client
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/no/such/path"),
    ]:
        assert kind(client.request(method, path)) == (401, "authentication_error")
    refused = client.post("/v1/chat/completions", json=ASK)
    assert kind(refused) == (401, "authentication_error")
    assert refused.headers["www-authenticate"] == "Bearer"
    refused = client.post("/v1/messages", json=ASK, headers={"x-api-key": "wrong"})
    assert refused.status_code == 401
    assert refused.json()["type"] == "error"
    assert client.get("/health").json() == {"status": "ok"}
    answer = client.post(
        "/v1/chat/completions", json={**ASK, "max_tokens": 2}, headers={"authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 200


def test_foreign_pages_are_refused_where_no_key_is_asked_for(serve):
    client = serve().client
    assert client.get("/v1/models", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/v1/models").status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(serve):
    served = serve(limits={"max_body_bytes": 1000})
    assert kind(served.client.post("/v1/chat/completions", content=b"x" * 1001)) == (413, "invalid_request_error")

    def parts():
        for _ in range(100):
            yield b"x" * 100

    assert served.client.post("/v1/chat/completions", content=parts()).status_code == 413
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:  # announced alone, never sent
        raw.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_that_does_not_come_is_not_waited_for(serve):
    served = serve(limits={"body_timeout_s": 0.2})
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


def test_headers_without_end_are_cut_off(serve):
    host, port = serve().url.removeprefix("http://").split(":")
    headers = b"".join(b"X-More: " + b"a" * 10_000 + b"\r\n" for _ in range(1000))
    with socket.create_connection((host, int(port)), timeout=20) as raw, pytest.raises(OSError, match=r"reset|pipe"):
        raw.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_memory_at_once(serve, path, stream):
    served = serve()
    body = (
        {**LONG, "stream": stream}
        if "chat" in path
        else {"prompt": "a", "max_tokens": 1900, "stream": stream, "seed": 1}
    )
    content = json.dumps(body | {"n": 2}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        raw.sendall(head.encode() + content)
        served.wait_until(lambda: served.conversations.service.stats().running == 2, "it never ran")
    served.wait_until(served.is_idle, "it still runs")
    generated = served.conversations.service.stats().generated_tokens
    assert generated < 2 * 1900, "it ran to its end"


def test_a_full_server_says_when_to_come_back_and_serves_again(serve):
    served = serve(limits={"max_sequences_in_flight": 2, "retry_after_s": 3.0})
    with served.client.stream("POST", "/v1/chat/completions", json={**LONG, "n": 2, "stream": True}) as first:
        assert first.status_code == 200
        full = served.client.post("/v1/chat/completions", json=ASK)
        assert kind(full) == (429, "rate_limit_error")
        assert int(full.headers["retry-after"]) >= 3
        anthropic = served.client.post(
            "/v1/messages", json={**{k: ASK[k] for k in ("messages",)}, "model": "glm", "max_tokens": 5}
        )
        assert anthropic.status_code == 529
        assert anthropic.json()["error"]["type"] == "overloaded_error"
    served.wait_until(served.is_idle, "it still runs")
    assert served.client.post("/v1/chat/completions", json={**ASK, "max_tokens": 2}).status_code == 200


def test_a_key_that_asks_too_often_waits_and_others_do_not(serve):
    served = serve(keys=[KEY, KEY * 2], limits={"requests_per_minute": 2})
    mine, other = ({"authorization": f"Bearer {key}"} for key in (KEY, KEY * 2))
    statuses = [served.client.post("/tokenize", json={"prompt": "a"}, headers=mine).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    late = served.client.post("/tokenize", json={"prompt": "a"}, headers=mine)
    assert kind(late) == (429, "rate_limit_error")
    assert 1 <= int(late.headers["retry-after"]) <= 31
    assert served.client.post("/tokenize", json={"prompt": "a"}, headers=other).status_code == 200
    assert served.client.get("/v1/models", headers=mine).status_code == 200


def test_tokens_count_towards_the_rate_of_a_key(serve):
    served = serve(keys=[KEY], limits={"tokens_per_minute": 100})
    mine = {"authorization": f"Bearer {KEY}"}
    assert served.client.post("/v1/chat/completions", json={**ASK, "max_tokens": 300}, headers=mine).status_code == 200
    assert served.client.post("/v1/chat/completions", json=ASK, headers=mine).status_code == 429


def test_a_request_that_takes_too_long_is_ended_with_an_error(serve):
    served = serve(limits={"request_timeout_s": 0.01})
    assert kind(served.client.post("/v1/chat/completions", json=LONG)) == (504, "timeout_error")
    with served.client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
        events = response.read().decode().strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "timeout_error"
    served.wait_until(served.is_idle, "it still runs")


def test_a_silent_stream_shows_signs_of_life(serve):
    served = serve(limits={"heartbeat_s": 0.05})
    asyncio.run(served.conversations.service.pause())
    with served.client.stream(
        "POST", "/v1/chat/completions", json={**ASK, "max_tokens": 2, "stream": True}
    ) as response:
        lines = response.iter_lines()
        assert next(lines).startswith(": ")
        asyncio.run(served.conversations.service.resume())
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_answers_and_limits_are_counted(serve):
    served = serve()
    served.client.post("/v1/chat/completions", json={**ASK, "max_tokens": 5})
    served.client.get("/no/such/path")
    text = served.client.get("/metrics").text
    assert 'glmcore_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'glmcore_requests_total{path="other",status="404"} 1.0' in text
    assert "glmcore_completion_tokens_total 5.0" in text
    assert "glmcore_first_token_seconds_count 1.0" in text
    assert 'glmcore_generations_total{end="done"} 1.0' in text
    assert "glmcore_generations_in_flight 0.0" in text


@pytest.mark.parametrize("shown", [False, True])
def test_prompts_are_in_the_log_only_when_asked_for(serve, caplog, shown):
    served = serve(security={"log_prompts": shown})
    with caplog.at_level("INFO", logger="glmcore.serve"):
        served.client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "sesame"}], "max_tokens": 2}
        )
        served.client.post("/v1/chat/completions?q=sesame", content=b'{"messages": "sesame"')
    assert ("sesame" in caplog.text) == shown
    assert "2 completion tokens" in caplog.text


def test_each_answer_names_its_request(serve):
    client = serve().client
    first, second = (client.get("/v1/models").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert client.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert client.get("/v1/models", headers={"x-request-id": "no good"}).headers["x-request-id"].startswith("req_")


def test_a_server_that_stops_ends_what_is_left_within_its_time(tokenizer):
    config = settings(engine={"cache_tokens": 16384})
    conversations = random_conversations(tokenizer, config)
    told = []
    with running(app_of(conversations, config), config) as server:

        def read():
            with httpx.stream(
                "POST", f"{server.url}/v1/chat/completions", json={**LONG, "stream": True}, timeout=60
            ) as response:
                try:
                    told.extend(response.iter_lines())
                except httpx.RemoteProtocolError:
                    told.append("cut")

        asyncio.run(conversations.service.pause())  # so that the answer never ends by itself
        reader = threading.Thread(target=read)
        reader.start()
        end = time.monotonic() + 20
        while conversations.admission.in_flight == 0:
            assert time.monotonic() < end
            time.sleep(0.01)
    reader.join(20)
    assert not reader.is_alive()
    assert conversations.admission.in_flight == 0
