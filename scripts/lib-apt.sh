# shellcheck shell=bash
# apt with sources and lists of its own, so that a suite which the machine does not use can be
# read without changing the machine's configuration. To be sourced; the caller has set -euo pipefail.

# private_apt DIR SUITE [with-release]: prepares DIR for a private apt that knows SUITE, and with
# with-release also the suites of the machine's own Debian release. Sets the array PRIVATE_APT to the
# options for apt's programs.
private_apt() {
    local dir=$1 suite=$2 release
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mkdir -p "$dir/sources" "$dir/lists/partial" "$dir/cache/archives/partial"
    debian_sources "$release" "$suite" "$dir/sources/suite"
    if ! ls "$dir/sources/suite".* >/dev/null 2>&1; then
        echo "No apt source for Debian '$release' in /etc/apt, from which the one for $suite could be derived" >&2
        return 1
    fi
    if [ "${3:-}" = with-release ]; then
        debian_sources "$release $release-updates $release-security" "" "$dir/sources/release"
        # What is there and still current is not downloaded again.
        cp -r --preserve=timestamps /var/lib/apt/lists/*_dists_* "$dir/lists/" 2>/dev/null || true
    fi
    # shellcheck disable=SC2034 # for the caller
    PRIVATE_APT=(
        -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$dir/sources"
        -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache"
        # Otherwise apt drops to a user that may not write below DIR.
        -o "APT::Sandbox::User=root"
    )
}

# debian_sources SUITES NEW OUT: copies the machine's enabled entries for any of SUITES to OUT.sources
# (deb822) and OUT.list (one line each), with their suites replaced by NEW unless that is empty.
debian_sources() {
    local suites=" $1 " new=$2 out=$3 file
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -f "$file" ] || continue
        awk -v suites="$suites" -v new="$new" '
            function flush(   i, n, words, kept) {
                n = split(value["suites"], words, " ")
                for (i = 1; i <= n; i++) if (index(suites, " " words[i] " ")) kept = kept " " words[i]
                if (kept != "" && value["types"] ~ /(^| )deb( |$)/ && value["enabled"] !~ /no|false|0/) {
                    printf "%sTypes: deb\nSuites:%s\n\n", body, (new == "" ? kept : " " new)
                }
                body = ""; split("", value); skip = 0
            }
            /^[ \t]*$/ { flush(); next }
            /^#/ { next }
            /^[^ \t]/ {
                key = tolower($1); sub(/:.*/, "", key)
                skip = key == "types" || key == "suites"
                value[key] = $0; sub(/^[^:]*:[ \t]*/, "", value[key])
            }
            !skip { body = body $0 "\n" }
            END { flush() }' "$file" >>"$out.sources"
    done
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$file" ] || continue
        awk -v suites="$suites" -v new="$new" '
            $1 == "deb" {
                at = 3
                if ($2 ~ /^\[/) { at = 2; while ($at !~ /\]$/) at++; at += 2 }
                if (index(suites, " " $at " ")) { if (new != "") $at = new; print }
            }' "$file" >>"$out.list"
    done
    for file in "$out.sources" "$out.list"; do
        [ -s "$file" ] || rm -f "$file"
    done
}
