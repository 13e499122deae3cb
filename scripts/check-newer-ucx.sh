#!/usr/bin/env bash
# check-newer-ucx.sh [FOLDER]: builds the addon and the native tests against the UCX in FOLDER instead of the system's, and
# runs the tests of links and clusters with it. Without FOLDER it is the UCX of the Python package libucx-cu13.
set -euo pipefail
cd "$(dirname "$0")/.."
build=native/build-newer-ucx
ucx=${1:-}
if [ -z "$ucx" ]; then
  python3 -m venv "$build-python"
  "$build-python/bin/pip" install --quiet 'libucx-cu13==1.22.*'
  ucx=$(echo "$PWD/$build-python"/lib/python3*/site-packages/libucx)
fi
# The paths in the package's .pc files are those of the machine that built it.
export PKG_CONFIG='pkg-config --define-prefix' PKG_CONFIG_PATH="$ucx/lib/pkgconfig"
version=$($PKG_CONFIG --modversion ucx)
node_modules/.bin/cmake-js compile --directory native --out "$build" --config Release --log-level error \
  --CDSWITCHYARD_TESTS=ON
export SWITCHYARD_ADDON="$PWD/$build/Release/switchyard.node"
node dist/bin/switchyard.js doctor | grep -E "^OK +UCX +$version"
for transports in all tcp,self; do
  for test in fabric process hostile stream blocked; do
    for loop in '' SWITCHYARD_TEST_LOOP=1; do
      env UCX_TLS=$transports UCX_WARN_UNUSED_ENV_VARS=n $loop "$build/test/ucx_${test}_test" --gtest_brief=1
    done
  done
done
"$build/test/ucx_loop_test" --gtest_brief=1
node scripts/test.mjs test/transport test/native/ucx test/e2e/equality
