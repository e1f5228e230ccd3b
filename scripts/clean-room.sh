#!/usr/bin/env bash
# clean-room.sh [--room DIR] [--keep] [COMMAND...]: proves that the committed tree works on a bare Debian 12.
# Makes a Debian 12 with debootstrap in DIR (default: a new folder below /var/tmp), adds what a person needs to clone
# (git, make), clones HEAD into it and runs each COMMAND there, with its wall time. Without a COMMAND: a first and a
# second `make run`, and `make test`. Nothing of this machine is mounted in it; only its way to the network is copied
# (resolver, hosts, extra certificates, proxy variables, apt's own settings in $APT_CONF if given).
# Needs root, debootstrap, about 6 GB and a quarter of an hour. The room is deleted afterwards, unless --keep.
set -euo pipefail
cd "$(dirname "$0")/.."

room="" keep=no
while [ $# -gt 0 ]; do
  case $1 in
    --room) room=$2; shift 2 ;;
    --keep) keep=yes; shift ;;
    -*) sed -n '2,8s/^# //p' "$0"; exit 2 ;;
    *) break ;;
  esac
done
[ "$(id -u)" -eq 0 ] || { echo "clean-room.sh: debootstrap and chroot need root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "clean-room.sh: apt-get install debootstrap" >&2; exit 1; }
[ $# -gt 0 ] || set -- "PROMPT='What is a cache?' make run" "PROMPT='What is a cache?' make run" "make test"
[ -n "$room" ] || room=$(mktemp -d /var/tmp/tinyserve-clean-room.XXXXXX)
if [ -n "$(ls -A "$room" 2>/dev/null)" ] && [ ! -e "$room/.clean-room" ]; then
  echo "clean-room.sh: $room holds something else" >&2  # it would be deleted in the end
  exit 1
fi
mkdir -p "$room"
touch "$room/.clean-room"

mounted=()
leave() {
  for point in "${mounted[@]}"; do umount -l "$point"; done
  if [ $keep = yes ]; then echo "==> The room is kept: $room"; else rm -rf --one-file-system "$room"; fi
}
trap leave EXIT
mount_in_room() {  # mount_in_room TYPE FOLDER [OPTIONS]
  mkdir -p "$room/$2"
  mount -t "$1" -o "${3:-defaults}" "$1" "$room/$2"
  mounted+=("$room/$2")
}

in_room() {  # in_room COMMAND: in the clone, with a login's environment and closed standard input, as CI has it
  env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 CI=true \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} \
    chroot "$room" /bin/bash -c "cd /srv/tinyserve 2>/dev/null; $1" <&-
}

if [ ! -x "$room/usr/bin/apt-get" ]; then
  echo "==> Making a Debian 12 in $room"
  debootstrap --variant=minbase bookworm "$room" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$room.log"
  rm "$room.log"
fi
cat >"$room/etc/apt/sources.list" <<SOURCES
deb ${DEBIAN_MIRROR:-http://deb.debian.org/debian} bookworm main
deb ${DEBIAN_MIRROR:-http://deb.debian.org/debian} bookworm-updates main
deb ${DEBIAN_SECURITY_MIRROR:-http://deb.debian.org/debian-security} bookworm-security main
SOURCES
cp /etc/resolv.conf /etc/hosts "$room/etc/"
mkdir -p "$room/usr/local/share/ca-certificates"
cp -r /usr/local/share/ca-certificates/. "$room/usr/local/share/ca-certificates/"
[ -z "${APT_CONF:-}" ] || cp "$APT_CONF" "$room/etc/apt/apt.conf.d/99clean-room"
mount_in_room proc proc
mount_in_room sysfs sys
mount_in_room tmpfs dev/shm mode=1777
mount_in_room devpts dev/pts newinstance,ptmxmode=0666,mode=620
ln -sf pts/ptmx "$room/dev/ptmx"
in_room "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends git make \
  >/dev/null"
rm -rf "$room/srv/tinyserve"
git clone -q --no-hardlinks . "$room/srv/tinyserve"
echo "==> $(git -C "$room/srv/tinyserve" log -1 --format='Commit %h: %s')"

for command in "$@"; do
  echo "==> $command"
  start=$(date +%s.%N)
  in_room "$command"
  printf '==> %s s: %s\n' "$(awk -v a="$start" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')" "$command"
done
