# The project's chores. Each works on a fresh Debian 12 with Rust installed, as root or with sudo.

CARGO ?= cargo

# Most tests wait for servers that they started, so more of them run at once than CI has cores.
export RUST_TEST_THREADS ?= 4

# The benches of single parts, a file each; benches/budgets measures the whole program.
PARTS := $(patsubst benches/%.rs,%,$(wildcard benches/*.rs))

.DEFAULT_GOAL := help
.PHONY: help demo dashboard setup test soak matrix bench lint fmt deny

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

demo: dashboard ## everything on one machine, with live data: http://127.0.0.1:7843
	$(CARGO) run --locked -- demo

dashboard: ## build the dashboard, which the binary then holds (Node 20.19 or newer; without it the rest is built)
	@ui/build.sh

setup: ## install what the tests need (packages, Python readers, data)
	@tests/setup.sh

test: setup ## all tests, against the real binary, a real Prometheus and DuckDB
	$(CARGO) test --locked --lib --bins --test it

soak: ## the simulation of the write path and the model of its protocol for an hour; SOAK_SECONDS, SOAK_SEED
	python3 tests/model/check.py long
	$(CARGO) test --locked --test it simulation::soak:: -- --ignored --nocapture

matrix: setup ## the gateway between each SDK, in each generation, and each kind of server (some minutes)
	$(CARGO) test --locked --test it gateway::matrix:: -- --ignored --test-threads 1

bench: setup ## each budget beside what this machine gets (compiles in release: the first time takes long); ARGS="ingest scrape" for a part
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: -r benches/budgets/requirements.txt
	$(if $(ARGS),,$(CARGO) bench --locked $(PARTS:%=--bench %) -- --warm-up-time 1 --measurement-time 3)
	$(CARGO) bench --locked --bench budgets -- $(ARGS)

lint: ## formatting, clippy and docs, warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

fmt: ## format the code
	$(CARGO) fmt --all

deny: ## licences, sources and known vulnerabilities of the dependencies
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is not installed: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny check licenses bans sources
	cargo deny check advisories || cargo deny --offline check advisories
