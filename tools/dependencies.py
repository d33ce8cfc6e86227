"""Print the runtime dependencies of pyproject.toml, one argument a line, so that they install without a build."""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # a fresh interpreter has pip's own copy
    from pip._vendor import tomli as tomllib

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
print("\n".join(dependency.replace(" ", "") for dependency in project["dependencies"] if ";" not in dependency))
