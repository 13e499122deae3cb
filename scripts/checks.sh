# Sourced by the scripts that check things one after the other: `check` counts, and the last line says how many passed.
# They have a folder $scratch.
passed=0 failed=0

# Runs the rest of its arguments as the check named by the first.
check() {
  local name=$1 status
  shift
  # In a condition a failure inside the check would not end it.
  set +e
  (set -e && "$@") >"$scratch/output" 2>&1
  status=$?
  set -e
  if [[ $status -eq 0 ]]; then
    passed=$((passed + 1))
    echo "passed  $name"
  else
    failed=$((failed + 1))
    echo "FAILED  $name"
    sed 's/^/        /' "$scratch/output"
  fi
}

# Says the count; fails if something failed.
count_checks() {
  echo "$passed passed, $failed failed"
  [[ $failed -eq 0 ]]
}
