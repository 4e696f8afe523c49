#!/usr/bin/env bash
# Correctness of every kernel on the GPU, then the benchmark: within ten minutes, with a short table last.
#
#     benchmarks/gpu_check.sh
#
# Works from a plain checkout; needs Python with torch, triton, transformers and numpy, and nothing installed or fetched.
# Results go to $OUT if it is set, else to benchmarks/results. PYTHON names the interpreter (default: python3).
# Exit status: 0 all kernels correct and all measured, 1 some kernel wrong or not checked, 2 only the benchmark failed.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=.:kernels:train HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
python=${PYTHON:-python3}
results=${OUT:-benchmarks/results}
mkdir -p "$results"
limit=${GPU_CHECK_SECONDS:-570}
started=$(mktemp)
trap 'rm -f "$started"' EXIT

# Half of the time at most, however long compiling takes; the benchmark has what is left.
"$python" benchmarks/gpu_correctness.py --seconds $((limit / 2)) --out "$results/gpu_correctness.csv"
correct=$?
"$python" benchmarks/gpu.py --seconds $((limit - SECONDS - 10)) --out "$results/gpu.csv"
measured=$?

echo
echo "== after ${SECONDS} s, in $results:"
# Only what this run wrote: results of an earlier one may lie there.
if [ "$results/gpu_correctness.csv" -nt "$started" ]; then
  "$python" benchmarks/gpu_correctness.py --show --out "$results/gpu_correctness.csv"
fi
if [ "$results/gpu.csv" -nt "$started" ]; then
  "$python" benchmarks/gpu.py --show-last --out "$results/gpu.csv"
fi
echo "correctness: exit status $correct; benchmark: exit status $measured"
[ $correct -eq 0 ] || exit 1
[ $measured -eq 0 ] || exit 2
