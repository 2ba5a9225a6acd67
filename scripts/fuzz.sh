#!/usr/bin/env bash
# Runs every fuzz target (or those named) for a minute each: FUZZ_SECONDS says how long.
#
# What is found stays in build/fuzz: inputs that reached new code (they are where
# the next run goes on) and inputs that crashed. Without what cargo-fuzz needs it
# says SKIPPED and why, and succeeds. FUZZ_TOOLCHAIN names the nightly to use.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

seconds=${FUZZ_SECONDS:-60}
toolchain=${FUZZ_TOOLCHAIN:-nightly}
out=$PWD/build/fuzz

skip() {
    echo "SKIPPED: fuzzing: $1"
    exit 0
}

cargo "+$toolchain" --version >/dev/null 2>&1 ||
    skip "no $toolchain Rust toolchain: rustup toolchain install $toolchain --profile minimal"
cargo fuzz --version >/dev/null 2>&1 || skip "no cargo-fuzz: cargo install cargo-fuzz"
command -v c++ >/dev/null || skip "no C++ compiler, which libFuzzer needs: apt-get install g++"

if [ $# -eq 0 ]; then
    mapfile -t targets < <(cargo "+$toolchain" fuzz list)
    set -- "${targets[@]}"
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$out/target}
cargo "+$toolchain" fuzz build || exit 1

failed=() skipped=0
for target in "$@"; do
    # Its server thread gets a root directory of its own.
    if [ "$target" = api_server ] && [ "$(id -u)" -ne 0 ]; then
        echo "SKIPPED: fuzzing: $target: only root can change its root directory"
        skipped=$((skipped + 1))
        continue
    fi
    mkdir -p "$out/corpus/$target" "$out/artifacts/$target"
    echo "== $target, $seconds s"
    cargo "+$toolchain" fuzz run "$target" "$out/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -timeout=20 -print_final_stats=1 \
        -artifact_prefix="$out/artifacts/$target/" >"$out/$target.log" 2>&1 ||
        { failed+=("$target"); tail -n 40 "$out/$target.log"; }
    grep -E '^stat::(number_of_executed_units|average_exec_per_sec)' "$out/$target.log"
    # Inputs are kept from run to run, what one run alone could do is told by its coverage.
    grep -E '^#[0-9]+.*DONE' "$out/$target.log"
done

echo
echo "$(($# - ${#failed[@]} - skipped)) targets without a crash, ${#failed[@]} failed, $skipped skipped"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}; inputs and logs are in $out"; exit 1; }
