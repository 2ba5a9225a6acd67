#!/usr/bin/env bash
# Runs every test and closes with one line: N passed, N failed, N skipped.
#
# A test that needs what the machine lacks prints `SKIPPED: <why>` (or is marked
# ignored by the end-to-end runner); it counts as skipped, never as passed.
# Arguments are test name filters for cargo test.
#
# Up to three tests that fail are repeated, alone on the machine: the suite counts
# on time in hundreds of places, and a busy machine can give a test none. What passes
# then is counted as passed, but named, and so is what it printed when it failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

log=$(mktemp) once_more=$(mktemp)
trap 'rm -f "$log" "$once_more"' EXIT

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
# The names in cargo's own list of tests that failed; the last list of a program, not what its tests printed.
failed_names() {
    awk '/^failures:$/ { names = ""; inside = 1; next }
        /^test result:/ { printf "%s", names; names = ""; inside = 0 }
        inside && /^    [a-z0-9_:]+$/ { names = names $1 "\n" }' "$log" | sort -u
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

repeated=""
# Of a program that was killed nobody knows which test it was.
ended=$(grep -c '^test result: FAILED' "$log" || true)
targets=$(sed -n 's/^error: \([0-9]*\) targets\? failed:$/\1/p' "$log")
mapfile -t again < <(failed_names)
if [ "$failed" -gt 0 ] && [ "$ended" = "$targets" ] && [ "${#again[@]}" -le 3 ]; then
    for name in "${again[@]}"; do
        echo
        echo "Once more: $name"
        cargo test --locked --workspace --no-fail-fast -- --exact "$name" --show-output 2>&1 |
            grep -vE '^(running 0 tests|successes:|test result: ok. 0 passed.*|)$|^     Running |^   Doc-tests ' |
            tee "$once_more"
        if [ "${PIPESTATUS[0]}" -eq 0 ] && grep -q "^test .*\.\.\. ok$" "$once_more"; then
            repeated="$repeated $name"
        fi
    done
    if [ "$(wc -w <<<"$repeated")" -eq "${#again[@]}" ]; then
        passed=$((passed + failed)) failed=0 status=0
    fi
fi

echo
if [ -n "$repeated" ]; then
    echo "Failed at first, passed when repeated:$repeated"
fi
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
