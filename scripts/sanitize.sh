#!/usr/bin/env bash
# Builds the native tests with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer, and runs them.
#
#   scripts/sanitize.sh [--threads] [ctest arguments, for example: -R memory]
set -euo pipefail
cd "$(dirname "$0")/.."

build=native/build-sanitize sanitizers=both
if [ "${1:-}" = --threads ]; then
  build=native/build-sanitize-threads sanitizers=thread
  shift
fi
cmake -S native -B "$build" -G Ninja \
  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DSWITCHYARD_TESTS=ON -DSWITCHYARD_SANITIZE=$sanitizers >/dev/null
cmake --build "$build"

# The first finding ends the test that made it, with a stack.
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
# Tests of processes fork, and what UCX has left behind may have threads then.
export TSAN_OPTIONS=die_after_fork=0
ctest --test-dir "$build" --output-on-failure "$@"
