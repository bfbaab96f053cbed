# Two commands matter: `make demo` and `make test`. Builds are cached outside the clone.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export CARGO_TARGET_DIR ?= $(HOME)/.cache/outrigger-target

.PHONY: help demo test lint unit loom cluster-tests bench generate images

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

demo: ## the proxy over four worker processes, with a live policy file
	@scripts/demo

test: ## everything: lint, unit, proxy, push, chart, API-server and end-to-end tests
	@scripts/test

lint: ## formatting, clippy, dependency rules
	@scripts/lint

unit: ## what needs neither Kubernetes nor root
	cargo test --workspace --lib --bins

loom: ## what threads share breakers by, in every order (seconds)
	@scripts/loom

bench: ## side by side with HAProxy, nginx, Envoy and a raw relay
	cargo build --release -p outrigger-proxy
	bench/install
	bench/run --check

generate: ## what is generated from the code: the CRD in the chart
	charts/outrigger/generate

images: ## both container images, with buildah
	tests/cluster/images
