#!/usr/bin/env bash
# check-image.sh: builds deploy/Dockerfile without Docker and without its base images, and runs what is in the image: as its
# user, on a read-only root, as PID 1, within limits of memory and CPU; then the services of docker-compose.yml. For root on
# Debian with buildah and debootstrap (apt-get install buildah debootstrap docker-compose iproute2 socat). Base images made before are used again.
#   SWITCHYARD_DEBIAN_MIRROR=… names another mirror; SWITCHYARD_IMAGE=name:tag keeps the image under that name.
set -euo pipefail
cd "$(dirname "$0")/.."
mirror=${SWITCHYARD_DEBIAN_MIRROR:-http://deb.debian.org/debian}
image=${SWITCHYARD_IMAGE:-localhost/switchyard-check:latest}
debian=localhost/switchyard-check-debian:bookworm
node=localhost/switchyard-check-node:24
version=$(node -p "require('./package.json').version")
scratch=$(mktemp -d)
container=
trap '[ -z "$container" ] || { buildah umount "$container"; buildah rm "$container"; } >/dev/null; rm -rf "$scratch"' EXIT

say() { printf '== %s\n' "$*"; }
fail() { printf 'check-image: %s\n' "$*" >&2; exit 1; }

# A directory as an image.
import_image() {
  local made
  made=$(buildah from scratch)
  buildah add --quiet "$made" "$1" / >/dev/null
  buildah commit --quiet --rm "$made" "$2" >/dev/null
}

if ! buildah inspect --type image "$debian" >/dev/null 2>&1; then
  say 'base: Debian by debootstrap'
  debootstrap --variant=minbase bookworm "$scratch/debian" "$mirror" >"$scratch/debootstrap.log" || { tail "$scratch/debootstrap.log"; exit 1; }
  # As slim as the official image.
  rm -rf "$scratch"/debian/var/cache/apt/* "$scratch"/debian/var/lib/apt/lists/* \
    "$scratch"/debian/usr/share/{doc,man,info,locale}/*
  import_image "$scratch/debian" "$debian"
fi
if ! buildah inspect --type image "$node" >/dev/null 2>&1; then
  say 'base: Node 24 from the npm registry'
  mkdir -p "$scratch/node/usr/local"/{bin,lib/node_modules}
  npm install --silent --prefix "$scratch/registry" node@24 npm@11
  cp "$(find "$scratch/registry/node_modules" -path '*/bin/node' -type f -size +1M | head -1)" "$scratch/node/usr/local/bin/node"
  cp -r "$scratch/registry/node_modules/npm" "$scratch/node/usr/local/lib/node_modules/"
  ln -s ../lib/node_modules/npm/bin/npm-cli.js "$scratch/node/usr/local/bin/npm"
  ln -s ../lib/node_modules/npm/bin/npx-cli.js "$scratch/node/usr/local/bin/npx"
  import_image "$scratch/node" "$node"
fi

say "build of $image"
certificates=${NODE_EXTRA_CA_CERTS:-/etc/ssl/certs/ca-certificates.crt}
buildah bud --layers --isolation chroot --ulimit nofile=1024:1024 --file deploy/Dockerfile --tag "$image" \
  --build-arg NODE_IMAGE="$node" --build-arg BUILD_IMAGE="$debian" --build-arg RUNTIME_IMAGE="$debian" \
  --volume "$certificates:$certificates:ro" --build-arg NODE_EXTRA_CA_CERTS="$certificates" \
  --build-arg VERSION="$version" --build-arg REVISION="$(git rev-parse HEAD)" . >"$scratch/build.log" 2>&1 ||
  { tail -40 "$scratch/build.log"; fail 'the build failed'; }

container=$(buildah from "$image")
root=$(buildah mount "$container")
size() { du --summarize --block-size=1M "$@" | tail -1 | cut -f1; }
say "size: $(size "$root") MiB unpacked, of which Node $(size "$root/usr/local/bin/node"), switchyard $(size "$root/opt/switchyard")"

label() { buildah inspect --type image --format "{{index .OCIv1.Config.Labels \"org.opencontainers.image.$1\"}}" "$image"; }
[ "$(label version)" = "$version" ] || fail "the label of the version is $(label version)"
[ "$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "$image")" = 10001:10001 ] || fail 'the image runs as root'
[ ! -e "$root/opt/switchyard/test" ] || fail 'the image holds tests'

node scripts/check-image.mjs "$image"
node scripts/check-compose.mjs "$image"
