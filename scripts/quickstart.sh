#!/usr/bin/env bash
# Quick start: both stages on pictures that the project draws, beside a baseline, with a page of the results.
# Neither a GPU nor a download of data or weights is needed.
#
#   bash scripts/quickstart.sh [--short] [OUT]     OUT: a folder; default data/quickstart in the project
#
#          --short does the same with few pictures and steps, to see that everything runs here; its numbers mean
#          nothing. Its default OUT is data/quickstart_short.
# Needs    the packages (installed on first use, scripts/env.sh), and the weights that come with the project,
#          checkpoints/vit_micro_patch8_96.safetensors.
# Writes   OUT/data, OUT/stage1 and OUT/stage2 (as scripts/stage1.sh and stage2.sh), OUT/baseline/{train,train_crf,val}
#          (hue and saturation instead of a network), OUT/report.html (docs/formats.md).
# Resumes  Run the same line again: every step continues or keeps what it finished.
# Expect   a table of mIoU at the end, measured with seed 504: CAMs 69.0, pseudo-masks 72.3, segmenter 67.7 and 67.5;
#          by hue and saturation 44.0, 44.4, 39.2 (docs/results.md). Other processors round otherwise.
# Time     measured on 2 CPU cores (AMD EPYC, Zen 4): 5 minutes, after the installation; 0.9 GB of memory.
#
# Settings, by environment variable: WORKERS and GPUS, as for the stages; SEED of the trainings (504);
# PRETRAINED_WEIGHTS, in place of the project's own ("none" to start from nothing).
set -euo pipefail

# What is trained; further options are those of scripts/stage1.sh and stage2.sh for a "folder". An option given
# twice counts the last time.
backbone=vit_micro_patch8_96
name=quickstart
data_options="--train 400 --val 100"
seed=${SEED:-504}  # of both trainings
epochs=16
stage1_options="--batch-size 8 --lr 19.2e-3 --new-lr-scale 10 --token-lr-scale 10 --augmentation geometric"
stage1_options+=" --reduction 2 --feat-reduction 4 --eval-every 8"
stage2_options="--epochs 20 --batch-size 8 --short-side 144 --crop-size 96 --lr 1e-3 --encoder-lr-scale 0.2"
stage2_options+=" --clip-start 0.3 --no-photometric --eval-every 250"
panels=12
amp=off  # on a CPU, bfloat16 is faster only where the processor has it
grep -qsw -e avx512_bf16 -e amx_bf16 /proc/cpuinfo && amp=bfloat16
short() {
    name=quickstart_short
    data_options="--train 48 --val 12"
    epochs=2
    stage2_options+=" --iterations 6"
}

usage="usage: bash scripts/quickstart.sh [--short] [OUT]"
out=
for word in "$@"; do
    case $word in
        --short) short ;;
        -h | --help) echo "$usage"; exit ;;
        -* | "") echo "error: unknown option '$word'; $usage" >&2; exit 2 ;;
        *) [ -z "$out" ] || { echo "error: one OUT is enough, '$out' and '$word' were given; $usage" >&2; exit 2; }
           out=$word ;;
    esac
done

scripts=$(dirname "${BASH_SOURCE[0]}")
root=$(cd "$scripts/.." && pwd)
out=${out:-$root/data/$name}
weights=${PRETRAINED_WEIGHTS:-$root/checkpoints/$backbone.safetensors}
if [ -z "${PRETRAINED_WEIGHTS:-}" ] && [ ! -f "$weights" ]; then
    echo "error: $weights: no such file; it comes with the project, fetch that again" >&2
    exit 1
fi
source "$scripts/env.sh"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
if command -v flock >/dev/null; then  # what this script starts holds the lock too
    exec 9>"$out/.lock"
    flock -n 9 || { echo "error: $out: a quick start is running there; wait for it, or stop it" >&2; exit 1; }
fi

# Every step runs in a process group of its own, so that all it started ends when this script does.
group=
end() {
    trap '' INT TERM HUP
    for group in $group $(jobs -p); do
        kill -TERM -- "-$group" 2>/dev/null || continue
        for _ in {1..100}; do
            kill -0 -- "-$group" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL -- "-$group" 2>/dev/null || true
    done
}
stop() { echo; echo "stopped; the same line continues" >&2; exit "$1"; }
trap end EXIT
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP
run() {
    set -m
    "$@" </dev/null &
    set +m
    group=$!
    wait "$group" || failed $?
    group=
}
failed() {
    echo "stopped at a step; mend what it says and run the same line again, or delete $out to start afresh"
    exit "$1"
}
step() { echo; echo "== $*"; }
# The stages take their settings from the environment: only those that are meant.
stage() {
    run env -u CAM_OPTIONS -u MASK_OPTIONS -u PREDICT_OPTIONS WEAKTR_PYTHON="$PYTHON" \
        PRETRAINED_WEIGHTS="$weights" BACKBONE="$backbone" EPOCHS="$epochs" PANELS="$panels" "$@"
}
workers=(${WORKERS:+--workers "$WORKERS"})
common="--seed $seed --amp $amp"

step "pictures"
run "$PYTHON" -m wsss.shapes --output-dir "$out/data" $data_options
stage SPLITS="train val" TRAIN_OPTIONS="$stage1_options $common" bash "$scripts/stage1.sh" folder "$out/data" "$out/stage1"
stage SPLITS=val TRAIN_OPTIONS="$stage2_options $common" \
    bash "$scripts/stage2.sh" folder "$out/data" "$out/stage1/masks/train" "$out/stage2"

step "baseline: hue and saturation"
run "$PYTHON" -m wsss.shapes_baseline --data-path "$out/data" --split train --image-labels \
    --output-dir "$out/baseline/train" ${workers[@]+"${workers[@]}"}
run "$PYTHON" -m wsss.shapes_baseline --data-path "$out/data" --split train --image-labels --crf \
    --output-dir "$out/baseline/train_crf" ${workers[@]+"${workers[@]}"}
run "$PYTHON" -m wsss.shapes_baseline --data-path "$out/data" --split val --output-dir "$out/baseline/val" \
    ${workers[@]+"${workers[@]}"}

step "report"
run "$PYTHON" -m wsss.report --run "$out"

step "mIoU, %"
"$PYTHON" - "$out" <<'PYTHON'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
rows = (  # what, list, file, fields, baseline with the same help
    ("CAMs, masks before CRF", "train", "stage1/masks/train/score.json", ["before_crf", "mean_iou"], "train"),
    ("pseudo-masks after CRF", "train", "stage1/masks/train/score.json", ["mean_iou"], "train_crf"),
    ("segmenter, one scale", "val", "stage2/single/val/score.json", ["mean_iou"], "val"),
    ("segmenter, published test", "val", "stage2/multi_crf/val/score.json", ["mean_iou"], "val"),
)
print(f"{'':<34}{'WeakTr':>8}{'hue and saturation':>20}")
for what, split, file, fields, baseline in rows:
    values = []
    for path, keys in ((out / file, fields), (out / "baseline" / baseline / "score.json", ["mean_iou"])):
        value = json.loads(path.read_text(encoding="utf8"))
        for key in keys:
            value = value[key]
        values.append(100 * value)
    print(f"{what + ' (' + split + ')':<34}{values[0]:>8.1f}{values[1]:>20.1f}")
PYTHON
echo
echo "done in $SECONDS s"
echo "page: $out/report.html; pictures: folders named panels and overlays in $out/stage1 and $out/stage2"
