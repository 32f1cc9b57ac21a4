#!/usr/bin/env bash
# WeakTr's CAMs beside gradient maps of the very same classifier: GETAM's, their unsquared form, Grad-CAM of attention.
#
#   bash scripts/compare_maps.sh DATASET DATA CHECKPOINT SPLIT OUT     CHECKPOINT: of weaktr.train; SPLIT: a list with masks
#
# Needs    the packages (installed on first use, scripts/env.sh) and masks of the list.
# Writes   OUT/cams/NAME, OUT/threshold/NAME (docs/formats.md).
# Resumes  Run the same line again: maps that are there are kept.
# Expect   mIoU of each kind of map at its own best threshold, chosen on the masks: measured, docs/results.md.
# Time     one CPU core, DeiT-Ti, 500x375: about 2 s a picture for all six kinds.
set -euo pipefail

usage() { echo "error: $1; usage: bash scripts/compare_maps.sh voc12|coco14|folder DATA CHECKPOINT SPLIT OUT" >&2; exit 2; }
[ $# -eq 5 ] || usage "5 arguments are needed, $# were given"
dataset=$1 data=$2 checkpoint=$3 split=$4 out=$5
case $dataset in
    voc12 | coco14 | folder) ;;
    *) usage "unknown data set $dataset" ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
for kind in fused coarse cross; do
    run_step one "WeakTr's CAMs, $kind" "$out/cams/$kind" weaktr.generate_cam --checkpoint "$checkpoint" --split "$split" \
        --attention "$kind"
done
"$PYTHON" "$scripts/compare_maps.py" --dataset "$dataset" --data-path "$data" --checkpoint "$checkpoint" --split "$split" \
    --output-dir "$out/cams" ${OVERWRITE:+--overwrite}
for kind in fused coarse cross getam unsquared grad_cam; do
    run_step one "score of $kind" "$out/threshold/$kind" weaktr.search_threshold --cam-dir "$out/cams/$kind" --split "$split" \
        --thresholds 0.01 0.7 0.01 --select best ${workers[@]+"${workers[@]}"}
done
