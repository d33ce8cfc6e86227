"""Who is answered, how often, and where the server may listen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmcore.errors import ConfigError
from glmcore.serve.config import LimitsConfig, ServeConfig
from glmcore.serve.errors import ServeError
from glmcore.serve.rates import RateLimits, TokenBucket
from glmcore.serve.security import ApiKeys, Doorkeeper, check_exposure, is_loopback

KEY, OTHER = "k" * 16, "another key of the server"


def config_of(**sections) -> ServeConfig:
    return ServeConfig.from_dict(sections, "test")


def test_keys_come_from_the_file_and_the_environment(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# team\n\n{KEY}\n")
    config = config_of(security={"keys_file": str(file)})
    keys = ApiKeys.load(config, {"GLMCORE_API_KEYS": f"{OTHER.replace(' ', '-')}, {KEY}"})
    assert len(keys) == 2
    assert keys.owner(KEY) == "key-1"
    assert keys.owner(OTHER.replace(" ", "-")) == "key-2"
    assert keys.owner(KEY[:-1]) is None


def test_no_key_stays_readable_in_memory():
    keys = ApiKeys([KEY])
    assert KEY not in repr(vars(keys))
    assert KEY.encode() not in b"".join(keys._digests)


def test_a_missing_an_empty_and_a_guessable_key_are_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        ApiKeys.load(config_of(security={"keys_file": str(tmp_path / "none")}), {})
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="has no key"):
        ApiKeys.load(config_of(security={"keys_file": str(tmp_path / "empty")}), {})
    with pytest.raises(ConfigError, match="at least 16"):
        ApiKeys(["short"])


@given(st.text())
def test_whatever_is_offered_only_the_keys_open(offered):
    assert (ApiKeys([KEY]).owner(offered) is not None) == (offered == KEY)


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"authorization": f"bearer {KEY}"}, {"x-api-key": KEY}]
)
def test_both_dialects_headers_carry_the_key(headers):
    assert Doorkeeper(config_of(), ApiKeys([OTHER, KEY])).admit(headers, "1.2.3.4") == "key-2"


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}, {"x-api-key": ""}]
)
def test_without_the_right_key_nothing_is_answered(headers):
    with pytest.raises(ServeError) as failure:
        Doorkeeper(config_of(), ApiKeys([KEY])).admit(headers, "127.0.0.1")
    assert (failure.value.status, failure.value.kind) == (401, "authentication")


def test_pages_of_other_sites_cannot_use_a_server_without_keys():
    door = Doorkeeper(config_of(listen={"allowed_hosts": ["box.local"]}), ApiKeys([]))
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "box.local"):
        assert door.admit({"host": host}, "127.0.0.1") == "127.0.0.1"
    assert door.admit({"host": "localhost:80", "origin": "http://localhost:80"}, "127.0.0.1")
    for headers in (
        {"host": "evil.example:8000"},
        {"host": ""},
        {"host": "localhost:8000", "origin": "http://evil.example"},
        {"host": "localhost:8000", "origin": "null"},
    ):
        with pytest.raises(ServeError) as failure:
            door.admit(headers, "127.0.0.1")
        assert failure.value.status == 403


def test_a_server_that_others_reach_needs_a_key_or_a_clear_word():
    public = config_of(listen={"host": "0.0.0.0"})
    with pytest.raises(ConfigError, match="open_to_all"):
        check_exposure(public, ApiKeys([]))
    check_exposure(public, ApiKeys([KEY]))
    check_exposure(config_of(listen={"host": "0.0.0.0"}, security={"open_to_all": True}), ApiKeys([]))
    check_exposure(config_of(), ApiKeys([]))
    assert [is_loopback(host) for host in ("localhost", "127.9.9.9", "::1", "10.0.0.1", "example.com", "::")] == [
        *(True, True, True),
        *(False, False, False),
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 50)), max_size=30))
def test_a_bucket_never_gives_more_than_its_rate(steps):
    clock = Clock()
    bucket = TokenBucket(60, clock)
    given_out = 0.0
    for pause, amount in steps:
        clock.now += pause
        if bucket.wait_s(amount) == 0:
            bucket.take(amount)
            given_out += amount
        assert given_out <= 60 + clock.now + 1e-6


def test_a_bucket_says_when_it_will_have_enough():
    clock = Clock()
    bucket = TokenBucket(60, clock)
    bucket.take(60)
    assert bucket.wait_s(5) == pytest.approx(5)
    clock.now += 5
    assert bucket.wait_s(5) == 0


def test_each_client_has_its_own_rate_and_pays_for_its_tokens():
    clock = Clock()
    rates = RateLimits(LimitsConfig(requests_per_minute=2, tokens_per_minute=100), clock)
    rates.admit("a")
    rates.admit("a")
    with pytest.raises(ServeError, match="2 requests a minute") as failure:
        rates.admit("a")
    assert failure.value.retry_after_s == pytest.approx(30)
    rates.admit("b")
    rates.charge("b", 160)
    with pytest.raises(ServeError, match="100 tokens a minute"):
        rates.admit("b")
    clock.now += 37
    rates.admit("b")
