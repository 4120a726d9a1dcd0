# The commands a person needs; each can be run again at any time.

# A plain `su` leaves root without these, and nft, bridge tools and dpkg live there.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# Where this is set, each process of a run compiles again what was changed since make install, and each worker all of the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-tests inspect up down images deb docs fmt check unit affected test coverage mutants bench soak lock

help:
	@echo "make up       install what is missing, start a three-node cluster here, boot a VM in it"
	@echo "              (STORE=etcd: its objects in an etcd of its own, not SQLite;"
	@echo "              CONTAINERD=n3: a containerd holds the containers of that node;"
	@echo "              KATA=n3: Kata gives them machines of their own there)"
	@echo "              (CEPH=1: with a small Ceph cluster, whose pool the nodes offer as ceph)"
	@echo "              (SERVERS=3: with three servers, any one of which may die)"
	@echo "              (CLUSTERS=2: with a second, small cluster, west, which is linked with it)"
	@echo "              (SERVER_OPTIONS='--audit-keep 7d': for the weft server, see docs/reference/server.md)"
	@echo "make down     end that cluster and remove everything it made (keeps .weft/cache)"
	@echo "make images   the agent's container images for amd64, arm64 and riscv64, as an OCI layout in dist/agent"
	@echo "              (ARCHITECTURES='arm64': only for these)"
	@echo "make deb      the Debian packages weft-client, weft-agent, weft-server and weft-doc in dist/"
	@echo "make docs     the documents as a site with a search, in dist/docs"
	@echo "make install  Debian packages and .venv only"
	@echo "make fmt      put every file into form, and mend what the linter can"
	@echo "make check    form, lint, types, walls and unit tests: within a minute"
	@echo "make unit     the unit tests (ROOM=scheduler for those of one room)"
	@echo "make affected the tests that ran the lines you changed, and a short walk on a cluster: within three minutes"
	@echo "              (SINCE=COMMIT: changed since then; make coverage once before)"
	@echo "make test     the whole test suite (CEPH=1: also what starts a Ceph cluster)"
	@echo "make coverage which lines the tests without guests run; make mutants: which small faults they notice"
	@echo "make bench    measure the promises (ONLY=name for one; AGAINST=COMMIT compares with that commit,"
	@echo "              both in turn on this machine, ROUNDS=3 times)"
	@echo "make soak     run for a long time and look for leaks (ONLY=name for one)"
	@echo "make lock     write requirements.lock and tools/site/requirements.lock anew from pyproject.toml"

install:
	@CEPH=$(CEPH) tools/install

install-tests:
	@CEPH=$(CEPH) tools/install tests

# What is refused of a cluster that runs is refused before minutes of packages, and so is a variable that make up doesn't know.
UP_VARIABLES := STORE CONTAINERD KATA CEPH SERVERS CLUSTERS SERVER_OPTIONS
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
inspect:
	@for name in $(filter-out $(UP_VARIABLES),$(GIVEN)); do echo "error: make up has no variable $$name; it has $(UP_VARIABLES)" >&2; exit 1; done
	@if [ -x .venv/bin/python ] && [ -n "$(CEPH)$(KATA)$(CONTAINERD)$(STORE)$(SERVERS)$(CLUSTERS)"'$(SERVER_OPTIONS)' ]; then STORE=$(STORE) SERVER_OPTIONS='$(SERVER_OPTIONS)' CONTAINERD="$(CONTAINERD)" KATA="$(KATA)" CEPH=$(CEPH) SERVERS=$(SERVERS) CLUSTERS=$(CLUSTERS) .venv/bin/python -m weft.launch.local inspect || [ $$? -ne 1 ]; fi

up: inspect install
	@STORE=$(STORE) SERVER_OPTIONS='$(SERVER_OPTIONS)' CONTAINERD="$(CONTAINERD)" KATA="$(KATA)" CEPH=$(CEPH) SERVERS=$(SERVERS) CLUSTERS=$(CLUSTERS) .venv/bin/python -m weft.launch.local up

# Needs no network and no up-to-date .venv: what runs must be endable. A clone that was made again has none, and may still have
# a cluster running.
down:
	@if [ ! -x .venv/bin/python ] && grep -qsxF "$(CURDIR)" /run/weft-*/clone; then tools/install; fi
	@if [ -x .venv/bin/python ]; then .venv/bin/python -m weft.launch.local down; \
	else echo "nothing to end: this clone has no .venv yet"; fi

images: install
	@.venv/bin/python -m weft.images.node --out dist/agent $(addprefix --architecture=,$(ARCHITECTURES))

deb:
	@CEPH=$(CEPH) tools/install docs
	@.venv/bin/python -m tools.packages.build dist

docs:
	@CEPH=$(CEPH) tools/install docs
	@.venv/bin/python -m tools.site.build dist/docs

fmt: install
	@.venv/bin/ruff check -q --fix . || true
	@.venv/bin/ruff format .

# One more than there are processors: some tests wait.
MANY = $(or $(WORKERS),$(shell expr $$(nproc) + 1))

# Types and walls are tests too (tests/architecture); what is said in a blink comes first.
check: install
	@.venv/bin/ruff check -q .
	@.venv/bin/ruff format -q --check . || { echo "make fmt puts these into form" >&2; exit 1; }
	@.venv/bin/pytest -n $(MANY) --maxprocesses 8 tests/architecture tests/unit

unit: install
	@set -- tests/unit/$(ROOM)*; [ -e "$$1" ] || { echo "no room $(ROOM): $$(cd tests/unit && ls)" >&2; exit 2; }; \
	.venv/bin/pytest -n $(MANY) --maxprocesses 8 "$$@"

# By what make coverage wrote, however old: lines are followed back through git.
affected: install
	@files=$$(.venv/bin/python -m benchmarks.affected $(if $(SINCE),--since $(SINCE))) || exit $$?; \
	if [ -z "$$files" ]; then echo "no test ran what was changed"; \
	else .venv/bin/python -m pytest -p benchmarks.affected -n $(or $(WORKERS),3) --dist loadfile $$files; fi

# Four at a time: much of the suite waits for guests, and six made each of them slower. WORKERS=1 runs it in order. What takes
# longest is listed at the end. A test that fails is run once more and named at the end; more than three such tests fail the run. RERUNS=0: none is.
test: install-tests
	@CEPH=$(CEPH) .venv/bin/pytest -n $(or $(WORKERS),4) --dist loadfile --again $(or $(RERUNS),1) --durations=40 --durations-min=10

# Which test ran which line, and for how long, is what make mutants chooses tests by.
coverage: install
	@rm -f .coverage .coverage.*
	@{ git stash create; git rev-parse HEAD; } | head -1 >.coverage-commit
	@.venv/bin/pytest -n $(or $(WORKERS),3) --dist loadfile --cov --cov-context=test --cov-report= \
	--junitxml=.coverage.times.xml tests/unit tests/conformance tests/placement tests/scenario
	@.venv/bin/python -m benchmarks.covered

mutants: install
	@[ -e .coverage ] || { echo "make coverage first: it tells which tests run a line" >&2; exit 2; }
	@nice -n 19 .venv/bin/python -m benchmarks.mutants $(if $(COUNT),--count $(COUNT))

bench: install
	@.venv/bin/python -m benchmarks$(if $(AGAINST),.against $(if $(ROUNDS),--rounds $(ROUNDS)) $(AGAINST)) $(ONLY)

soak: install
	@$(if $(ONLY),,WEFT_EXAMPLES=all .venv/bin/pytest -m long &&) .venv/bin/python -m benchmarks.soak $(ONLY)

lock:
	@tools/lock
