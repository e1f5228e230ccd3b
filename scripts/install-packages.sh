#!/usr/bin/env bash
# Installs the groups of packages.txt that are named as arguments: install-packages.sh build [rust] [test] [fuzz].
# Group `rust` is skipped where a recent cargo exists. Nothing missing: nothing is run, in a few milliseconds.
set -euo pipefail
cd "$(dirname "$0")/.."

# The oldest cargo that reads rust/textffi's lock file and builds its dependencies.
readonly CARGO_VERSION_MIN=1.87.0

have_recent_cargo() {
  local cargo version
  cargo=$(command -v cargo || true)
  [ -n "$cargo" ] || cargo="$HOME/.cargo/bin/cargo"
  version=$("$cargo" --version 2>/dev/null | cut -d' ' -f2) || return 1
  [ "$(printf '%s\n' "$CARGO_VERSION_MIN" "$version" | sort -V | head -n1)" = "$CARGO_VERSION_MIN" ]
}

packages_of() {  # packages_of GROUP: the packages of one group of packages.txt
  awk -v group="$1" '
    { sub(/#.*/, "") }
    /^\[/ { gsub(/[][ \t]/, ""); inside = ($0 == group); known = known || inside; next }
    inside && NF { print $1 }
    END { exit !known }' packages.txt
}

wanted=()
for group in "$@"; do
  if [ "$group" = rust ] && have_recent_cargo; then continue; fi
  names=$(packages_of "$group") || { echo "install-packages.sh: packages.txt has no group [$group]" >&2; exit 2; }
  # shellcheck disable=SC2206  # one word a package
  wanted+=($names)
done

if ! command -v dpkg-query >/dev/null; then
  echo "This is no Debian system: make sure that it has what Debian calls ${wanted[*]}." >&2
  exit 0
fi
installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null || true)
missing=()
for package in "${wanted[@]}"; do
  grep -qx "installed $package" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "==> Installing ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "Packages are missing, and this user is not root and has no sudo. As root, run:" >&2
    echo "  apt-get update && apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" </dev/null
}
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
  echo "apt-get could not install ${missing[*]}: is this Debian 12 with a working network? Its message is above." >&2
  exit 1
fi

for group in "$@"; do
  if [ "$group" = rust ] && ! have_recent_cargo; then
    echo "The first cargo on PATH is older than $CARGO_VERSION_MIN: remove it, or update it (rustup update)." >&2
    exit 1
  fi
done
