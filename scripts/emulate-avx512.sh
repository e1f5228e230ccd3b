#!/usr/bin/env bash
# emulate-avx512.sh [CPU [GTEST_FILTER]]: runs the kernel tests (by default those of all targets but ref) on a processor
# that this machine need not have, emulated by Bochs: sapphire_rapids (the default: every target), arrow_lake (AVX-VNNI
# without AVX-512), corei7_skylake_x, ... ("$BOCHS" -help cpu). Some 20 million instructions a second.
# Needs Debian 12, and in $BOCHS a Bochs newer than Debian's 2.7, which has no BF16 and no AVX-VNNI. In Bochs's source:
#   sed -i 's/^  if (src == BX_SRC_RM) {$/&\n    if (ia_opcode == BX_IA_EVEX_VPINSRB_VdqEbIb) return 1;/' \
#     cpu/decoder/fetchdecode32.cc
#   ./configure --with-nogui --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex \
#     --enable-all-optimizations --disable-plugins && make bochs
# The sed mends Bochs (2.7 and 3.0): it counts the short displacement of an EVEX vpinsrb in words, where the processor
# counts bytes. GCC packs Q6_K with this instruction.
set -euo pipefail
cd "$(dirname "$0")/.."
cpu=${1:-sapphire_rapids} filter=${2:--*/ref}
[ -x "${BOCHS:-}" ] || { sed -n '2,12s/^# //p' "$0"; exit 2; }

room=$PWD/build/emulate-avx512
system=$room/system disk=$room/disk root=$room/root log=$room/$cpu.log
tests=()
for source in src/kernels/*_test.cc; do tests+=("kernels_$(basename "$source" .cc)"); done
scripts/build.sh release "${tests[@]}"

# Packages are unpacked, not installed.
if [ ! -e "$system/complete" ]; then
  mkdir -p "$room/debs"
  linux=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p')
  (cd "$room/debs" && apt-get -qq -o APT::Sandbox::User=root download "$linux" busybox-static isolinux \
    syslinux-common bochsbios vgabios xorriso libisoburn1 libisofs6 libburn4 libjte2)
  for deb in "$room"/debs/*.deb; do dpkg -x "$deb" "$system"; done
  touch "$system/complete"
fi

rm -rf "$disk" "$root" "$log"
mkdir -p "$disk" "$root"/{bin,proc,dev,tests}
cp "$system/bin/busybox" "$root/bin/"
for test in "${tests[@]}"; do
  strip -o "$root/tests/$test" "build/release/$test"
  ldd "build/release/$test" | grep -o '/[^ ]*' | while read -r library; do
    [ -e "$root$library" ] || install -D "$library" "$root$library"
  done
done
cat >"$root/init" <<INIT
#!/bin/busybox sh
export PATH=/bin LD_BIND_NOW=1
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
grep -m1 'model name' /proc/cpuinfo
for test in /tests/*; do
  echo "==> \$test"
  \$test --gtest_color=no --gtest_filter='$filter' && echo "==> passed" || echo "==> failed"
done
echo "==> complete"
sleep 2  # until the serial line has sent all
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | ./bin/busybox cpio -o -H newc | gzip -1) >"$disk/initrd.gz" 2>/dev/null
cp "$system"/boot/vmlinuz-* "$disk/vmlinuz"
cp "$system/usr/lib/ISOLINUX/isolinux.bin" "$system/usr/lib/syslinux/modules/bios/ldlinux.c32" "$disk/"
# Bochs reports FSRM but no ERMS, with which Linux 6.1's memmove runs away; and Bochs 3.0 leaves system management mode
# with an error where pages have five levels.
cat >"$disk/isolinux.cfg" <<CONFIG
default tests
label tests
  kernel vmlinuz
  append initrd=initrd.gz console=ttyS0,115200 quiet mitigations=off nokaslr panic=-1 clearcpuid=fsrm no5lvl
CONFIG
LD_LIBRARY_PATH=$system/usr/lib/x86_64-linux-gnu "$system/usr/bin/xorriso" -as mkisofs -quiet -o "$room/disk.iso" \
  -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table "$disk" 2>/dev/null

cat >"$room/$cpu.bochsrc" <<CONFIG
cpu: model=$cpu, count=1, ips=40000000
memory: guest=512, host=512
romimage: file=$system/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=$system/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=$room/disk.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$log
speaker: enabled=0
display_library: nogui
panic: action=fatal
log: $room/$cpu.bochs.log
CONFIG
echo "==> Emulating $cpu; what the tests print is in $log"
"$BOCHS" -q -f "$room/$cpu.bochsrc" </dev/null >/dev/null 2>&1 || true  # a power-off too ends it with an error
grep -E '^model name|OK|FAILED|==>' "$log"
grep -q '^==> complete' "$log" && ! grep -q '^==> failed' "$log"
