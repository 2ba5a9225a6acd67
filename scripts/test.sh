#!/usr/bin/env bash
# Runs every test and closes with one line: N passed, N failed, N skipped.
#
# A test that needs what the machine lacks prints `SKIPPED: <why>` (or is marked
# ignored by the end-to-end runner); it counts as skipped, never as passed.
# Arguments are test name filters for cargo test.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# Unit and integration tests of the crates, then the end-to-end tests with real VMs.
cargo test --locked --workspace --no-fail-fast "$@" -- --show-output 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

sum() { # sum of the numbers before a word in the `test result:` lines
    sed -n "s/^test result:.* \([0-9]*\) $1.*/\1/p" "$log" | awk '{ n += $1 } END { print n + 0 }'
}
# What failed tests printed, and a list of them: of cargo's own sections ("failures:", once with
# output and once with names) and the end-to-end runner's alike.
failures() {
    awk '/^     Running |^   Doc-tests / { program = $0 }
        /^failures:$/ { inside = 1; print program; next }
        /^test result:/ { inside = 0 }
        inside' "$1"
}
passed=$(sum passed) failed=$(sum failed) ignored=$(sum ignored)
# Not a test by itself: another test runs it in a process of its own.
helpers=$(grep -c '^test .* ignored, only for the child process of another test' "$log" || true)
ignored=$((ignored - helpers))
skipped=$(grep -c '^SKIPPED:' "$log" || true)

# Again at the end, where they are looked for: what the tests that failed printed, then their names.
if [ "$failed" -gt 0 ]; then
    echo
    failures "$log"
fi
echo
if [ "$skipped" -gt 0 ] || [ "$ignored" -gt 0 ]; then
    echo "Skipped:"
    { grep '^SKIPPED:' "$log"; sed -n 's/^test .*\[\(SKIPPED: .*\)\].*ignored.*/\1/p' "$log"; } | sort | uniq -c
fi
# A build that failed ran no test.
if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
fi
echo "$((passed - skipped)) passed, $failed failed, $((skipped + ignored)) skipped"
exit "$status"
