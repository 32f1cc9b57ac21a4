#!/usr/bin/env bash
# Any checkpoint, released or own, to one table of scores, with the published number beside.
#
#   bash scripts/evaluate.sh NAME|FILE DATASET DATA [OUT]
#
#          NAME: of a released checkpoint (bash scripts/download_checkpoints.sh list), fetched before. FILE: any checkpoint.
#          DATASET: voc12, coco14 or folder (docs/data.md). OUT: default runs/evaluate/NAME, of a FILE its name without
#          suffix, below the folder where this is run.
# Needs    the packages (installed on first use, scripts/env.sh). Without masks of the list: label maps, no scores.
# Writes   evaluation.md and evaluation.json in OUT, and label maps and scores of every row (docs/formats.md):
#            stage 2  OUT/ROW: one scale; six with mirrors; and CRF; each for the last decoder block and for both fused
#            stage 1  OUT/cams, OUT/threshold, OUT/masks; rows: CAM at the published and at its best threshold, with CRF
#            GETAM    OUT/ROW: squares of three sizes, without and with CRF (its published test)
# Resumes  Run the same line again: every step continues or keeps what it finished.
# Expect   the column "published" of the table, for a released NAME on the published list; not measured here:
#            stage 2, the published test, DeiT-S / DINOv2-S / ViT-S / EVA-02-S
#              voc12 val 74.0 / 75.8 / 78.4 / 78.5, coco14 val 46.9 / 48.9 / 50.3 / 51.1
#            GETAM, hybrid / ViT-B / DeiT-B / DeiT-B distilled: voc12 val 71.7 / 68.1 / 66.0 / 70.7, coco14 val 36.4 (hybrid)
#            stage 1, CAM + CRF, DeiT-S: voc12 train 69.4, coco14 42.6 (1,250 pictures of train)
# Time     voc12, coco14: not measured here. Of CRF, two rows of stage 2, measured: 0.55 s a picture of 500x375 with 21
#          classes, one CPU core, and less where fewer are present.
#
# Settings, by environment variable:
#   BACKBONE            for a FILE whose tensors fit several: DeiT-S and ViT-S share every shape
#   SPLIT               list of pictures; default: val for stage 2, the list on which CAMs are scored for stage 1
#   ROWS                stage 2: rows to make, such as "single_last multi_crf_fused"; default all six
#   GPUS=N              N processes for the network (torchrun), on N GPUs, or on the CPU
#   WORKERS             processes for CRF, writing and scoring
#   OVERWRITE=1         do anew what holds results of other settings: those are deleted
#   VOC_MASKS           voc12: true masks, SegmentationClassAug (default, as published) or SegmentationClass
#   EVALUATE_OPTIONS    further options of segmentation.evaluate; CAM_OPTIONS, MASK_OPTIONS: of weaktr.generate_cam,
#                       make_masks; PREDICT_OPTIONS: of segmentation.getam.predict
set -euo pipefail

usage() {
    echo "error: $1; usage: bash scripts/evaluate.sh NAME|FILE voc12|coco14|folder DATA [OUT]" >&2
    exit 2
}
[ $# -eq 3 ] || [ $# -eq 4 ] || usage "3 or 4 arguments are needed, $# were given"
checkpoint=$1 dataset=$2 data=$3
case $dataset in
    voc12 | coco14 | folder) ;;
    *) usage "unknown data set $dataset" ;;
esac
name=${checkpoint##*/}
out=${4:-runs/evaluate/${name%.*}}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
found=$("$PYTHON" - "$checkpoint" <<'PYTHON'
import sys
from wsss.checkpoint import checkpoint_kind, load_checkpoint, unwrap_state
from wsss.errors import UserError
from wsss.released import find_released
try:
    path, _ = find_released(sys.argv[1])
    print(checkpoint_kind(unwrap_state(load_checkpoint(path), path), path), path)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
PYTHON
)
read -r kind file <<<"$found"
written() { ls -i "$out/evaluation.md" 2>/dev/null || true; }  # another file whenever it is written
before=$(written)
backbone=(${BACKBONE:+--backbone "$BACKBONE"})

case $kind in
    segmentation)
        run_step all "scores of $checkpoint" "$out" segmentation.evaluate --checkpoint "$checkpoint" \
            ${SPLIT:+--split "$SPLIT"} ${backbone[@]+"${backbone[@]}"} ${ROWS:+--rows $ROWS} ${workers[@]+"${workers[@]}"} \
            ${EVALUATE_OPTIONS:-}
        ;;
    weaktr)
        split=${SPLIT:-$scored_split}
        folder=$(basename "$split" .txt)
        run_step all "CAMs of $split" "$out/cams/$folder" weaktr.generate_cam --checkpoint "$file" --split "$split" --compact \
            ${backbone[@]+"${backbone[@]}"} ${CAM_OPTIONS:-}
        run_step one "thresholds, on $split" "$out/threshold" weaktr.search_threshold --cam-dir "$out/cams/$folder" \
            --split "$split" --select published ${workers[@]+"${workers[@]}"}
        run_step one "pseudo-masks of $split at the published threshold" "$out/masks/$folder" weaktr.make_masks \
            --cam-dir "$out/cams/$folder" --split "$split" --threshold-file "$out/threshold/threshold.json" \
            ${workers[@]+"${workers[@]}"} ${MASK_OPTIONS:-}
        run_step one "scores of $checkpoint" "$out" weaktr.evaluate --checkpoint "$checkpoint" --split "$split" \
            --cam-dir "$out/cams/$folder" --threshold-file "$out/threshold/threshold.json" --pred-dir "$out/masks/$folder" \
            ${workers[@]+"${workers[@]}"}
        ;;
    getam)
        split=${SPLIT:-$val_split}
        for row in squares squares_crf; do
            [ "$row" = squares ] && crf=() || crf=(--crf)
            run_step all "prediction of $split, $row" "$out/$row" segmentation.getam.predict --checkpoint "$checkpoint" \
                --split "$split" ${backbone[@]+"${backbone[@]}"} ${crf[@]+"${crf[@]}"} ${workers[@]+"${workers[@]}"} \
                ${PREDICT_OPTIONS:-}
        done
        run_step one "scores of $checkpoint" "$out" segmentation.getam.evaluate --checkpoint "$checkpoint" --split "$split" \
            --pred-dir "$out/squares" --crf-dir "$out/squares_crf"
        ;;
esac
[ "$NODE" -eq 0 ] || exit 0
[ "$(written)" != "$before" ] || sed -n '/^|/,$p' "$out/evaluation.md"  # done before: the table all the same
printf '\n%s\n' "done: the table is in $out/evaluation.md"
