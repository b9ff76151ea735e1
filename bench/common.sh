# What the benches share. Sourced, not run.

# Builds favo and names the program.
build_favo() {
  cargo build --release --quiet --package favo
  echo "${CARGO_TARGET_DIR:-target}/release/favo"
}

# image_blob FAVO IMAGE PART: the file of an image's part ("kernel": the kernel
# itself). Blobs are plain files. Makes the image if there is none.
image_blob() {
  local favo=$1 image=$2 part=$3 digest state
  "$favo" image show "$image" >/dev/null 2>&1 || "$favo" image build "$image" >&2
  digest=$("$favo" image show "$image" -o json |
    sed -n '/"'"$part"'"/,/}/s/.*"digest": *"sha256:\([0-9a-f]*\)".*/\1/p' | head -1)
  state=$("$favo" doctor -o json | sed -n 's/.*"state_directory": *"\(.*\)".*/\1/p')
  if [ -z "$digest" ] || [ ! -f "$state/blobs/sha256/$digest" ]; then
    echo "The $part of the image $image can't be found" >&2
    return 1
  fi
  echo "$state/blobs/sha256/$digest"
}

# debian_disk FAVO FILE GIB PACKAGE…: a raw disk with Debian 12's root file
# system and packages, put there by a guest through its own network.
debian_disk() {
  local favo=$1 file=$2 gibibytes=$3
  shift 3
  "$favo" image show debian:12 >/dev/null 2>&1 || "$favo" image build debian:12 >&2
  "$favo" image export --format raw debian:12 "$file" >&2
  truncate --size "${gibibytes}G" "$file"
  # The disk is whole only if the guest could unmount it.
  "$favo" run --disk "$file,format=raw" debian:12 -- sh -ec '
    disk=$(ls /dev/vd? | tail -n 1)
    mount "$disk" /mnt
    for each in proc dev run; do mount --bind /$each /mnt/$each; done
    export DEBIAN_FRONTEND=noninteractive
    { chroot /mnt apt-get update -qq &&
      chroot /mnt apt-get install -y -qq --no-install-recommends '"$*"'
    } >/run/log 2>&1 || { cat /run/log; exit 1; }
    umount /mnt/proc /mnt/dev /mnt/run /mnt' >&2
}

# debian_initrd FAVO DIRECTORY FILE: an initial RAM disk that loads the image's
# modules, mounts the first disk and becomes its systemd, or what the kernel's
# command line names with first=PROGRAM, with the arguments after its `--`.
debian_initrd() {
  local favo=$1 root=$2 file=$3
  mkdir -p "$root"/{proc,dev,mnt}
  cp "$(command -v busybox)" "$root/busybox"
  # The image's own modules; the order to load them in is one of the files.
  (cd "$root" && cpio -i --quiet -d <"$(image_blob "$favo" debian:12 modules)")
  cat >"$root/init" <<'INIT'
#!/busybox sh
while read -r module; do
  /busybox insmod "/modules/$module" || echo "bench: $module can't be loaded"
done </modules/order
/busybox mount -t devtmpfs dev /dev
/busybox mount -t ext4 /dev/vda /mnt
/busybox mount -t devtmpfs dev /mnt/dev
exec /busybox switch_root /mnt "${first:-/sbin/init}" "$@"
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet) >"$file"
}
