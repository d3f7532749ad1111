# Merlon. `make help` lists the targets.
#
# To get started: `make demo` and `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

CARGO ?= cargo
# Path of a copy of the RustSec advisory database. Default: a folder `advisory-db` in a sibling of this checkout.
ADVISORY_DB ?= $(firstword $(wildcard ../*/advisory-db))
# Seconds that `make fuzz` and `make fuzz-check` run each target, and that `make soak` applies load.
FUZZ_SECONDS ?= 60
FUZZ_CHECK_SECONDS ?= 5
# Only these targets, such as `FUZZ_TARGETS="head guard"`. Empty: all.
FUZZ_TARGETS ?=
SOAK_SECONDS ?= 3600
# More options for tests/bench/run.py, such as `--rounds 5 --pairs merlon,envoy`.
BENCH_OPTIONS ?=
# Crates that must not be in the dependency tree, not even behind a feature: one TLS stack, one crypto provider.
BANNED := ring openssl openssl-sys native-tls

# Demo, tests and lints share one profile and one target, so that nothing is compiled twice (Cargo.toml).
BINARIES := --bin merlon --bin merlon-proxy --bin merlon-control-plane --bin merlon-intercept
# Those that the demo starts.
DEMO := --bin merlon --bin merlon-proxy --bin merlon-control-plane
# The release binaries, fully optimised.
DIST := --profile dist $(BINARIES)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- running --------------------------------------------------------------------------------------------------------
.PHONY: demo demo-check
demo: build-demo ## Build Merlon and run the demo: services, sidecars, a control plane, policies
	@"$$(tests/tools/binary merlon)" demo

demo-check: build-demo ## Run the demo once and exit: 0 only if every step succeeded
	@"$$(tests/tools/binary merlon)" demo --once --output json

.PHONY: build build-demo release
build:
	@$(CARGO) build --locked $(BINARIES)

build-demo:
	@$(CARGO) build --locked $(DEMO)

release: ## Build the release binaries, fully optimised
	$(CARGO) build --locked $(DIST)

# --- tests ----------------------------------------------------------------------------------------------------------
.PHONY: test tools
test: tools ## Run all tests, including those with real servers
	@CARGO="$(CARGO)" tests/tools/run-tests
	@[ "$$(id -u)" = 0 ] || printf '%s\n' "" "*** NOT RUN: the tests in network namespaces and on a Kubernetes cluster need root." \
	  "*** To run them: sudo --preserve-env=PATH,HOME make test" \
	  "*** Skipped: the suites \`pods\` and \`clusters\`, and of \`disruption\` mesh_in_trouble and installation" >&2

tools: ## Install the servers that the tests use into the user's cache; `.tools` links to them
	@tests/tools/install test

# `make cluster` writes the kubeconfig, the chart's values and its log here.
CLUSTER := target/cluster

.PHONY: cluster cluster-down demo-kubernetes images
cluster: tools build ## Start a Kubernetes cluster on this machine with Merlon's images; needs root
	@$(CARGO) build --locked --example cluster
	@$(MAKE) --no-print-directory cluster-down
	@mkdir -p $(CLUSTER) && rm -f $(CLUSTER)/*
	@program="$$(dirname "$$(tests/tools/binary merlon)")/examples/cluster"; \
	  setsid "$$program" $(CLUSTER) >$(CLUSTER)/log 2>&1 </dev/null & echo $$! >$(CLUSTER)/pid
	@until [ -e $(CLUSTER)/ready ]; do \
	  kill -0 "$$(cat $(CLUSTER)/pid)" 2>/dev/null || { cat $(CLUSTER)/log >&2; exit 1; }; sleep 0.2; \
	done
	@printf '%s\n' "The cluster is running. To use it:" "" \
	  "  export KUBECONFIG=$(CURDIR)/$(CLUSTER)/kubeconfig PATH=$(CURDIR)/.tools/bin:\$$PATH" \
	  "  kubectl get nodes" \
	  "  helm install merlon-crds charts/merlon-crds" \
	  "  helm install merlon charts/merlon -n merlon-system --create-namespace -f $(CLUSTER)/values.yaml --wait" "" \
	  "Images that pods can use: Merlon's, and localhost/programs:test with curl, redis-server and busybox." \
	  "To stop it and remove everything: make cluster-down"

demo-kubernetes: tools build ## Run the demo on a temporary Kubernetes cluster; needs root
	@$(CARGO) build --locked --example demo_kubernetes
	@"$$(dirname "$$(tests/tools/binary merlon)")/examples/demo_kubernetes"

cluster-down: ## Stop the cluster that `make cluster` started
	@[ ! -e $(CLUSTER)/pid ] || { \
	  pid="$$(cat $(CLUSTER)/pid)"; kill "$$pid" 2>/dev/null || true; \
	  while kill -0 "$$pid" 2>/dev/null; do sleep 0.2; done; rm -rf $(CLUSTER); \
	}

images: build ## Build Merlon's images from their Dockerfiles, as archives in target/images
	@tests/tools/install cluster
	@tag=$$(tests/cluster/images target/images) && echo "target/images: localhost/merlon-{proxy,control-plane,intercept}:$$tag"

# Checks the value of a variable before anything is built.
seconds-%:
	@case "$($*)" in '' | *[!0-9]* | 0*) \
	  printf '%s\n' "error: $* is not a number of seconds above 0: \`$($*)\`" "hint: $*=60" >&2; exit 2;; esac

.PHONY: slow soak restarts
# What takes too long for `make test`. Each has a target of its own.
slow: seconds-SOAK_SECONDS seconds-FUZZ_SECONDS soak fuzz restarts ## Run the long suites: soak, fuzz, restarts

soak: seconds-SOAK_SECONDS tools build ## Run the load tests for SOAK_SECONDS (default: one hour)
	MERLON_LOAD_SECONDS=$(SOAK_SECONDS) timeout $$(($(SOAK_SECONDS) * 4 + 1800)) $(CARGO) test --locked -p merlon-tests --test disruption under_load::

restarts: tools build ## Restart the control plane 20 times in a cluster, while pods and policies are created; needs root
	tests/tools/install cluster
	MERLON_RESTARTS=20 timeout 1800 $(CARGO) test --locked -p merlon-tests --test disruption mesh_in_trouble::admission::no_pod

# --- checks ---------------------------------------------------------------------------------------------------------
.PHONY: check format lint docs words banned deny unused advisories
check: format words lint docs banned deny unused advisories ## Check format, words, lints, documentation, dependencies

format:
	$(CARGO) fmt --all --check

# The second one compiles what only release builds have, without compiling dependencies again.
RELEASE_ONLY := $(foreach crate,config proxy control-plane,--config 'profile.dev.package.merlon-$(crate).debug-assertions=false')

lint:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked $(BINARIES) $(RELEASE_ONLY) -- -D warnings

docs: ## Build the documentation of every crate
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

words: ## Check prose for words that have a plainer alternative (tests/tools/words)
	@command -v python3 >/dev/null || { printf '%s\n' "error: python3 is needed for the word check, and is not installed" \
	  "hint: on Debian: apt-get install python3" >&2; exit 1; }
	@tests/tools/check-words

banned:
	@tree="$$($(CARGO) tree --locked --workspace --target all -e normal,build --prefix none --format '{p}')"; \
	for crate in $(BANNED); do \
	  if grep -q "^$$crate v" <<<"$$tree"; then \
	    printf '%s\n' "error: \`$$crate\` is in the dependency tree" \
	      "hint: cargo tree --workspace --target all -e normal,build -i $$crate" >&2; exit 1; \
	  fi; \
	done

# Offline, so that the result depends only on this tree. All crates must be fetched first, also those of other systems.
deny:
	@tests/tools/install check
	@$(CARGO) fetch --locked --quiet
	PATH="$(CURDIR)/.tools/bin:$$PATH" $(CARGO) deny --offline --locked --log-level error check bans licenses sources

# Uses in generated code are listed in Cargo.toml.
unused: ## Check that no crate declares a dependency that it does not use
	@tests/tools/install check
	@PATH="$(CURDIR)/.tools/bin:$$PATH" $(CARGO) shear

advisories: ## Check the dependencies against the RustSec advisory database in ADVISORY_DB
ifneq ($(ADVISORY_DB),)
	@tests/tools/install check
	PATH="$(CURDIR)/.tools/bin:$$PATH" $(CARGO) audit --no-fetch --stale --db "$(ADVISORY_DB)"
else ifneq ($(CI),)
	@printf '%s\n' "error: no copy of the RustSec advisory database: \`../*/advisory-db\` does not exist" \
	  "hint: git clone https://github.com/rustsec/advisory-db ../rustsec/advisory-db, or make check ADVISORY_DB=PATH" >&2; exit 1
else
	@echo "advisories: not checked. To check them: git clone https://github.com/rustsec/advisory-db ../rustsec/advisory-db, or make check ADVISORY_DB=PATH"
endif

# --- releasing (docs/releasing.md) ----------------------------------------------------------------------------------
.PHONY: release-check
release-check: ## Check that all versions agree; with VERSION=x.y.z: all checks for that release
	@tests/tools/release-check $(VERSION)

# --- benchmarks and fuzzing -----------------------------------------------------------------------------------------
.PHONY: bench fuzz fuzz-check
bench: ## Compare Merlon, Envoy and HAProxy: CPU per request and memory
	@tests/tools/install bench
	$(CARGO) build --locked $(DIST) --example bench_app --example bare_pair
	@tests/bench/run.py --programs "$$(dirname "$$(tests/tools/binary merlon-proxy dist)")" --envoy .tools/bin/envoy $(BENCH_OPTIONS)

# With a test among the targets, cargo selects the features of `make test`, so that no dependency is compiled again. The
# wrapper changes how the binary is linked.
FUZZ_BUILD := RUSTC_WRAPPER="$(CURDIR)/fuzz/rustc-dynamic" $(CARGO) build --locked --features merlon-fuzz/libfuzzer --bin fuzz --test seeds

fuzz: seconds-FUZZ_SECONDS ## Run every fuzz target for FUZZ_SECONDS (default: 60), guided by coverage
	RUSTC_WORKSPACE_WRAPPER="$(CURDIR)/fuzz/rustc-with-coverage" $(FUZZ_BUILD)
	@fuzz/run "$$(tests/tools/binary fuzz)" $(FUZZ_SECONDS) $(FUZZ_TARGETS)

# Without coverage counters, for which all crates of the workspace would be compiled a second time.
fuzz-check: seconds-FUZZ_CHECK_SECONDS ## Run every fuzz target for FUZZ_CHECK_SECONDS (default: 5) on changed seeds
	$(FUZZ_BUILD)
	@fuzz/run --no-coverage "$$(tests/tools/binary fuzz)" $(FUZZ_CHECK_SECONDS) $(FUZZ_TARGETS)

.PHONY: clean
clean: ## Remove build output; the tools stay in the user's cache
	$(CARGO) clean
