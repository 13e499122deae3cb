#!/usr/bin/env bash
# Packs what scripts/gpu-check.sh can use on a GPU machine without a network: node, the npm packages, this checkout's
# TypeScript build, UCX, GoogleTest, make and pkg-config. Needs apt-get (Debian or Ubuntu, x86-64); about 40 MB.
#
#   scripts/gpu-bundle.sh [FILE]          (default: gpu-bundle.tar.xz)
#
# On the GPU machine, in the same checkout:   tar -xJf FILE && . gpu-bundle/env.sh && scripts/gpu-check.sh
set -euo pipefail
cd "$(dirname "$0")/.."
file=${1:-gpu-bundle.tar.xz}
packages=(libucx0 libucx-dev libnuma1 libibverbs1 librdmacm1 libnl-3-200 libnl-route-3-200 libgtest-dev
  make pkgconf pkgconf-bin libpkgconf3)

node scripts/bootstrap.mjs --quiet
rm -rf gpu-bundle
mkdir -p gpu-bundle/bin gpu-bundle/root gpu-bundle/packages
strip -o gpu-bundle/bin/node "$(node -p process.execPath)"
(cd gpu-bundle/packages && apt-get download "${packages[@]}")
for package in gpu-bundle/packages/*.deb; do dpkg -x "$package" gpu-bundle/root; done
rm -rf gpu-bundle/packages gpu-bundle/root/usr/share
cat >gpu-bundle/env.sh <<'END'
# To be sourced: makes what lies beside this file usable. What the machine has itself goes first, but for node.
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
libraries=$folder/root/usr/lib/x86_64-linux-gnu
export PATH=$folder/bin:$PATH:$folder/root/usr/bin
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
export CPATH=${CPATH:+$CPATH:}$folder/root/usr/include
export CMAKE_PREFIX_PATH=${CMAKE_PREFIX_PATH:+$CMAKE_PREFIX_PATH:}$folder/root/usr
export PKG_CONFIG_PATH=$libraries/pkgconfig PKG_CONFIG_SYSROOT_DIR=$folder/root
END
# Not what checks or compiles TypeScript: the build comes along.
XZ_OPT='-6 -T0' tar -cJf "$file" --exclude='node_modules/@biomejs' --exclude='node_modules/@typescript' \
  --exclude='node_modules/typescript' gpu-bundle node_modules dist services/common/generated .bootstrap/typescript
rm -rf gpu-bundle
ls -l "$file"
