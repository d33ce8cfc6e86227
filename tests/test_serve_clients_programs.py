"""Programs that people point at a server, as they come from their packages: agents and lm-eval.

The model is `scripted`: an ordinary checkpoint whose weights are written by hand, so that an agent gets somewhere.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from live_server import serving
from scripted import Reply, tool_call, write_scripted_model

CONTEXT = 65_536
TALK = Reply("Hello from glmcore.", thinking="A greeting.")
DONE = Reply("The file is written.", thinking="The tool has answered.", when="<|observation|>")


def run(command, cwd, timeout_s=120, **environment):
    """A program with an environment of its own; its standard output."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env={**kept, "HOME": str(cwd), **environment},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def serve_script(directory, call, done=DONE, script=()):
    """A server whose model, offered tools, makes a call, and is done once a tool has answered."""
    acts = Reply("I write the file.", thinking="A tool can do that.", call=call, when="<arg_key>")
    model = write_scripted_model(directory / "model", [TALK, acts, done, *script], CONTEXT)
    return serving(model, engine={"cache_tokens": 2 * CONTEXT})


def claude_code():
    """The program in the wheel of claude-agent-sdk."""
    spec = importlib.util.find_spec("claude_agent_sdk")
    found = Path(spec.origin).parent / "_bundled" / "claude" if spec and spec.origin else None
    if found is None or not found.exists():
        pytest.skip("the wheel of claude-agent-sdk has no claude for this platform")
    return found


def test_claude_code_writes_a_file(tmp_path):
    """One task: it connects, reads the stream, runs the tool that the model calls, and sends the result back."""
    work = tmp_path / "work"
    work.mkdir()
    call = tool_call("Bash", command="echo hello > greeting.txt", description="Writes the file")
    with serve_script(tmp_path, call) as url:
        lines = run(
            [claude_code(), "-p", "Write hello into greeting.txt", "--output-format", "stream-json", "--verbose",
             "--allowedTools", "Bash"],
            work,
            ANTHROPIC_BASE_URL=url, ANTHROPIC_API_KEY="none", ANTHROPIC_MODEL="glm", ANTHROPIC_SMALL_FAST_MODEL="glm",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_AUTOUPDATER="1", IS_SANDBOX="1",
        ).splitlines()  # fmt: skip
    events = [json.loads(line) for line in lines]
    blocks = [block for event in events if event["type"] == "assistant" for block in event["message"]["content"]]
    assert [block["text"] for block in blocks if block["type"] == "text"] == ["I write the file.", DONE.content]
    assert [block["thinking"] for block in blocks if block["type"] == "thinking"] == [
        "A tool can do that.",
        DONE.thinking,
    ]
    assert (work / "greeting.txt").read_text() == "hello\n"
    result = events[-1]
    assert (result["subtype"], result["is_error"], result["result"]) == ("success", False, DONE.content)
    assert result["num_turns"] == 2
    # The second turn begins as the first did: what the first had to compute, the second finds in the cache.
    assert result["usage"]["cache_read_input_tokens"] > 0.9 * result["usage"]["input_tokens"]


def test_mini_swe_agent_finishes_a_task(tmp_path):
    pytest.importorskip("minisweagent.__main__", reason="mini-swe-agent is not installed", exc_type=ImportError)
    submit = Reply(
        "It is written, so I submit.",
        thinking="Nothing is left.",
        call=tool_call("bash", command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"),
        when="<|observation|>",
    )
    work = tmp_path / "work"
    work.mkdir()
    with serve_script(tmp_path, tool_call("bash", command="echo hello > greeting.txt"), submit) as url:
        run(
            [sys.executable, "-W", "ignore", "-m", "minisweagent", "-m", "openai/glm", "-t", "Write hello", "-y",
             "--exit-immediately", "-o", work / "log.json"],
            work,
            OPENAI_API_BASE=f"{url}/v1", OPENAI_API_KEY="none", MSWEA_COST_TRACKING="ignore_errors",
            MSWEA_CONFIGURED="true", MSWEA_SILENT_STARTUP="1", LITELLM_LOCAL_MODEL_COST_MAP="True",
        )  # fmt: skip
    assert (work / "greeting.txt").read_text() == "hello\n"
    log = json.loads((work / "log.json").read_text())
    assert log["info"]["exit_status"] == "Submitted"
    assert log["info"]["model_stats"]["api_calls"] == 2


def from_npm(name, package):
    """A program that is tried where it is installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: npm install -g {package}")
    return found


def test_opencode_writes_a_file(tmp_path):
    opencode = from_npm("opencode", "opencode-ai")
    work = tmp_path / "work"
    work.mkdir()
    call = tool_call("bash", command="echo hello > greeting.txt", description="Writes the file")
    with serve_script(tmp_path, call) as url:
        provider = {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
            "models": {"glm": {"tool_call": True, "limit": {"context": CONTEXT, "output": 4096}}},
        }
        (work / "opencode.json").write_text(json.dumps({"provider": {"local": provider}}))
        said = run([opencode, "run", "-m", "local/glm", "Write hello into greeting.txt"], work)
    assert DONE.content in said
    assert (work / "greeting.txt").read_text() == "hello\n"


def test_qwen_code_writes_a_file(tmp_path):
    qwen = from_npm("qwen", "@qwen-code/qwen-code")
    work = tmp_path / "work"
    work.mkdir()
    call = tool_call("run_shell_command", command="echo hello > greeting.txt", is_background="false")
    with serve_script(tmp_path, call) as url:
        said = run(
            [qwen, "-y", "-p", "Write hello into greeting.txt"],
            work,
            OPENAI_BASE_URL=f"{url}/v1", OPENAI_API_KEY="none", OPENAI_MODEL="glm",
        )  # fmt: skip
    assert DONE.content in said
    assert (work / "greeting.txt").read_text() == "hello\n"


def test_codex_writes_a_file_through_responses(tmp_path):
    codex = from_npm("codex", "@openai/codex")
    work = tmp_path / "work"
    (work / ".codex").mkdir(parents=True)
    with serve_script(tmp_path, tool_call("exec_command", cmd="echo hello > greeting.txt")) as url:
        provider = f'name = "local"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
        (work / ".codex" / "config.toml").write_text(
            'model = "glm"\nmodel_provider = "local"\nweb_search = "disabled"\n[model_providers.local]\n' + provider
        )
        said = run(
            [codex, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "Write hello"], work
        )
    assert DONE.content in said
    assert (work / "greeting.txt").read_text() == "hello\n"


LM_EVAL = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
url, model = sys.argv[1:]
door = f"model=glm,num_concurrent=1,max_retries=1,max_length=2048,eos_string=<|endoftext|>"
completions = f"{door},base_url={url}/v1/completions,tokenizer={model},tokenizer_backend=huggingface"
told = {}
for kind, args, task, chat in (
    ("local-completions", f"{completions},tokenized_requests=False", "choose", False),
    ("local-chat-completions", f"{door},base_url={url}/v1/chat/completions", "greet", True),
):
    results = simple_evaluate(
        model=kind, model_args=args, tasks=[task], task_manager=TaskManager(include_path="tasks"),
        apply_chat_template=chat, bootstrap_iters=0,
    )
    told |= {task: results["results"][task]}
print(json.dumps(told, default=str))
"""


def test_lm_eval_through_completions_and_chat(tmp_path):
    """Every token that the script does not know is followed by any token alike, so the shorter choice is likelier."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed", exc_type=ImportError)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    data = {
        "choose": [
            {"question": f"What is {n}?", "choices": [" no", " something else entirely"], "gold": 0} for n in (1, 2)
        ],
        "greet": [{"question": "Greet me.", "answer": TALK.content}],
    }
    shared = {"output_type": "multiple_choice", "doc_to_text": "{{question}}"}
    forms = {
        "choose": {**shared, "doc_to_choice": "{{choices}}", "doc_to_target": "gold"},
        "greet": {
            **shared,
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 200},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }
    for name, rows in data.items():
        file = tasks / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
        # YAML is a superset of JSON.
        (tasks / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **forms[name]}))
    with serve_script(tmp_path, tool_call("none")) as url:
        said = run(
            [sys.executable, "-W", "ignore", "-c", LM_EVAL, url, tmp_path / "model"],
            tmp_path,
            HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", OPENAI_API_KEY="none",
        )  # fmt: skip
    told = json.loads(said.splitlines()[-1])
    assert told["choose"]["acc,none"] == 1.0
    assert told["greet"]["exact_match,none"] == 1.0
