# shellcheck shell=bash
# SPDX-License-Identifier: MIT
# What the scripts share: messages, long steps with progress, and one clear line for each usual way to fail.
# Sourced, with `set -euo pipefail` already on. Progress goes to standard output, errors to standard error.

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need COMMAND ADVICE: end with one line unless COMMAND can be run.
need() {
    command -v "$1" >/dev/null 2>&1 || die "$1 is not on PATH; $2"
}

# existing PATH: print PATH, or its nearest parent that exists.
existing() {
    local path=$1
    while [ ! -e "$path" ]; do path=$(dirname "$path"); done
    printf '%s\n' "$path"
}

# free_mib PATH: print the free space, in MiB, of the file system that PATH is or will be on.
free_mib() {
    df --output=avail -BM "$(existing "$1")" | tail -n 1 | tr -dc '0-9'
}

# need_space PATH MIB PURPOSE: end with one line unless PATH's file system has MIB free.
need_space() {
    local free
    free=$(free_mib "$1")
    [ "$free" -ge "$2" ] ||
        die "$3 needs $2 MiB in $1 but only $free MiB are free; make room or choose another place"
}

# need_writable PATH ADVICE: end with one line unless PATH can be made or changed by this user.
need_writable() {
    [ -w "$(existing "$1")" ] || die "$1 is not writable by user $(id -un 2>/dev/null || id -u); $2"
}

# explain LOG PATH WHAT: say in one line why a command failed, from its log and from how full the file systems are.
explain() {
    local log=$1 path=$2 what=$3 place
    # They are asked as well because on a full one the log itself may have been cut short.
    for place in "$path" "${TMPDIR:-/tmp}"; do
        [ "$(free_mib "$place")" -ge 8 ] ||
            die "$what: no room left in $place ($(free_mib "$place") MiB free); make room and run this again"
    done
    if grep -qiE 'certificate.?verify.?failed|certificate verification failed' "$log"; then
        die "$what: the package registry's certificate is not trusted here; install its CA certificate (for pip also: set PIP_CERT), then run this again"
    elif grep -qiE 'no space left on device|disk quota exceeded' "$log"; then
        die "$what: no room left where it writes ($(grep -iE -m 1 'no space left on device|disk quota exceeded' "$log")); make room and run this again"
    elif grep -qiE 'temporary failure (in name resolution|resolving)|name or service not known|network is unreachable|could not (resolve|connect)|connection (refused|timed out|reset)|cannot connect to proxy|failed to fetch|failed to establish a new connection' "$log"; then
        die "$what: the network or the package registry cannot be reached; check the connection and the settings of pip and apt, then run this again"
    elif grep -qiE 'permission denied|operation not permitted|are you root' "$log"; then
        die "$what: permission denied ($(grep -iE -m 1 'permission denied|operation not permitted|are you root' "$log")); run this as a user who may write there, or as root"
    fi
    tail -n 20 "$log" | sed 's/^/  | /' >&2
    die "$what failed; the last lines of its output are above"
}

running=""
log=""
# A command in the background of a script ignores the terminal's interrupt, so it is ended here.
stop_running() {
    [ -z "$running" ] || kill "$running" 2>/dev/null || true
    [ -z "$log" ] || rm -f "$log"
}
trap stop_running EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# long WHAT PATH COMMAND...: run COMMAND without input, showing that it is alive and how long it took.
# PATH is where it writes most; it is named when there is no room left. Ends the script when COMMAND fails.
long() {
    local what=$1 path=$2 began=$SECONDS shown=0
    shift 2
    log=$(mktemp "${TMPDIR:-/tmp}/vmbus-setup.XXXXXX" 2>/dev/null) ||
        die "no room for a log in ${TMPDIR:-/tmp}; make room or point TMPDIR elsewhere"
    say "$what ..."
    "$@" </dev/null >"$log" 2>&1 &
    running=$!
    while kill -0 "$running" 2>/dev/null; do
        sleep 0.2
        if [ -t 1 ]; then
            printf '\r\033[K  %4d s  %.60s' $((SECONDS - began)) "$(tail -n 1 "$log" | tr -dc '[:print:]')"
        elif [ $((SECONDS - began)) -ge $((shown + 15)) ]; then
            shown=$((SECONDS - began))
            printf '  %4d s  %.60s\n' "$shown" "$(tail -n 1 "$log" | tr -dc '[:print:]')"
        fi
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
    wait "$running" || {
        running=""
        explain "$log" "$path" "$what"
    }
    running=""
    rm -f "$log"
    log=""
    say "$what: done in $((SECONDS - began)) s"
}
