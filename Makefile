# `make run` and `make test` do all the set-up they need; `make help` lists the rest.

HOST     := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
TARGET   := $(or $(CARGO_TARGET_DIR),target)
BIN      := $(TARGET)/$(HOST)/release
BUILD    := build
GUEST    := $(BUILD)/guest
RUN_DIR  := $(BUILD)/run
KERNELS  := $(BUILD)/kernels
NEWER    := $(BUILD)/containerd-newer
RUNC     := $(BUILD)/runc-newer

# What `make run` runs.
IMAGE    := localhost/busybox:latest
CMD      := /bin/sh -c 'echo "Hello from Linux $$(uname -r), pid $$$$, in a microVM"'
# More arguments for firecracker-run, e.g. RUN_ARGS='--repeat 10'.
RUN_ARGS :=

# Where `make install` puts things; DESTDIR is put before each.
PREFIX   := /usr/local
RUNTIME  := /var/lib/firecracker-containerd/runtime
CONFIG   := /etc/containerd/firecracker-runtime.json
JAIL     := /etc/containerd/firecracker-runc-config.json
UNITS    := /usr/local/lib/systemd/system
HOST_BIN := containerd-shim-aws-firecracker firecracker-control firecracker-ctl firecracker-tcg firecracker-image

.PHONY: help run test soak lint fuzz build guest deps newer install uninstall clean clean-run

help:
	@echo 'make run        run a container in a microVM under a private containerd'
	@echo '                (IMAGE=... CMD=... choose another one; RUN_ARGS=--help lists more)'
	@echo 'make test       every test: unit, integration, end-to-end with real VMs'
	@echo 'make soak       one drive slot used a thousand times; half an hour without KVM'
	@echo 'make lint       formatting and clippy, fuzz targets too; warnings are errors'
	@echo 'make fuzz       every fuzz target for a minute'
	@echo 'make install    install for the containerd of this machine (PREFIX, DESTDIR)'
	@echo 'make uninstall  remove what install put there, but not the configuration'
	@echo 'make clean-run  remove the private containerd and all it stored'
	@echo 'make clean      remove everything that was built'

run: deps build guest
	@$(BIN)/firecracker-run --dir $(RUN_DIR) --guest $(GUEST) --image $(IMAGE) $(RUN_ARGS) -- $(CMD)

deps:
	@scripts/install-deps.sh run

# Without what no program here is linked with, so that none gets the features that its dependencies turn on.
build:
	@cargo build --release --locked --workspace --exclude fc-image-volume --exclude fc-e2e

guest: build
	@$(BIN)/firecracker-image build --output $(GUEST) --cache $(KERNELS) \
	    --agent $(BIN)/firecracker-agent --initrd-init $(BIN)/firecracker-initrd

newer:
	@scripts/fetch-containerd.sh trixie $(NEWER)
	@scripts/build-runc.sh v1.3.0 $(RUNC)

test:
	@scripts/install-deps.sh test
	@$(MAKE) --no-print-directory build guest newer
	@FC_BIN_DIR=$(abspath $(BIN)) FC_GUEST_DIR=$(abspath $(GUEST)) \
	    FC_TEST_KERNEL_DIR=$$(ls -d $(abspath $(KERNELS))/linux-image-* | tail -n 1) \
	    FC_CONTAINERD_NEWER=$(abspath $(NEWER))/usr/bin \
	    FC_RUNC_NEWER=$(abspath $(RUNC))/runc scripts/test.sh

soak: build guest
	@FC_BIN_DIR=$(abspath $(BIN)) FC_GUEST_DIR=$(abspath $(GUEST)) FC_SOAK_ROUNDS=1000 \
	    cargo test --locked -p fc-e2e --test e2e -- one_slot_is_used

lint:
	@cargo fmt --all --check
	@cargo clippy --locked --workspace --all-targets -- -D warnings
	@cargo fmt --manifest-path fuzz/Cargo.toml --check
	@# Only to run them takes a nightly compiler. Nothing is linked: libFuzzer, which C++ would be compiled for, may be missing.
	@CUSTOM_LIBFUZZER_PATH=/none/libfuzzer.a cargo clippy --locked --no-deps --manifest-path fuzz/Cargo.toml \
	    --target-dir $(TARGET) -- -D warnings

fuzz:
	@scripts/fuzz.sh

install: build guest
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(RUNTIME) $(DESTDIR)$(dir $(CONFIG)) $(DESTDIR)$(UNITS)
	install -m 755 $(addprefix $(BIN)/,$(HOST_BIN)) $(DESTDIR)$(PREFIX)/bin
	$(BIN)/firecracker-tcg --print-jail-paths > $(DESTDIR)$(PREFIX)/bin/firecracker-tcg.jail.json
	install -m 644 $(GUEST)/default-* $(GUEST)/image.json $(DESTDIR)$(RUNTIME)
	sed 's:/usr/local/bin:$(PREFIX)/bin:' dist/firecracker-control.service > $(DESTDIR)$(UNITS)/firecracker-control.service
	@for file in $(CONFIG) $(JAIL); do \
	    if [ -e $(DESTDIR)$$file ]; then \
	        echo "$$file is there already: left as it is"; \
	    else \
	        install -m 644 docs/$${file##*/} $(DESTDIR)$$file && echo "wrote $$file"; \
	    fi; \
	done
	@echo 'Now: firecracker-ctl doctor; ctr run --rm --runtime aws.firecracker IMAGE NAME CMD...'

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(HOST_BIN) firecracker-tcg.jail.json)
	rm -f $(DESTDIR)$(UNITS)/firecracker-control.service
	rm -rf $(DESTDIR)$(RUNTIME)

clean-run:
	rm -rf $(RUN_DIR)

clean: clean-run
	rm -rf $(BUILD)
	cargo clean
