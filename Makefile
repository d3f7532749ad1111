# Merlon. `make help` says what there is.
#
# Two commands are all a newcomer needs: `make demo` and `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

CARGO ?= cargo
# Where a copy of the RustSec advisory database lies; empty: advisories are not looked at.
ADVISORY_DB ?=
# How long `make fuzz` spends on each target, and `make soak` under load, in seconds.
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 3600
# More options for tests/bench/run.py, as `--rounds 5 --pairs merlon,envoy`.
BENCH_OPTIONS ?=
# Crates that must never come in, not even switched off: one TLS stack, one crypto provider.
BANNED := ring openssl openssl-sys native-tls

# One profile and one target for demo, tests and lints, so that nothing is compiled twice (Cargo.toml).
BINARIES := --bin merlon --bin merlon-proxy --bin merlon-control-plane --bin merlon-intercept
# The shipped, fully optimised ones.
DIST := --profile dist $(BINARIES)

.PHONY: help
help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- running --------------------------------------------------------------------------------------------------------
.PHONY: demo demo-check
demo: build ## Builds Merlon and shows it at work: services, sidecars, a control plane, real policies
	@"$$(tests/tools/binary merlon)" demo

demo-check: build ## The same once, without staying up: exits 0 only if every step did what it must
	@"$$(tests/tools/binary merlon)" demo --once --output json

.PHONY: build release
build:
	@$(CARGO) build --locked $(BINARIES)

release: ## The binaries as they are shipped, fully optimised
	$(CARGO) build --locked $(DIST)

# --- tests ----------------------------------------------------------------------------------------------------------
.PHONY: test tools
test: tools ## All tests, those with real servers included
	@$(CARGO) build --locked $(BINARIES)
	@$(CARGO) test --locked --workspace --no-fail-fast
	@[ "$$(id -u)" = 0 ] || printf '%s\n' "" "*** NOT RUN, for they need root: the tests between network namespaces and those on a Kubernetes cluster." \
	  "*** To run them: sudo --preserve-env=PATH,HOME make test" \
	  "*** They are: interception, cluster, mesh_in_cluster, gateway_in_cluster, programs_in_cluster, mesh_in_trouble, installation" >&2

tools: ## Installs the servers that the tests talk to, into the user's cache, behind the link `.tools`
	@tests/tools/install test

# Where `make cluster` puts what one needs to use it.
CLUSTER := target/cluster

.PHONY: cluster cluster-down demo-kubernetes images
cluster: tools build ## A real Kubernetes cluster on this machine, with Merlon's images in it, until `make cluster-down`
	@$(CARGO) build --locked --example cluster
	@$(MAKE) --no-print-directory cluster-down
	@mkdir -p $(CLUSTER) && rm -f $(CLUSTER)/*
	@program="$$(dirname "$$(tests/tools/binary merlon)")/examples/cluster"; \
	  setsid "$$program" $(CLUSTER) >$(CLUSTER)/log 2>&1 </dev/null & echo $$! >$(CLUSTER)/pid
	@until [ -e $(CLUSTER)/ready ]; do \
	  kill -0 "$$(cat $(CLUSTER)/pid)" 2>/dev/null || { cat $(CLUSTER)/log >&2; exit 1; }; sleep 0.2; \
	done
	@printf '%s\n' "The cluster runs. To use it:" "" \
	  "  export KUBECONFIG=$(CURDIR)/$(CLUSTER)/kubeconfig PATH=$(CURDIR)/.tools/bin:\$$PATH" \
	  "  kubectl get nodes" \
	  "  helm install merlon-crds charts/merlon-crds" \
	  "  helm install merlon charts/merlon -n merlon-system --create-namespace -f $(CLUSTER)/values.yaml --wait" "" \
	  "Images that its pods can run: those of Merlon, and localhost/programs:test with curl, redis-server and busybox." \
	  "make cluster-down ends it and leaves nothing."

demo-kubernetes: tools build ## The mesh on a Kubernetes cluster of its own, told step by step; needs root
	@$(CARGO) build --locked --example demo_kubernetes
	@"$$(dirname "$$(tests/tools/binary merlon)")/examples/demo_kubernetes"

cluster-down: ## Ends what `make cluster` started
	@[ ! -e $(CLUSTER)/pid ] || { \
	  pid="$$(cat $(CLUSTER)/pid)"; kill "$$pid" 2>/dev/null || true; \
	  while kill -0 "$$pid" 2>/dev/null; do sleep 0.2; done; rm -rf $(CLUSTER); \
	}

images: build ## Merlon's images as archives below target/, from their Dockerfiles
	@tests/tools/install cluster
	@tag=$$(tests/cluster/images target/images) && echo "target/images: localhost/merlon-{proxy,control-plane,intercept}:$$tag"

.PHONY: soak
soak: tools build ## The tests under load, for SOAK_SECONDS (default: an hour)
	MERLON_LOAD_SECONDS=$(SOAK_SECONDS) $(CARGO) test --locked -p merlon-tests --test under_load

# --- checks ---------------------------------------------------------------------------------------------------------
.PHONY: check format lint docs banned deny advisories
check: format lint docs banned deny advisories ## Format, lints, documentation, dependencies

format:
	$(CARGO) fmt --all --check

lint:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

docs: ## The documentation of every crate
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

# Needs no tool: a crate that is not in the tree makes `cargo tree -i` fail, one that is prints who brings it.
banned:
	@for crate in $(BANNED); do \
	  if $(CARGO) tree --locked --workspace --target all -e normal,build -i "$$crate" 2>/dev/null | grep .; then \
	    echo "error: \`$$crate\` is in the dependency tree" >&2; exit 1; \
	  fi; \
	done

# Offline, so that it looks at nothing but this tree; all of which must be there for that, other systems' crates too.
deny:
	@tests/tools/install check
	@$(CARGO) fetch --locked --quiet
	PATH="$(CURDIR)/.tools/bin:$$PATH" $(CARGO) deny --offline --locked --log-level error check bans licenses sources

advisories:
ifeq ($(ADVISORY_DB),)
	@echo "advisories: not looked at; \`make check ADVISORY_DB=<a copy of the RustSec database>\` with cargo-audit installed does"
else
	$(CARGO) audit --no-fetch --stale --db "$(ADVISORY_DB)"
endif

# --- releasing (docs/releasing.md) ----------------------------------------------------------------------------------
.PHONY: release-check
release-check: ## Checks that all versions agree; with VERSION=x.y.z: everything for that release
	@tests/tools/release-check $(VERSION)

# --- measuring and breaking -----------------------------------------------------------------------------------------
.PHONY: bench fuzz
bench: ## Merlon beside Envoy and HAProxy: CPU per request and memory
	@tests/tools/install bench
	$(CARGO) build --locked $(DIST) --example bench_app --example bare_pair
	@tests/bench/run.py --programs "$$(dirname "$$(tests/tools/binary merlon-proxy dist)")" --envoy .tools/bin/envoy $(BENCH_OPTIONS)

# cargo-fuzz wants unstable flags of the compiler, which RUSTC_BOOTSTRAP lets the stable one take. No sanitizer: there is
# no unsafe code of ours to watch, and the address sanitizer does not go with a statically linked C library.
fuzz: ## Every fuzz target for FUZZ_SECONDS (default: 60)
	@tests/tools/install fuzz
	@for manifest in */fuzz/Cargo.toml */*/fuzz/Cargo.toml; do \
	  [ -e "$$manifest" ] || continue; \
	  folder=$$(dirname "$$manifest"); \
	  for target in $$(PATH="$(CURDIR)/.tools/bin:$$PATH" $(CARGO) fuzz list --fuzz-dir "$$folder"); do \
	    echo "--- $$folder $$target"; \
	    RUSTC_BOOTSTRAP=1 PATH="$(CURDIR)/.tools/bin:$$PATH" $(CARGO) fuzz run --sanitizer none --fuzz-dir "$$folder" "$$target" -- -max_total_time=$(FUZZ_SECONDS); \
	  done; \
	done

.PHONY: clean
clean: ## Removes what was built; the tools stay in the user's cache
	$(CARGO) clean
