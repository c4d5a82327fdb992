# On a machine with only Python 3.11+, pip and make, each verb installs what it needs into .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/.tools
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV     := UV_SYSTEM_CERTS=1 $(BIN)/python -m uv pip install --quiet --python $(BIN)/python

# Scripts may call untyped functions; a wrong name or argument is an error there too.
LOOSER := --allow-untyped-defs --allow-untyped-calls --allow-any-generics --no-warn-return-any --no-warn-unused-ignores

.PHONY: setup demo demo-full demo-segment test packaging check bench docs clean lock

setup: $(READY)                          ## install anyres and what training and evaluation use into .venv
	@echo "ready. Next: . $(BIN)/activate && anyres train restv2_nano --data groceries --out runs/first"
	@echo "  (engines for predict --backend, export and int8: pip install -e '.[deploy]'; all: '.[all]')"

# $(1): the file of pinned dependencies. uv installs for its speed, pip where uv cannot be had or fails.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anyres needs Python 3.11 or newer; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) uv || echo "uv cannot be had: pip installs"
	@$(UV) --require-hashes -r $(1) && $(UV) --no-deps -e . || \
	  { $(PIP) --require-hashes -r $(1) && $(PIP) --no-deps -e . ; }
	@touch $@
endef

$(READY): requirements-run.lock pyproject.toml
	@echo "installing into $(VENV): a minute or two, 5.9 GB on disk (docs/start.md has smaller ways)"
	$(call install,requirements-run.lock)

$(TOOLS): requirements.lock pyproject.toml
	@echo "installing into $(VENV), with every extra and the tools of the tests: a minute or two, 6.5 GB on disk"
	$(call install,requirements.lock)

demo: $(READY)                           ## train on real photographs and compare sizes (about 4 minutes on 2 cores)
	$(BIN)/anyres demo --out runs/demo
	@echo "open runs/demo/report.html. Next, with your images in root/CLASS/:"
	@echo "  . $(BIN)/activate && anyres train restv2_nano --data root --out runs/mine"

demo-full: $(READY)                      ## the same with four views of every photograph a step (10 minutes)
	$(BIN)/anyres demo --full --out runs/demo-full
	@echo "open runs/demo-full/report.html"

demo-segment: $(READY)                   ## find lungs on chest films, at every size (about 4 minutes)
	$(BIN)/anyres demo --segment --out runs/demo-segment
	@echo "open runs/demo-segment/report.html. Next: $(BIN)/anyres predict runs/demo-segment/any-size film.jpg --draw drawn"

test: $(TOOLS)                           ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

packaging: $(TOOLS)                      ## the wheel in an empty environment, and the lowest versions
	$(BIN)/python -m pytest -n 0 -m packaging tests/test_packaging.py

check: $(TOOLS)                          ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(LOOSER) $(wildcard benchmarks examples docs)
	$(BIN)/lint-imports

bench: $(TOOLS)                          ## the evidence beyond the demo; long, see docs/lab
	$(BIN)/python benchmarks/cpu_kernels.py
	$(BIN)/python benchmarks/view_memory.py
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/inference.py --compiled
	$(BIN)/python benchmarks/folding.py
	$(BIN)/python benchmarks/int8.py
	$(BIN)/python benchmarks/skip_dropped.py
	$(BIN)/python benchmarks/size_cost.py
	-$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/demo_seeds.py
	$(BIN)/python benchmarks/demo_seeds.py full
	$(BIN)/python benchmarks/demo_seeds.py segment
	$(BIN)/python benchmarks/cascade.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/dino.py
	$(BIN)/python benchmarks/any_size.py cifar10 --epochs 2
	$(BIN)/python benchmarks/any_size.py groceries --epochs 20

docs: $(TOOLS)                           ## check the pages' links and snippets, and build the site into site/
	$(BIN)/python -m pytest -n 0 tests/test_docs.py tests/test_site.py
	$(BIN)/zensical build --strict
	@echo "open site/index.html"

lock:                                    ## pin every dependency anew
	uv pip compile --universal --python-version 3.11 --extra dev --generate-hashes --no-emit-index-url \
	  --no-header --quiet pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --extra data --extra tasks --generate-hashes --no-emit-index-url \
	  --no-header --quiet -c requirements.lock pyproject.toml -o requirements-run.lock

clean:                                   ## remove what setup and runs made
	rm -rf $(VENV) runs dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
