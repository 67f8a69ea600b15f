#!/usr/bin/env bash
# Trains, measures and benchmarks on a GPU within minutes. Run it in the project's root:
#   bash scripts/gpu_campaign.sh OUT check     5 min: doctor, the tests that need a GPU, a short training of a VAE
#   bash scripts/gpu_campaign.sh OUT train     MINUTES (8): the three stages on Oxford 102 Flowers, samples, metric card
#   bash scripts/gpu_campaign.sh OUT bench     5 min: overhead, share of peak, compiled and CUDA graphs against eager, samples against diffusers
#   bash scripts/gpu_campaign.sh OUT all
# Every part goes on past the failure of another. OUT gets log.txt, summary.md, the pictures, the card and the metrics.
# From the environment: DATA, the folder of Oxford 102 Flowers, which is downloaded if it is not given; RECIPE, gpu or laptop;
# PACK, the folder that scripts/gpu_pack.sh has filled, for a machine without a network.
set -u
[ $# -ge 1 ] || { sed -n '2,9s/^# \?//p' "$0"; exit 2; }
OUT=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
PART=${2:-all}
case $PART in check | train | bench | all) ;; *) echo "$PART: choose from check, train, bench and all"; exit 2 ;; esac
WORK=${WORK:-${TMPDIR:-/tmp}/gpu_campaign}; mkdir -p "$WORK"
MINUTES=${MINUTES:-8} RECIPE=${RECIPE:-gpu} PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-1} # what the time limits are multiplied by, for a slower machine
STEPS=${STEPS:-10} # of each round of the benchmarks
SAMPLES=${SAMPLES:-256} # in the benchmark of sampling
for number in "$MINUTES" "$LIMIT" "$STEPS" "$SAMPLES"; do
    case $number in '' | *[!0-9]*) echo "MINUTES, LIMIT, STEPS and SAMPLES are whole numbers"; exit 2 ;; esac
done
[ "$PART" != all ] && [ "$PART" != check ] || : >"$OUT/log.txt" # the first part begins a new log
export PYTHONPATH=$PWD:${PYTHONPATH:-} PYTHONUNBUFFERED=1
RUNS=$WORK/flowers

say() { echo "== $(date +%T) $*" | tee -a "$OUT/log.txt"; }
run() { # SECONDS COMMAND...: what it prints goes to the log, and so does its failure
    local limit=$(($1 * LIMIT)) status; shift
    say "$@"
    timeout -k 10 "$limit" "$@" >>"$OUT/log.txt" 2>&1; status=$?
    say "-> exit $status"
}
wants() { [ "$PART" = "$1" ] || [ "$PART" = all ]; }

if [ -n "${PACK:-}" ]; then
    run 300 $PYTHON -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$WORK/site" "$PACK"/wheels/*.whl
    export PYTHONPATH=$PYTHONPATH:$WORK/site
    [ -d "$WORK/flowers102_64px" ] || run 60 tar -C "$WORK" -xf "$PACK/flowers.tar"
    DATA=${DATA:-$WORK/flowers102_64px}
fi
PLACES=("paths.cache_dir=$WORK/cache")
[ -z "${DATA:-}" ] || PLACES+=("data.root=$DATA")

if wants check; then
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader >>"$OUT/log.txt" 2>&1
    run 60 $PYTHON -m flowergen.doctor
    # these files alone: others import packages that a machine with a GPU may lack
    run 300 $PYTHON -m pytest -q -p no:cacheprovider -o addopts=--strict-markers -m gpu tests/test_gpu.py tests/data/test_resident.py
    rm -rf "$WORK/check"
    run 60 $PYTHON -m flowergen.train model=vae data=flowers102 "${PLACES[@]}" trainer.max_epochs=1 trainer.limit_train_batches=20 hydra.run.dir="$WORK/check"
fi
if wants train; then
    run $((60 * MINUTES + 180)) $PYTHON scripts/reproduce.py recipe="$RECIPE" minutes="$MINUTES" "${PLACES[@]}" out="$RUNS"
    for stage in autoencoder diffusion decoder; do cp "$RUNS/$stage/metrics.csv" "$OUT/$stage.csv"; done
    cp "$RUNS"/decoder/samples/*/grid.png "$OUT/grid.png"
    cp "$RUNS"/decoder/evaluation/*/card.* "$OUT/"
    cp "$(ls -v "$RUNS"/autoencoder/images/reconstruction_* | tail -1)" "$OUT/reconstruction.png"
fi 2>>"$OUT/log.txt"
if wants bench; then
    run 120 $PYTHON scripts/benchmark_overhead.py rounds=3 steps="$STEPS"
    ARMS="arms=eager,bf16,compiled_bf16,compiled_bf16_graphs rounds=3 steps=$STEPS"
    run 200 $PYTHON scripts/benchmark_train.py experiment="flowers_${RECIPE}_vae_gan" "${PLACES[@]}" $ARMS
    if [ -d "$RUNS/autoencoder" ]; then
        run 200 $PYTHON scripts/benchmark_train.py experiment="flowers_${RECIPE}_ldm" "${PLACES[@]}" autoencoder="$RUNS/autoencoder" $ARMS
    fi
    if [ -d "$RUNS/diffusion" ]; then run 120 $PYTHON scripts/benchmark_sample.py run="$RUNS/diffusion" num="$SAMPLES" rounds=3; fi
fi

{
    printf '| | |\n|---|---|\n'
    echo "| GPU | $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1) |"
    echo "| commit | $(git rev-parse --short HEAD 2>/dev/null) |"
    for stage in autoencoder diffusion decoder; do
        rates=$(grep -oh '[0-9,]* images/s  ETA' "$RUNS/$stage/train.log" 2>/dev/null | tr -d , | sort -n | awk '{a[NR]=$1} END {if (NR) print a[1] " to " a[NR]}')
        echo "| $stage, images/s in training | $rates |"
    done
    grep -hE '^\| (Fréchet|of their|precision|recall)' "$OUT/card.md" 2>/dev/null
    grep -hE 'microseconds a step|  the (whole|sum)|px, batches of|^  (eager|channels_last|compiled|bf16|no_cache|Lightning|flowergen|scheduler|diffusers).* of |GFLOP a picture|share of|pictures of .* steps|peak memory' "$OUT/log.txt" 2>/dev/null | sed 's/^ */| /; s/$/ | |/'
    echo "| tests on the GPU | $(grep -hE '^[0-9]+ (passed|failed|skipped).* in ' "$OUT/log.txt" | tail -1) |"
    echo "| failures | $(grep -c -- '-> exit [1-9]' "$OUT/log.txt") |"
} >"$OUT/summary.md"
cat "$OUT/summary.md"
