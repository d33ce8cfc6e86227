"""`glmcore serve` from the outside, and what its guide says."""

import asyncio
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from live_server import serving
from scripted import Reply, write_scripted_model

from glmcore.cli import main
from glmcore.serve.config import ServeConfig

GUIDE = (Path(__file__).parents[1] / "docs" / "serve.md").read_text()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    script = [Reply("It is 7.", thinking="Three and four.")]
    return write_scripted_model(tmp_path_factory.mktemp("scripted") / "nano", script)


def test_help_and_dry_run_need_no_torch():
    check = (
        "import sys\nfrom glmcore.cli import main\n"
        "assert main(['serve', 'runs/nano', 'listen.port=9', '--dry-run']) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_what_dry_run_prints_is_a_configuration(tmp_path, capsys):
    assert main(["serve", "runs/nano", "listen.port=9000", 'model_aliases=["a"]', "--dry-run"]) == 0
    file = tmp_path / "server.toml"
    file.write_text(capsys.readouterr().out)
    config = ServeConfig.load([file])
    assert (config.model_name, config.listen.port, config.model_aliases) == ("nano", 9000, ["a"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["listen.prot=1"], "unknown key 'listen.prot'"),
        (["listen.port=many"], "listen.port: "),
        (["listen.host=0.0.0.0"], "there is no API key"),
        (["none.toml"], "cannot read none.toml"),
    ],
)
def test_wrong_settings_are_told_before_the_model_is_loaded(settings, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GLMCORE_API_KEYS", raising=False)
    assert main(["serve", "no/such/model", *settings]) == 1
    assert message in capsys.readouterr().err


def test_the_command_says_where_it_listens_answers_and_stops_when_told(model):
    command = [sys.executable, "-m", "glmcore", "serve", str(model), "listen.port=0", "model.num_threads=1"]
    environment = {**os.environ, "GLMCORE_API_KEYS": "a-key-of-this-test"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            said = [process.stderr.readline() for _ in range(5)]
            url = re.search(r"http://127\.0\.0\.1:\d+", said[0])[0]
            body = re.search(r"-d '(.*)'", said[4])[1]
            assert "Bearer KEY" in said[4]
            headers = {"content-type": "application/json", "authorization": "Bearer a-key-of-this-test"}
            answer = httpx.post(f"{url}/v1/chat/completions", content=body, headers=headers, timeout=60).json()
            assert answer["choices"][0]["message"]["content"] == "It is 7."
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130
        finally:
            process.kill()


def test_the_guide_runs_as_it_is_written(model, capsys):
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, flags=re.DOTALL):
        for command in block.splitlines():
            words = [word for word in shlex.split(command) if not word.startswith("GLMCORE_API_KEYS=")]
            assert main([*words[1:], "--dry-run"]) == 0, command
    capsys.readouterr()
    client, own = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    with serving(model) as url:
        exec(compile(client.replace("http://127.0.0.1:8000", url).replace('"nano"', '"glm"'), "serve.md", "exec"), {})
    assert capsys.readouterr().out == "Three and four.It is 7."
    made = {}
    exec(compile(own.replace("runs/nano/export/bf16", str(model)), "serve.md", "exec"), made)
    asyncio.run(live_and_end(made["app"]))
    assert {path.split("/NAME")[0] for path in re.findall(r"`(?:POST |GET )?(/\S*)`", GUIDE)} <= known_paths(
        made["app"]
    )


async def live_and_end(app) -> None:
    async with app.router.lifespan_context(app):
        assert app.state.ready


def known_paths(app) -> set[str]:
    return {*app.openapi()["paths"], "/", "/openapi.json", "/v1"}
