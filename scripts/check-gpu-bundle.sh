#!/usr/bin/env bash
# The whole of scripts/gpu-check.sh as on a GPU machine, without one: the backend on the fake device of its tests, unpacked far from
# the checkout, without a network, in an empty environment with the commands alone that any machine has. What only a device has,
# clocks, torch's figures and compute-sanitizer, is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
. scripts/checks.sh

# What a machine has where neither compilers nor node nor xz are installed.
commands=(awk bash cat cp cut dirname env grep gzip head ldconfig ls mkdir mv nproc printf readlink rm sed sort tar tee timeout wc)
mkdir "$scratch/commands"
for command in "${commands[@]}"; do ln -s "$(PATH=$PATH:/usr/sbin:/sbin type -P "$command")" "$scratch/commands/"; done
# Of python3 any one will do; it does not find itself by the name of a link's folder.
printf '#!/bin/sh\nexec %s "$@"\n' "$(python3 -c 'import sys; print(sys.executable)')" >"$scratch/commands/python3"
chmod +x "$scratch/commands/python3"
# cuBLASLt lies where PyTorch brings it.
wheel=$scratch/site-packages/nvidia/cu13/lib

# Loopback alone.
isolated=(unshare --map-root-user --net bash -c 'ip link set lo up && exec "$@"' -)
"${isolated[@]}" true || { isolated=(); echo 'no namespaces here: with the network of this machine'; }
# Runs a command there.
there() {
  (cd "$scratch" && "${isolated[@]}" env -i PATH="$scratch/commands" HOME="$scratch" PYTHONPATH="$scratch/site-packages" "$@")
}

pack() {
  scripts/gpu-bundle.sh --on-fake "$scratch/bundle.tar.gz"
  mkdir -p "$wheel"
  cp native/build/test/on_fake_cuda/libcublasLt.so.13 "$wheel"
  # What travels to a machine that is lent, beside a checkout.
  [ "$(stat -c %s "$scratch/bundle.tar.gz")" -le $((60 << 20)) ]
  there tar -xzf bundle.tar.gz
}

run_all() {
  there gpu-bundle/scripts/gpu-check.sh --trial figures
  # The log has been written to its end.
  tail -n 1 "$scratch/figures/gpu-check.log" | grep '^gpu-check: all done'
}

leaves_figures() {
  node -e '
    const { machine, results } = JSON.parse(require("node:fs").readFileSync(process.argv[1], "utf8"));
    const wanted = ["gpu/stream-16384", "gpu/bare-gelu", "gpu/link", "gpu/bare-grouped", "cluster/gpu-tiny"];
    const found = results.filter(({ value }) => value > 0).map(({ id }) => id);
    if (machine.gpu !== "fake device" || `${found}` !== `${wanted}`) throw new Error(JSON.stringify({ machine, results }));
    if (results.at(-1).details.device !== "fake device") throw new Error(JSON.stringify(results.at(-1)));
  ' "$scratch/figures/gpu.json"
  grep -q '</svg>' "$scratch/figures/gpu-timeline.svg"
}

names_what_is_left_out() {
  local expected
  expected="clocks, power and the PCIe link, no nvidia-smi
torch's figures, in a trial
compute-sanitizer, not on the PATH nor in a toolkit
cluster-tests, no jest"
  diff <(echo "$expected") <(sed -n 's/^== left out: //p' "$scratch/figures/gpu-check.log")
}

misses_no_wait() {
  local log=$scratch/figures/gpu-check.log
  [ -s "$log" ] && ! grep '^fake_cuda:' "$log"
}

keeps_figures_of_a_benchmark_cut_short() {
  # It dies of what nobody reads.
  there env LD_LIBRARY_PATH="$wheel" gpu-bundle/bin/gpu_bench --trial --json "$scratch/short.json" --timeline "$scratch/short.svg" |
    head -n 1 || true
  node -e 'if (JSON.parse(require("node:fs").readFileSync(process.argv[1])).results.length === 0) process.exit(1)' "$scratch/short.json"
}

fails_when_the_time_is_up() {
  if there env SWITCHYARD_GPU_CHECK_SECONDS=0 gpu-bundle/scripts/gpu-check.sh --trial late device-tests; then return 1; fi
  grep '^gpu-check: failed: device-tests' "$scratch/late/gpu-check.log"
}

fails_where_a_chosen_step_cannot_run() {
  if there env SWITCHYARD_GPU_CHECK_SECONDS=009 gpu-bundle/scripts/gpu-check.sh --trial chosen cluster-tests; then return 1; fi
  grep '^gpu-check: failed: cluster-tests, left out' "$scratch/chosen/gpu-check.log"
}

# Runs the check with wrong arguments; it must end with this status, and say this.
refused() {
  local status=$1 said=$2 got=0
  shift 2
  there "$@" >"$scratch/said" 2>&1 || got=$?
  cat "$scratch/said"
  [ "$got" -eq "$status" ] && grep -qF -e "$said" "$scratch/said"
}
refuses_what_makes_no_sense() {
  refused 2 'benchmrk is no step' gpu-bundle/scripts/gpu-check.sh wrong benchmrk
  refused 2 'usage:' gpu-bundle/scripts/gpu-check.sh --help
  refused 2 'SECONDS is soon' env SWITCHYARD_GPU_CHECK_SECONDS=soon gpu-bundle/scripts/gpu-check.sh wrong
  if [ -e "$scratch/wrong" ]; then return 1; fi
}

keeps_earlier_figures_apart() {
  mkdir "$scratch/again"
  echo '{ "machine": {}, "results": [] }' >"$scratch/again/gpu.json"
  # The benchmark fails before its first figure.
  refused 1 'gpu-check: failed: benchmark' env SWITCHYARD_GPU_CHECK_SECONDS=0 gpu-bundle/scripts/gpu-check.sh --trial again benchmark
  [ -e "$scratch/again/gpu-before.json" ] && [ ! -e "$scratch/again/gpu.json" ]
}

builds_whatever_steps_are_chosen() {
  # A machine with a toolkit, on which the programs of the bundle do not run.
  mkdir "$scratch/sources" "$scratch/toolkit"
  cp -r "$scratch/gpu-bundle/scripts" "$scratch/sources"
  for command in nvidia-smi nvcc cmake; do
    printf '#!/bin/sh\nexit 1\n' >"$scratch/toolkit/$command"
    chmod +x "$scratch/toolkit/$command"
  done
  refused 1 '== configure: FAILED' env PATH="$scratch/commands:$scratch/toolkit" sources/scripts/gpu-check.sh built benchmark
}

fails_without_a_device() {
  rm -r "$scratch/site-packages"
  if there gpu-bundle/scripts/gpu-check.sh --trial none; then return 1; fi
  grep 'libcublasLt.so.13' "$scratch/none/gpu-check.log"
}

check 'the bundle is small and unpacks with tar and gzip' pack
check 'every step passes' run_all
check 'every figure is in the report' leaves_figures
check 'what is missing is named' names_what_is_left_out
check 'the fake device saw no wait missing' misses_no_wait
check 'a benchmark that is cut short leaves what it knew' keeps_figures_of_a_benchmark_cut_short
check 'a step without time left fails the run' fails_when_the_time_is_up
check 'a chosen step that cannot run fails the run' fails_where_a_chosen_step_cannot_run
check 'wrong arguments are refused at once' refuses_what_makes_no_sense
check 'figures of an earlier run are kept apart' keeps_earlier_figures_apart
check 'what the chosen steps need is built' builds_whatever_steps_are_chosen
check 'without cuBLASLt it says so' fails_without_a_device
count_checks
