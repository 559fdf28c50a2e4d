# Thin: what a target does is in tests/tools, tests/demo and tests/twin.
PYTHON := /usr/bin/python3
MACHINE ?= hgx-h200
.DEFAULT_GOAL := help
.PHONY: help setup test demo scenario scenarios

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name what; do printf '%-16s %s\n' "$$name" "$$what"; done

setup: ## check the machine, make the virtual environment and the link that runs playbooks from this checkout
	@$(PYTHON) -m tests.tools.prepare

test: setup ## lint, types, unit tests, sanity, molecule scenario "default"
	@$(PYTHON) -m tests.tools.inside tests.tools.check

demo: ## the whole job on an emulated server; MACHINE=hgx-h200, KEEP=1 leaves the server up
	@$(PYTHON) -m tests.tools.prepare --emulate
	@$(PYTHON) -m tests.tools.inside tests.demo --machine $(MACHINE) $(if $(KEEP),--keep)

scenario: ## one molecule scenario alone: NAME=default, NAME=hgx-h200
	@$(PYTHON) -m tests.tools.prepare --emulate
	@$(PYTHON) -m tests.tools.inside tests.tools.scenario $(or $(NAME),$(error say which: make scenario NAME=hgx-h200))

scenarios: ## every molecule scenario, one after the other
	@$(PYTHON) -m tests.tools.prepare --emulate
	@$(PYTHON) -m tests.tools.inside tests.tools.scenario --all
