#!/usr/bin/env bash
# Packs all that scripts/gpu-check.sh needs on a GPU machine without a network and without compilers: the CUDA backend, its tests and
# its benchmark for every architecture, the addon, the TypeScript build, node, UCX and the npm packages that a cluster runs with.
# cuBLASLt, which is large, is looked for there. The sources come along, for machines on which these programs do not run. x86-64.
#
#   scripts/gpu-bundle.sh [--on-fake] [FILE]          (default: gpu-bundle.tar.gz)
#
# Needs nvcc, on the PATH or in CUDACXX; scripts/cuda-toolchain.sh brings it. --on-fake packs the backend on the fake device of the
# tests instead, for scripts/check-gpu-bundle.sh.
# On the GPU machine:   tar -xzf FILE && gpu-bundle/scripts/gpu-check.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
on_fake=
[ "${1:-}" != --on-fake ] || { on_fake=yes; shift; }
file=${1:-gpu-bundle.tar.gz}
case $file in -*) echo "usage: $0 [--on-fake] [FILE]" >&2; exit 2 ;; esac
[ -d "$(dirname "$file")" ] || { echo "gpu-bundle: there is no folder for $file" >&2; exit 1; }
[ -n "$on_fake" ] || command -v "${CUDACXX:-nvcc}" >/dev/null || { echo "gpu-bundle: no nvcc; CUDACXX names one" >&2; exit 1; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
bundle=$scratch/gpu-bundle
mkdir -p "$bundle"/{bin,lib,scripts,native/build/Release,bench/peers,googletest/lib,googletest/include}

# The addon is the same with and without the backend, which is a module beside it.
env -u CUDACXX node scripts/bootstrap.mjs --quiet
parallel=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
if [ -n "$on_fake" ]; then
  build=native/build
  cmake -S native -B $build -DSWITCHYARD_TESTS=ON >/dev/null
  cmake --build $build --parallel "$parallel" --target switchyard_cuda_on_fake experts_cuda_on_fake gpu_bench_on_fake
  built=($build/test/on_fake_cuda/{switchyard_cuda.so,experts_cuda,gpu_bench})
  level=1
else
  build=native/build-gpu-bundle
  # Where the libraries lie on this machine says nothing about another.
  cmake -S native -B $build -DSWITCHYARD_CUDA=ON -DSWITCHYARD_TESTS=ON -DSWITCHYARD_BENCH=ON -DCMAKE_SKIP_RPATH=ON >/dev/null
  cmake --build $build --parallel "$parallel" --target switchyard_cuda experts_cuda gpu_bench
  built=($build/switchyard_cuda.so $build/test/experts_cuda $build/bench/gpu_bench)
  level=9
fi

strip -o "$bundle/native/build/Release/switchyard_cuda.so" "${built[0]}"
for program in "${built[@]:1}" "$(node -p process.execPath)"; do strip -o "$bundle/bin/$(basename "$program")" "$program"; done
addon=native/build/Release
strip -o "$bundle/$addon/switchyard.node" $addon/switchyard.node
if [ -e $addon/switchyard_ucx.so ]; then
  strip -o "$bundle/$addon/switchyard_ucx.so" $addon/switchyard_ucx.so
  libraries=$(ldd $addon/switchyard_ucx.so | sed -nE 's/^\t(libuc|libnuma).* => ([^ ]+) .*/\2/p')
  for library in $libraries; do cp "$library" "$bundle/lib/"; done
  # The transports between processes of one machine that are not within the library.
  modules=$(dirname "$(grep -m 1 libuct <<<"$libraries")")/ucx
  mkdir "$bundle/lib/ucx"
  cp -a "$modules"/libuct_cma.so* "$bundle/lib/ucx/"
else
  echo "gpu-bundle: left out: UCX, the addon is built without it"
fi

cp -r dist proto package.json "$bundle"
cp scripts/{gpu-check.sh,merge-reports.mjs} "$bundle/scripts"
cp bench/peers/torch_gpu.py "$bundle/bench/peers"
{
  npm ls --omit=dev --omit=optional --all --parseable | sed -n "s|^$PWD/||p"
  ls -d node_modules/@napi-rs/blake-hash-linux-x64-gnu
} |
  tar -cf - --exclude='*.ts' --exclude='*.[cm]ts' --exclude='*.map' --exclude='*.md' --exclude=node-addon-api --files-from=- |
  tar -xf - -C "$bundle"
find "$bundle/dist" -name '*.d.ts' -delete
tar -cf - native/{CMakeLists.txt,cuda.cmake,src,bench,test} | tar -xf - -C "$bundle"
for header in /usr/include/gtest /usr/local/include/gtest; do
  [ ! -d $header ] || cp -r $header "$bundle/googletest/include/"
done
find /usr/lib /usr/local/lib -name 'libgtest.a' -o -name 'libgtest_main.a' | xargs -I{} cp {} "$bundle/googletest/lib/"

tar -I "gzip -$level" -cf "$file" -C "$scratch" gpu-bundle
ls -l "$file"
