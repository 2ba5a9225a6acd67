#!/usr/bin/env bash
# Builds a newer runc than the distribution's for the tests, with Go and libseccomp's headers. Debian's own packages
# of it need a newer C library.
#
# Usage: build-runc.sh VERSION DIR      (VERSION as Go names it: v1.3.0)
#
# DIR/runc is there afterwards. Does nothing when it is already; where it cannot be built it says why, and succeeds:
# the tests with it are skipped then.
set -euo pipefail
if [ $# != 2 ]; then
    echo "Usage: $0 VERSION DIR" >&2
    exit 2
fi
version=$1 dest=$(realpath -m "$2")

if [ -x "$dest/runc" ] && [[ $("$dest/runc" --version) == *"version ${version#v}"* ]]; then
    exit 0
fi
for needed in go cc /usr/include/seccomp.h; do
    if ! command -v "$needed" >/dev/null && ! [ -e "$needed" ]; then
        echo "No newer runc for the tests: building it takes $needed"
        exit 0
    fi
done
mkdir -p "$dest"
if ! CGO_ENABLED=1 GOBIN=$dest go install -trimpath -tags seccomp -ldflags "-s -w -X main.version=${version#v}" \
    "github.com/opencontainers/runc@$version"; then
    echo "No newer runc for the tests: it cannot be built"
    exit 0
fi
"$dest/runc" --version
