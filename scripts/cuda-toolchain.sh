#!/usr/bin/env bash
# Puts NVIDIA's compiler, the CUDA headers and the libraries that the CUDA backend links into one folder, from the
# wheels that NVIDIA publishes on PyPI. Needs python3 with venv, no GPU and no driver. About 850 MB; a folder that
# is complete is left as it is.
#
#   scripts/cuda-toolchain.sh FOLDER
#   cmake -S native -B native/build-cuda -DSWITCHYARD_CUDA=ON -DCMAKE_CUDA_COMPILER=FOLDER/bin/nvcc
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: scripts/cuda-toolchain.sh FOLDER" >&2; exit 2; }

# The first release of CUDA 13: what it builds runs with every driver of CUDA 13.
release=13.0
packages=(nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cublas nvidia-nvtx)

mkdir -p "$1"
folder=$(cd "$1" && pwd)
stamp="$folder/.complete-$release"
if [ ! -e "$stamp" ]; then
  python3 -m venv "$folder/.venv"
  "$folder/.venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --upgrade --target "$folder/.wheels" \
    "${packages[@]/%/==$release.*}"
  cp -al "$folder/.wheels/nvidia/cu13/." "$folder/"
  rm -rf "$folder/.venv" "$folder/.wheels"
  # What the compiler and the linker expect of an installation, and wheels lack.
  ln -sfn lib "$folder/lib64"
  for library in cudart cublasLt; do ln -sf "lib$library.so.13" "$folder/lib/lib$library.so"; done
  touch "$stamp"
fi

"$folder/bin/nvcc" --version | sed -n 's/^Cuda compilation tools, release/CUDA/p'
echo "build with: cmake -S native -B native/build-cuda -DSWITCHYARD_CUDA=ON -DCMAKE_CUDA_COMPILER=$folder/bin/nvcc"
