# The commands of the project. `make quickstart` and `make test` work on a fresh clone with Rust, Python and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/nano

.PHONY: setup quickstart test gpu-test check bench wheel lock clean

setup: $(VENV)/.installed  ## make .venv with everything pinned, and build the compiled core into it
	PATH="$(CURDIR)/$(BIN):$$PATH" VIRTUAL_ENV="$(CURDIR)/$(VENV)" maturin develop --release --quiet

$(VENV)/.installed: constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	$(BIN)/python -m pip install --constraint constraints.txt $$($(BIN)/python tools/dependencies.py)
	touch $@

quickstart: setup  ## the whole road with a nano model
	$(BIN)/glmcore quickstart run.dir=$(RUN)

test: setup  ## cargo tests, doctests, pytest
	cargo test --workspace --quiet
	$(BIN)/python -m pytest

gpu-test: setup  ## on a machine with an NVIDIA GPU: kernels beside their twins, under compute-sanitizer where it is, benches
	$(BIN)/python -m pytest tests/test_gpu.py tests/test_kernels.py
	if command -v compute-sanitizer >/dev/null; then \
	  for tool in memcheck racecheck synccheck; do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	      $(BIN)/python -m pytest tests/test_gpu.py -k small || exit 1; \
	  done; \
	else echo "compute-sanitizer is not installed: its checks are left out"; fi
	$(BIN)/python benches/fp8_gpu.py

check: setup  ## format, lints, types, layers, stub
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m mypy.stubtest glmcore._core --ignore-disjoint-bases

bench: setup  ## criterion benches, then the Python benches beside peers
	cargo bench --workspace
	for bench in benches/*.py; do $(BIN)/python $$bench || exit 1; done

wheel: setup  ## one abi3 wheel in dist/
	$(BIN)/maturin build --release --out dist

lock: setup  ## pin what .venv holds now
	$(BIN)/python -m pip freeze --exclude-editable --exclude glmcore > constraints.txt

clean:
	rm -rf target $(VENV) dist
