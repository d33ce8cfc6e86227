"""What the documents say holds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from glmcore.cli import main
from glmcore.recipe import RECIPES, Recipe

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_readme_runs_without_torch():
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    check = code + "\nimport sys\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1.0 some text [ 0")


def test_links_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_guide_to_own_data_works_as_it_is_written(tmp_path, monkeypatch, capsys):
    if not (ROOT / ".git").exists():
        pytest.skip("the guide's example is the history of a checkout")
    guide = (ROOT / "docs" / "prepare.md").read_text().replace("runs/my_data", f"{tmp_path}/run")
    recipe, cleaning, semantic = re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)
    (tmp_path / "my_data.toml").write_text(recipe)
    monkeypatch.chdir(ROOT)
    [commands] = re.findall(r"```sh\n(.*?)```", guide, flags=re.DOTALL)
    for command in commands.splitlines():
        assert main(command.replace("my_data.toml", str(tmp_path / "my_data.toml")).split()[1:]) == 0, command
    output = capsys.readouterr()
    assert all(f"\n{source} " in output.out for source in ("docs", "files", "checkout", "problems"))
    assert "shards are what was written" in output.err
    [code] = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    exec(compile(code, "prepare.md", "exec"), {})
    (tmp_path / "cleaning.toml").write_text(recipe.split("[[data.sources]]")[0] + cleaning + semantic)
    assert main(["data", "prepare", str(tmp_path / "cleaning.toml"), "--dry-run"]) == 0


def test_every_packaged_recipe_is_valid_and_the_folder_at_the_root_shows_them():
    for file in RECIPES.glob("*.toml"):
        assert Recipe.load([file]).train.stages
        assert (ROOT / "recipes" / file.name).samefile(file)


def test_python_files_stay_readable():
    for file in [*ROOT.glob("python/**/*.py"), *ROOT.glob("crates/*/src/*.rs")]:
        assert len(file.read_text().splitlines()) <= 400, f"{file} is longer than one idea"


def test_the_blocks_of_the_guide_to_training_hold(tmp_path, capsys):
    guide = (ROOT / "docs" / "train.md").read_text()
    [code] = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    exec(compile(code, "train.md", "exec"), {})
    assert "1 0 tokens seen, 16,777,216 in the step" in capsys.readouterr().out
    settings = tmp_path / "settings.toml"
    settings.write_text("".join(re.findall(r"```toml\n(.*?)```", guide, flags=re.DOTALL)))
    recipe = Recipe.load([RECIPES / "nano.toml", settings])
    assert (recipe.held_out.share, recipe.train.validation.every_steps) == (0.01, 100)
    [commands] = re.findall(r"```sh\n(.*?)```", guide, flags=re.DOTALL)
    for command in commands.splitlines():
        verb, *arguments = command.split("#")[0].replace("recipes/", f"{RECIPES}/").split()[1:]
        if verb == "train":
            assert main([verb, *arguments, "--dry-run"]) == 0, command


def test_the_python_of_the_fp8_guide_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "fp8.md").read_text(), flags=re.DOTALL)
    spread = [block for block in blocks if block.startswith("# torchrun")]
    plain = "\n".join(block for block in blocks if block not in spread)
    assert len(spread) == 1
    (tmp_path / "plain.py").write_text(plain)
    (tmp_path / "spread.py").write_text(spread[0])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in (["plain.py"], [*launch, "spread.py"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
