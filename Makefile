# The only entry point a newcomer needs. `make` alone prints help.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
PROFILE ?= auto
EXPERIMENTS ?=
DATA ?=
OPTIONS ?=

TORCH := torch==2.13.0
PY := .venv/bin/python
RUN := $(PY) -m decoupled
export TQDM_MININTERVAL := 1
# one thread per process is the engine's own choice; numerical libraries must not start more behind its back
export OMP_NUM_THREADS ?= 1

.PHONY: help setup reproduce test test-peers book pdf publish status verdicts estimate bench lock clean

help:  ## this text
	@echo "Weight decay from first principles, and the AdamW paper reproduced on CIFAR-10."
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## ?(.*)/  make \1|\2/' | column -t -s '|'
	@echo
	@echo "  PROFILE=auto|smoke|cpu|t4|gpu|paper   EXPERIMENTS=\"grids schedules\"   DATA=folder with CIFAR-10"
	@echo "  OPTIONS=\"--time-limit 3600\"       more options of \`run\`: $(RUN) run --help"

setup: .venv/.done  ## make .venv (done by the other targets when needed)

.venv/.done: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up .venv (once; about 1 minute, longer where the torch wheel must be downloaded)"
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check $(TORCH)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: .venv/.done  ## train what is missing for PROFILE on this machine, build the book, print the verdicts
	@$(RUN) run --profile $(PROFILE) $(if $(EXPERIMENTS),--experiments $(EXPERIMENTS)) $(if $(DATA),--data "$(DATA)") $(OPTIONS)
	@$(MAKE) --no-print-directory book
	@$(RUN) compare --profile $(PROFILE)
	@$(RUN) verdicts --profile $(PROFILE)
	@echo "The book: $$PWD/_build/html/index.html"

test: .venv/.done  ## lint, types, a strict build of the book, all tests
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

PEERS := build/peers/bin/python
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
# an environment of its own on top of .venv: none of them is needed for anything else, and together they want another torch
test-peers: .venv/.done  ## hold variants.py against the real Keras, optax, timm and optimi, by hand (downloads them)
	@test -x $(PEERS) || $(PY) -m venv build/peers
	@$(PY) $(SITE) > "$$($(PEERS) $(SITE))/beside.pth"
	@$(PEERS) -m pip install --quiet --disable-pip-version-check --no-deps -r tests/peers/requirements.txt
	@PYTHONPATH=src $(PEERS) -m pytest tests/peers -rA -p no:cacheprovider

book: .venv/.done  ## build the book from the results that exist; the committed ones are enough
	@$(RUN) notebooks
	@mkdir -p build && rm -rf _build
	@PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/jupyter-book build book --config _config.yml --path-output . --all -W --keep-going -n \
		> build/book.log 2>&1 || { cat build/book.log; echo "the book did not build; the log is build/book.log"; exit 1; }
	@touch _build/html/.nojekyll
	@$(RUN) finish _build/html
	@$(RUN) check _build/html

pdf: .venv/.done  ## print the built book as one PDF, which its start page then offers (needs Chromium)
	@test -f _build/html/index.html || $(MAKE) --no-print-directory book
	@$(RUN) pdf _build/html
	@$(RUN) check _build/html

publish: .venv/.done  ## make this machine's results of PROFILE the published ones (then commit them)
	@$(RUN) export --profile $(PROFILE)
	@$(MAKE) --no-print-directory book
	@mkdir -p book/figures && cp book/generated/answer-light.svg book/generated/answer-dark.svg book/figures/

.PHONY: links release-files card
BOOK := PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/jupyter-book build book --config _config.yml
links: .venv/.done  ## ask every address outside the book whether it still answers
	@$(RUN) notebooks
	@$(BOOK) --path-output build/links --builder linkcheck

PACK := tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf -
release-files: book pdf  ## what a release carries, into build/release: site, PDF, results, lock, checksums (needs Chromium)
	@rm -rf build/release && mkdir -p build/release
	@$(PACK) -C _build html | gzip -n9 > build/release/site.tar.gz
	@$(PACK) data/results data/paper data/README.md LICENSE | gzip -n9 > build/release/results.tar.gz
	@cp requirements.lock build/release/
	@cd build/release && sha256sum -- *.* > SHA256SUMS

card:  ## draw the picture that links to the book show, after `make publish` (needs Chromium)
	@chromium --headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --allow-file-access-from-files \
		--user-data-dir="$$(mktemp -d)" --window-size=1200,630 --screenshot=book/_static/social-card.png \
		"file://$$PWD/.github/social-card.html" 2> /dev/null

status: .venv/.done  ## what is done and what is missing, by profile and experiment
	@$(RUN) status

verdicts: .venv/.done  ## the verdict on every claim, from the published results
	@$(RUN) verdicts

estimate: .venv/.done  ## how long what is missing for PROFILE takes on this machine, and how much disk
	@$(RUN) estimate --profile $(PROFILE) $(if $(EXPERIMENTS),--experiments $(EXPERIMENTS))

bench: .venv/.done  ## measure the engine against a plain training loop
	@$(PY) benchmarks/bench.py

lock:  ## resolve requirements.in anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
		requirements.in -o requirements.lock

clean:  ## remove what was built; results and data stay
	rm -rf _build build book/_vendor book/generated book/notebooks
