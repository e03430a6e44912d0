# pg_meminfo: the usual PGXS targets (all, install, installcheck, clean), and a few of our own (make help).

# Our own targets must run before there is a pg_config, and PGXS would replace a target named check. So each run of make
# is either theirs or ours.
OURS = help demo check check-all check-long check-deb bench lint fuzz deb
ifneq ($(filter $(OURS),$(MAKECMDGOALS)),)

.PHONY: $(MAKECMDGOALS)

help:
	@sed -n 's/^## //p' Makefile
## make                build the extension for the server of PG_CONFIG=/path/to/pg_config
## make install        install it into that server
## make installcheck   run the regression tests on a running server
## make clean          remove what was built
## make demo           on a throw-away cluster, show what the extension is for
## make check          run all tests on throw-away clusters
## make check-all      the same on each major, or on those in MAJORS="15 16"; as root, for Debian trees are made for some
## make check-long     what takes long: ten thousand calls, minutes of churn, assertions, valgrind, the address sanitizer
## make deb            make a Debian package for the server of PG_CONFIG
## make check-deb      the same, and try it in a clean tree of Debian; as root
## make bench          measure what we add to the kernel's work, with SESSIONS=200 and ROUNDS=7
## make fuzz           compare each parser with its oracle on generated input, for SECONDS=30 each
## make lint           rustfmt, clippy, and META.json
demo check check-long check-deb deb lint:
	@scripts/$@
check-all:
	@scripts/check-all $(MAJORS)
bench:
	@scripts/bench $(or $(SESSIONS),200) $(ROUNDS)
fuzz:
	@scripts/fuzz $(SECONDS)

# The others among the goals are PGXS's.
$(filter-out $(OURS),$(MAKECMDGOALS)):
	@$(MAKE) $@

else

EXTENSION = pg_meminfo
EXTVERSION = $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pg_meminfo.control)
MODULES = pg_meminfo
DATA = pg_meminfo--$(EXTVERSION).sql
REGRESS = contract access processes queries schema invariants summary settings holders cluster
REGRESS_OPTS = --inputdir=regress
EXTRA_CLEAN = target

# Debian's server is built with LLVM, and PGXS then wants bitcode, which only clang makes.
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
# pgrx-pg-sys asks for a newer compiler than it needs.
CARGO_FLAGS = --locked --ignore-rust-version --release --lib --features pg$(PG_MAJOR) --target-dir $(TARGET)
# The bindings depend on the server's headers, so each installation has its own directory.
TARGET := $(or $(CARGO_TARGET_DIR),target)/pg$(PG_MAJOR)-$(firstword $(shell $(PG_CONFIG) --version --configure --includedir-server | cksum))
LIBRARY = $(TARGET)/release/libpg_meminfo.so
export PGRX_PG_CONFIG_PATH = $(shell command -v $(PG_CONFIG))

$(LIBRARY): Cargo.toml Cargo.lock build.rs pg_meminfo.control $(shell find src -name '*.rs')
	$(CARGO) rustc $(CARGO_FLAGS) -- $(RUSTC_FLAGS)
	touch $@

# Compared, not dated: the one that was built last may be another major's.
pg_meminfo$(DLSUFFIX): $(LIBRARY) FORCE
	cmp -s $< $@ || cp $< $@

# For scripts/lint.
lint-extension:
	$(CARGO) clippy $(CARGO_FLAGS) -- --deny warnings

.PHONY: FORCE lint-extension
FORCE:

endif
