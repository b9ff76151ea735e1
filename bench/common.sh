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
