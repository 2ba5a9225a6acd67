#!/usr/bin/env bash
# Installs what is missing on this machine, with apt. A program that is there is left alone,
# wherever it comes from.
#
# Usage: install-deps.sh [run|test]     (run: what `make run` needs; test, the default: that and what tests need)
set -euo pipefail
cd "$(dirname "$0")"

# group | program | Debian package | what for
needed="
run|cc|gcc|links Rust programs
run|make|make|the build's commands
run|/usr/include/stdio.h|libc6-dev|links Rust programs
run|containerd|containerd|runs the containers
run|crun|crun|the OCI runtime in the guest
run|mkfs.ext4|e2fsprogs|the containers' writable disks
run|mkfs.erofs|erofs-utils|the guest's root image and the containers' images
run|busybox|busybox-static|the test image
test|runc|runc|containers on the host, to compare with
test|cpio|cpio|checks the initrd
test|xz|xz-utils|checks decompression
test|zstd|zstd|checks decompression
test|mkfs.xfs|xfsprogs|file systems to mount in the guest
test|mkfs.btrfs|btrfs-progs|file systems to mount in the guest
test|mksquashfs|squashfs-tools|file systems to mount in the guest
test|ip|iproute2|network interfaces and namespaces of VMs
test|ps|procps|checks that nothing is left running
"
qemu_least=10

case $(uname -m) in
    aarch64) qemu=qemu-system-aarch64 qemu_package=qemu-system-arm ;;
    *) qemu=qemu-system-x86_64 qemu_package=qemu-system-x86 ;;
esac

case ${1:-test} in
    run) groups=" run " ;;
    test) groups=" run test " ;;
    *) echo "Usage: $0 [run|test]" >&2 && exit 2 ;;
esac

# mkfs and its like are often not on a user's PATH.
PATH=$PATH:/usr/sbin:/sbin

# is_there PROGRAM: whether it is installed, and is of the right kind.
is_there() {
    local path
    case $1 in
        /*) [ -e "$1" ] ;;
        # Only a static one runs alone in an image.
        busybox) path=$(command -v busybox) && [[ $(ldd "$path" 2>/dev/null) != *"=>"* ]] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# qemu_version: major version of the installed QEMU, 0 without one.
qemu_version() {
    local line
    line=$("$qemu" --version 2>/dev/null | head -n 1) || true
    [[ $line =~ version\ ([0-9]+) ]] && echo "${BASH_REMATCH[1]}" || echo 0
}

packages=() missing=()
while IFS='|' read -r group program package reason; do
    [[ -n $group && $groups == *" $group "* ]] || continue
    is_there "$program" && continue
    packages+=("$package")
    missing+=("$(printf '  %-16s %s (package %s)' "$program" "$reason" "$package")")
done <<<"$needed"
need_qemu=false
if [ "$(qemu_version)" -lt $qemu_least ]; then
    need_qemu=true
    missing+=("$(printf '  %-16s %s (package %s)' "QEMU >= $qemu_least" "runs VMs without hardware virtualization" "$qemu_package")")
fi
if [ ${#missing[@]} = 0 ]; then
    echo "Nothing to install: all needed programs are there."
    exit 0
fi

distribution=$(. /etc/os-release 2>/dev/null && echo " ${ID:-} ${ID_LIKE:-} ") || distribution=
if ! command -v apt-get >/dev/null || [[ $distribution != *" debian "* ]]; then
    echo "This is no Debian machine, so please install these programs yourself:" >&2
    printf '%s\n' "${missing[@]}" >&2
    exit 1
fi
sudo=()
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "Installing packages needs root, and there is no sudo here. Missing:" >&2
        printf '%s\n' "${missing[@]}" >&2
        exit 1
    fi
    sudo=(sudo)
fi
echo "Installing with apt:"
printf '%s\n' "${missing[@]}"

work=$(mktemp -d)
trap '"${sudo[@]}" rm -rf "$work"' EXIT

# apt ARGUMENT...: apt-get, its output shown only when it fails.
apt() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" \
        >"$work/log" 2>&1 </dev/null
}

fail() {
    echo "$1; apt-get says:" >&2
    tail -n 20 "$work/log" >&2
    exit 1
}

# Without --no-remove apt may resolve a conflict by removing what the user has.
install=(install -y --no-install-recommends --no-remove)
if [ ${#packages[@]} -gt 0 ]; then
    # Lists that are missing or too old show when the installation fails.
    apt "${install[@]}" "${packages[@]}" || {
        apt update || fail "Cannot update the package lists"
        apt "${install[@]}" "${packages[@]}" || fail "Cannot install ${packages[*]}"
    }
fi

# candidate: major version of the QEMU that apt would install.
candidate() {
    local version
    version=$(apt-cache policy "$qemu_package" | sed -n 's/^ *Candidate: \([0-9]*:\)\?\([0-9]*\)\..*/\2/p')
    echo "${version:-0}"
}

if $need_qemu; then
    [ "$(candidate)" != 0 ] || apt update || fail "Cannot update the package lists"
    if [ "$(candidate)" -ge $qemu_least ]; then
        apt "${install[@]}" "$qemu_package" || {
            apt update || fail "Cannot update the package lists"
            apt "${install[@]}" "$qemu_package" || fail "Cannot install $qemu_package"
        }
    else
        # shellcheck source=scripts/lib-apt.sh
        . ./lib-apt.sh
        suite=$(. /etc/os-release && echo "$VERSION_CODENAME-backports")
        echo "  (QEMU from $suite)"
        private_apt "$work/apt" "$suite" with-release
        apt "${PRIVATE_APT[@]}" update || fail "Cannot read the lists of $suite"
        apt "${PRIVATE_APT[@]}" "${install[@]}" -t "$suite" "$qemu_package" ||
            fail "Cannot install $qemu_package from $suite"
    fi
    if [ "$(qemu_version)" -lt $qemu_least ]; then
        echo "QEMU >= $qemu_least is needed, but $qemu_package is version $(qemu_version) here" >&2
        exit 1
    fi
fi
echo "Done."
