# Thin: what a target does is in tests/tools, tests/demo and tests/twin.
PYTHON := /usr/bin/python3
MACHINE ?= hgx-h200
.DEFAULT_GOAL := help
.PHONY: help python setup test bench fidelity demo scenario scenarios

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name what; do printf '%-16s %s\n' "$$name" "$$what"; done

python:
	@test -x $(PYTHON) || { echo "This machine cannot run it yet: $(PYTHON) is missing. Install what is needed with:"; \
	  echo "    apt-get update && apt-get install -y --no-install-recommends $$(tr '\n' ' ' <tests/tools/requirements-apt.txt)"; exit 1; }

setup: python ## check the machine, make the virtual environment and the link that runs playbooks from this checkout
	@$(PYTHON) -m tests.tools.prepare

test: setup ## lint, types, unit tests, sanity, molecule scenario "default"
	@$(PYTHON) -m tests.tools.inside tests.tools.check

demo: python ## the whole job on an emulated server; MACHINE=hgx-h200, KEEP=1 leaves the server up
	@$(PYTHON) -m tests.tools.prepare --emulate
	@$(PYTHON) -m tests.tools.inside tests.demo --machine $(MACHINE) $(if $(KEEP),--keep)

bench: setup ## reader and placement beside others, rubbish that is survived, is placement the best; last line: the JSON file
	@$(PYTHON) -m tests.tools.inside tests.bench

fidelity: setup ## machine x size: what guests should see of the host's paths, mirrored and flat; last line: the JSON file
	@$(PYTHON) -m tests.tools.inside tests.fidelity table

scenario: python ## one molecule scenario alone: NAME=default, NAME=hgx-h200
	@$(PYTHON) -m tests.tools.prepare --emulate
	@$(PYTHON) -m tests.tools.inside tests.tools.scenario $(or $(NAME),$(error say which: make scenario NAME=hgx-h200))

scenarios: python ## every molecule scenario, one after the other
	@$(PYTHON) -m tests.tools.prepare --emulate
	@$(PYTHON) -m tests.tools.inside tests.tools.scenario --all
