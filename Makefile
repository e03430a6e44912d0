# pg_meminfo: the usual PGXS targets (all, install, installcheck, clean), and a few of our own (see make help).

# Our own targets must work without a pg_config, and PGXS would replace a target named check. So a run of make includes
# PGXS only if no goal is one of ours.
OURS = help demo check check-all check-kernels check-long check-deb bench bench-guard dist lint fuzz deb
ifneq ($(filter $(OURS),$(MAKECMDGOALS)),)

.PHONY: $(MAKECMDGOALS)

help:
	@sed -n 's/^## //p' Makefile
## make                build the extension for the server of PG_CONFIG=/path/to/pg_config
## make install        install it into that server
## make installcheck   run the regression tests on a server that is running
## make clean          remove what was built
## make demo           show on a throw-away cluster what the extension is for
## make check          run all tests except the long ones on throw-away clusters
## make check-all      run the tests on each supported major version, or on those in MAJORS="15 16"; some need root
## make check-kernels  boot real kernels in virtual machines and run tests in each; KERNELS="5.10 6.1"; needs root
## make check-long     run the tests that take minutes: repeated calls, assertions, valgrind, the address sanitizer, ...
## make deb            build a Debian package for the server of PG_CONFIG
## make dist           make the archive for PGXN, and test what is built from it
## make check-deb      build it, and test it in a clean tree of Debian; needs root
## make bench          measure the cost compared with bare reads of the same files, with SESSIONS=200 and ROUNDS=7
## make bench-guard    let sessions eat MEGABYTES=1024, TRIES=20 times each, with ACTIONS="cancel brake log"; needs root
## make fuzz           feed generated input to each parser, for SECONDS=30 each
## make lint           check formatting, lints, and the licences of dependencies
demo check check-long check-deb deb dist lint:
	@scripts/$@
check-all:
	@scripts/check-all $(MAJORS)
check-kernels:
	@scripts/check-kernels $(KERNELS)
bench:
	@scripts/bench $(or $(SESSIONS),200) $(ROUNDS)
bench-guard:
	@scripts/bench-guard $(or $(TRIES),20) $(or $(MEGABYTES),1024) $(ACTIONS)
fuzz:
	@scripts/fuzz $(SECONDS)

# Goals that belong to PGXS run in a make of their own.
$(filter-out $(OURS),$(MAKECMDGOALS)):
	@$(MAKE) $@

else

EXTENSION = pg_meminfo
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pg_meminfo.control)
MODULES = pg_meminfo
DATA = pg_meminfo--1.0.sql pg_meminfo--1.0--1.1.sql
REGRESS = contract access processes queries schema invariants summary settings holders cluster contexts
REGRESS_OPTS = --inputdir=regress
EXTRA_CLEAN = target

# Debian's server is built with LLVM, for which PGXS would build bitcode with clang. Rust code has no use for that.
override with_llvm = no

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
ifeq ($(wildcard $(PGXS)),)
$(error no PGXS found by "$(PG_CONFIG)": install the headers of your PostgreSQL server (Debian: postgresql-server-dev-N), or set PG_CONFIG)
endif
include $(PGXS)

SUPPORTED_MAJORS = 15 16 17 18 19
PG_MAJOR := $(filter $(SUPPORTED_MAJORS),$(MAJORVERSION))
ifeq ($(PG_MAJOR),)
$(error pg_meminfo supports PostgreSQL $(SUPPORTED_MAJORS), and "$(PG_CONFIG)" belongs to PostgreSQL $(VERSION))
endif

CARGO ?= cargo
# pgrx-pg-sys declares a newer compiler than it needs.
CARGO_FLAGS = --locked --ignore-rust-version --release --lib --features pg$(PG_MAJOR) --target-dir $(TARGET)
# The bindings depend on the server's headers, so each installation has its own directory.
TARGET := $(or $(CARGO_TARGET_DIR),target)/pg$(PG_MAJOR)-$(firstword $(shell $(PG_CONFIG) --version --configure --includedir-server | cksum))
LIBRARY = $(TARGET)/release/libpg_meminfo.so
export PGRX_PG_CONFIG_PATH = $(shell command -v $(PG_CONFIG))

# Without --crate-type cargo also makes the rlib that tests link, and then leaves out link-time optimization of both.
$(LIBRARY): Cargo.toml Cargo.lock build.rs pg_meminfo.control $(shell find src -name '*.rs')
	$(CARGO) rustc $(CARGO_FLAGS) --crate-type cdylib -- $(RUSTC_FLAGS)
	touch $@

# Compare the contents: the file may be newer than the library, but of another major version.
pg_meminfo$(DLSUFFIX): $(LIBRARY) FORCE
	cmp -s $< $@ || cp $< $@

# The library alone, for builds beside others: they all have their own, but pg_meminfo$(DLSUFFIX) is one file.
library: $(LIBRARY)

# For tests/guest/init.
print-library:
	@echo $(LIBRARY)

# For scripts/lint.
lint-extension:
	$(CARGO) clippy $(CARGO_FLAGS) -- --deny warnings

.PHONY: FORCE library lint-extension print-library
FORCE:

endif
