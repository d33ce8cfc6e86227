"""The guide to clients, as it is written."""

import re
from pathlib import Path

from live_server import serving
from scripted import Reply, write_scripted_model

GUIDE = Path(__file__).parents[1] / "docs" / "clients.md"
SEVEN = Reply("It is 7.", thinking="Three and four.")


def test_the_python_of_the_guide_runs(tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    with serving(write_scripted_model(tmp_path / "model", [SEVEN]), model_aliases=["nano"]) as url:
        for block in blocks:
            names: dict = {}
            exec(compile(block.replace("http://127.0.0.1:8000", url), GUIDE.name, "exec"), names)
            names["client"].close()
    said = capsys.readouterr().out
    assert said.startswith(f"{SEVEN.content}{SEVEN.content}\n[ThinkingBlock(")
    assert said.count(SEVEN.content) == 3
