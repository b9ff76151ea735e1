# What favo's scripts need from Debian, and how they get it. Sourced, not run.
#
# need PACKAGE…: installs what is missing, or prints the one command that
# does and stops. Packages come through the host's own apt configuration.

need() {
  local missing=() package
  for package in "$@"; do
    if ! dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
      missing+=("$package")
    fi
  done
  [ ${#missing[@]} -eq 0 ] && return

  local as=()
  if [ "$(id -u)" -ne 0 ]; then
    if sudo -n true 2>/dev/null; then
      as=(sudo -n)
    else
      echo "Missing packages. Install them and start again:" >&2
      echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
      exit 1
    fi
  fi
  echo "Installing ${missing[*]}" >&2
  {
    "${as[@]}" apt-get update -qq
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}"
  } >&2
}

# To build favo: a linker, the C library, a C compiler for zstd and xz, and the
# compiler of etcd's protocol files.
build_packages=(gcc libc6-dev protobuf-compiler libprotobuf-dev)
# To make images: root file systems from packages, and ext4 from a tree.
image_packages=(mmdebstrap e2fsprogs debian-archive-keyring)
# Rootless image builds keep ownership with fakeroot.
[ "$(id -u)" -eq 0 ] || image_packages+=(fakeroot uidmap)
# Peers and oracles the tests hold favo against.
test_packages=(qemu-utils qemu-system-x86 acpica-tools etcd-server tshark)
