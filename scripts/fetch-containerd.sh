#!/usr/bin/env bash
# Downloads the containerd of another Debian suite and unpacks it into a directory, not installed.
#
# Usage: fetch-containerd.sh SUITE DIR      (SUITE: trixie has containerd 1.7, sid 2.1)
#
# DIR/usr/bin/containerd and DIR/usr/bin/ctr are there afterwards. Does nothing when they are already.
set -euo pipefail
if [ $# != 2 ]; then
    echo "Usage: $0 SUITE DIR" >&2
    exit 2
fi
# Absolute: apt takes relative paths to be below /etc/apt.
suite=$1 dest=$(realpath -m "$2")
scripts=$(cd "$(dirname "$0")" && pwd)

if [ -x "$dest/usr/bin/containerd" ]; then
    exit 0
fi
for tool in apt-get dpkg-deb; do
    if ! command -v "$tool" >/dev/null; then
        echo "$tool is needed to get the containerd of Debian $suite; this is no Debian machine" >&2
        exit 1
    fi
done
mkdir -p "$(dirname "$dest")"
# Beside the destination, so that the finished directory only needs to be renamed.
work=$(mktemp -d "$dest.XXXXXX")
trap 'rm -rf "$work"' EXIT

# shellcheck source=scripts/lib-apt.sh
. "$scripts/lib-apt.sh"
private_apt "$work/apt" "$suite"
if ! apt-get -qq "${PRIVATE_APT[@]}" update >"$work/log" 2>&1 ||
    ! (cd "$work" && apt-get -qq "${PRIVATE_APT[@]}" download "containerd/$suite" >>"$work/log" 2>&1); then
    echo "Cannot download the containerd of Debian $suite; apt-get says:" >&2
    tail -n 20 "$work/log" >&2
    exit 1
fi
dpkg-deb -x "$work"/containerd_*.deb "$work/root"
# Linked against the C library of its own suite: better to know now than in a test.
for program in containerd ctr containerd-shim-runc-v2; do
    if [ -e "$work/root/usr/bin/$program" ] && ! "$work/root/usr/bin/$program" --version >/dev/null 2>"$work/log" &&
        ! "$work/root/usr/bin/$program" -v >/dev/null 2>>"$work/log"; then
        echo "$program of Debian $suite does not start here:" >&2
        cat "$work/log" >&2
        exit 1
    fi
done
chmod 755 "$work/root"
# Replaces an empty directory, never one that holds something else.
mv -T "$work/root" "$dest"
"$dest/usr/bin/containerd" --version
