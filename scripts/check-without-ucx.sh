#!/usr/bin/env bash
# Builds the addon as on a machine without UCX, in a folder of its own, and runs the tests of links and clusters with it.
set -euo pipefail
cd "$(dirname "$0")/.."
build=native/build-without-ucx
PKG_CONFIG_LIBDIR=/nonexistent PKG_CONFIG_PATH= node_modules/.bin/cmake-js compile --directory native --out "$build" \
  --config Release --log-level error
export SWITCHYARD_ADDON="$PWD/$build/Release/switchyard.node"
node dist/bin/switchyard.js doctor | grep -E '^ABSENT +UCX .*libucx-dev'
node scripts/test.mjs test/transport test/native/ucx test/e2e/equality
