#!/usr/bin/env bash
# One slice of a GPU's time: processes on the queue, then what they left in one archive.
#
#     slice.sh DATA OUT MINUTES PROCESSES [run.py's arguments: tables, --seeds 5, ...]
#
# The archive holds records, curves, bounds, checkpoints and the snapshots of ensembles: unpack it in the repository's root before the next slice
# (tar xzf experiments.tgz), and the queue goes on from there, here or elsewhere.
set -euo pipefail
cd "$(dirname "$0")/../.."
data=$1 out=$2 minutes=$3 processes=$4
shift 4
mkdir -p "$out"
workers=()
for number in $(seq "$processes"); do
    python experiments/run.py "$@" --data-dir "$data" --minutes "$minutes" --checkpoint-seconds 20 \
        2>"$out/worker-$number.txt" &
    workers+=($!)
done
for worker in "${workers[@]}"; do
    wait "$worker" || echo "a worker ended with $?, see $out/worker-*.txt" >&2
done
find experiments \( -name 'records.jsonl' -o -name 'curve*.json' -o -name 'bounds-*.json' -o -path '*/checkpoints/*' \
    -o -path '*/weights/runs/snapshots/*' \) \
    ! -name '.*' -type f | tar czf "$out/experiments.tgz" -T -
tail -qn 3 "$out"/worker-*.txt
