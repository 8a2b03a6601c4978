# Nearstone: `make run` gives a disk, `make test` proves it. `make help` lists the rest.
#
# Everything is made in this folder: the environment in .venv (by the distribution's own Python, since nbdkit
# embeds that one), the Rust core in storage/core/target, and a link from one to the other, so that a change of
# a Python file needs no build and a change of a Rust file builds only what it must.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# nbdkit embeds this interpreter: an environment made by any other build of Python cannot be loaded by it.
SYSTEM_PYTHON := /usr/bin/python3
VENV := .venv
PYTHON := $(VENV)/bin/python
STAMPS := $(VENV)/.stamps
NEARSTONE := $(VENV)/bin/nearstone

# Where `make run` keeps its pool, and what it serves.
POOL ?= ./pool
DISK ?= demo
SIZE ?= 20G
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=

export CARGO_BUILD_JOBS ?= 2
export PYO3_PYTHON := $(CURDIR)/$(PYTHON)
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV

MANIFEST := storage/core/Cargo.toml
RUST_SOURCES := $(wildcard storage/core/Cargo.* storage/core/build.rs) \
	$(shell find storage/core/src storage/core/.cargo -type f 2> /dev/null)

# Debian's names. The Rust ones are added only where there is no toolchain: Debian's `rustc` is too old for
# the core, `rustc-web` is the current one that Debian keeps for building browsers.
PACKAGES := ca-certificates e2fsprogs file fio gcc gnutls-bin libc6-dev libnbd-bin mount nbdkit \
	nbdkit-plugin-python python3 python3-dev python3-libnbd python3-venv qemu-utils
# For the tests with real guests: the machine, what its boot disk is made with, and the guest's own tools.
PACKAGES += busybox-static dosfstools fdisk libxml2-utils mtools nbd-client qemu-system-x86 sqlite3 syslinux \
	syslinux-common xfsprogs
# Only for comparing with in the benchmarks: not worth a daemon on a person's machine, where the two tests that
# want them say so and are skipped. Continuous integration skips nothing.
ifeq ($(CI),true)
PACKAGES += btrfs-progs nbd-server
endif
RUST_PACKAGES := cargo-web rustc-web rust-web-clippy rustfmt-web

# The kernel, initramfs and disk that the tests with real guests boot.
GUEST := build/guest
GUEST_SOURCES := $(addprefix tests/guest/,build.py init load.rs)

RUSTFMT_GUEST := rustfmt --edition 2024 --config-path storage/core tests/guest/load.rs

.PHONY: help setup doctor build run test check fmt lint types layers guest bench soak docs clean \
	system-packages rust-lint rust-test python-test docs-check

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

# ---------------------------------------------------------------------------------------------- installation

setup: system-packages $(STAMPS)/environment ## install what is missing: system packages (apt), .venv, Python packages

define INSTALL_SYSTEM_PACKAGES
wanted="$(PACKAGES)"; command -v cargo > /dev/null || wanted="$$wanted $(RUST_PACKAGES)"; missing=""
if ! command -v dpkg-query > /dev/null; then
	echo "make setup: this is not a Debian system; install yourself what the packages named here hold: $$wanted" >&2
	exit 0
fi
for package in $$wanted; do
	[ "$$(dpkg-query -W -f='$${db:Status-Status}' "$$package" 2> /dev/null)" = installed ] || missing="$$missing $$package"
done
[ -n "$$missing" ] || exit 0
as_root=""
if [ "$$(id -u)" != 0 ]; then
	as_root=sudo
	if ! command -v sudo > /dev/null; then
		echo "make setup: not root and no sudo; have an administrator run: apt-get install$$missing" >&2
		exit 1
	fi
fi
echo "make setup: installing$$missing"
$$as_root apt-get update -q < /dev/null
$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing < /dev/null
endef
export INSTALL_SYSTEM_PACKAGES

system-packages:
	@bash -eu -c "$$INSTALL_SYSTEM_PACKAGES"

# Made anew when its interpreter is not the distribution's. libnbd exists only as a system package: its two
# files are linked in alone, so that nothing else of the system can shadow what is pinned here.
$(STAMPS)/environment: setup.cfg pyproject.toml constraints.txt | system-packages
	@if [ -e $(VENV) ] && [ "$$(readlink -f $(PYTHON))" != "$$(readlink -f $(SYSTEM_PYTHON))" ]; then \
		echo "make setup: $(VENV) was made by another Python; making it anew"; rm -rf $(VENV); \
	fi
	[ -x $(PYTHON) ] || $(SYSTEM_PYTHON) -m venv $(VENV)
	@$(PYTHON) -c 'import configparser, tomllib; c = configparser.ConfigParser(); c.read("setup.cfg"); \
		print(c["options"]["install_requires"], c["options.extras_require"]["dev"], \
		*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > $(VENV)/requirements.txt
	$(PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt -r $(VENV)/requirements.txt
	@$(SYSTEM_PYTHON) -c 'import nbd, libnbdmod; print(nbd.__file__, libnbdmod.__file__)' | xargs -n 1 \
		| xargs -I{} ln -sf {} "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/"
	@mkdir -p $(STAMPS) && touch $@

doctor: build ## say in one line each what is wrong with this installation
	@$(NEARSTONE) doctor

# --------------------------------------------------------------------------------------------------- building

build: setup $(STAMPS)/package $(STAMPS)/core ## build the Rust core and .venv/bin/nearstone

# The new library is renamed over the old one, so that a server that runs keeps the one it has mapped.
$(STAMPS)/core: $(RUST_SOURCES) $(STAMPS)/environment
	@command -v cargo > /dev/null || { echo "make build: no Rust toolchain; see https://rustup.rs" >&2; exit 1; }
	$(PYTHON) -c 'import setuptools; setuptools.setup()' -q build_rust --inplace
	@touch $@

$(STAMPS)/package: setup.cfg pyproject.toml $(STAMPS)/environment | $(STAMPS)/core
	$(PYTHON) -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(PYTHON) -m pip check
	@touch $@

run: build ## serve POOL (./pool) with a disk of 20G in the foreground, until Ctrl-C
	@if [ ! -e "$(POOL)/catalog.sqlite" ] || ! $(NEARSTONE) --pool "$(POOL)" disk show "$(DISK)" > /dev/null 2>&1; then \
		$(NEARSTONE) --pool "$(POOL)" disk create "$(DISK)" "$(SIZE)"; \
	fi
	@uri="nbd+unix:///$(DISK)?socket=$(abspath $(POOL))/nbd.sock"; printf '%s\n' \
		"" "The disk '$(DISK)' of $(abspath $(POOL)), in another terminal:" "" \
		"  nbdinfo '$$uri'" \
		"  qemu-system-x86_64 -m 1G -drive 'file=$$uri,format=raw,if=virtio,cache=none,discard=unmap,werror=stop,rerror=stop'" \
		"  fio --name=$(DISK) --ioengine=nbd --uri='$$uri' --rw=randrw --bs=4k --iodepth=32 --size=1G --time_based --runtime=10" \
		"  $(abspath $(NEARSTONE)) --pool $(abspath $(POOL)) disk list" \
		"" "Ctrl-C stops the server." ""
	@exec $(NEARSTONE) --pool "$(POOL)" serve

# ---------------------------------------------------------------------------------------------------- proving

test: build lint types layers docs-check rust-test python-test ## everything that continuous integration runs

check: test ## the same as test

fmt: $(STAMPS)/environment ## format Python and Rust
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
	cargo fmt --manifest-path $(MANIFEST)
	$(RUSTFMT_GUEST)

lint: $(STAMPS)/environment rust-lint ## formatting and lint rules, Python and Rust, warnings are errors
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

rust-lint: $(STAMPS)/environment
	cargo fmt --check --manifest-path $(MANIFEST)
	$(RUSTFMT_GUEST) --check
	cargo clippy --quiet --locked --all-targets --features testing --manifest-path $(MANIFEST) -- -D warnings
	cargo clippy --quiet --locked --features python --manifest-path $(MANIFEST) -- -D warnings

types: build ## mypy in strict mode, and the stub of the Rust core against the core itself
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy.stubtest storage._core --mypy-config-file pyproject.toml

layers: $(STAMPS)/environment ## who may import whom
	$(VENV)/bin/lint-imports --config setup.cfg

# Not --release: the crate's test profile is optimised and keeps the checks on.
rust-test: $(STAMPS)/environment
	cargo test --locked --features testing --manifest-path $(MANIFEST)

guest: $(GUEST)/disk.img ## make the kernel, initramfs and disk that the tests with real guests boot

$(GUEST)/disk.img: $(GUEST_SOURCES) $(STAMPS)/environment
	$(PYTHON) -m tests.guest.build $(GUEST)

# Without CI, which would make pytest print whole differences: of two images of a disk it takes hours.
python-test: build $(GUEST)/disk.img
	env -u CI $(PYTHON) -m pytest $(PYTEST_ARGS)

bench: build ## fio side by side against nbdkit's own plugins and qcow2, into benchmarks/results/
	$(PYTHON) -m benchmarks $(BENCH_ARGS)

soak: build ## the property, crash and power-loss tests with many more rounds (hours)
	NEARSTONE_SOAK=1 $(PYTHON) -m pytest --timeout 0 $(SOAK_ARGS)

docs: build ## write docs/cli.md from the command line's own help
	@$(call WRITE_CLI_PAGE,docs/cli.md)

docs-check: build
	@$(call WRITE_CLI_PAGE,$(VENV)/cli.md)
	@diff -u docs/cli.md $(VENV)/cli.md || { echo "docs/cli.md is not what the commands say: run make docs" >&2; exit 1; }

# $(1): the file to write.
WRITE_CLI_PAGE = $(PYTHON) -m typer console.app utils docs --name nearstone --title "The command line" \
	--output $(1) > /dev/null && $(PYTHON) -c 'import console.config as c; \
	print("\n\#\# Settings\n\n" + c.__doc__.strip().replace("::\n", ":\n"))' >> $(1)

clean: ## remove what was built; pools stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	rm -f storage/_core*.so
	rm -rf storage/core/target
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
