#!/usr/bin/env bash
# Both stages with the published settings: from pictures with labels to a segmenter and its published test.
#
#   bash scripts/all.sh DATASET DATA OUT          DATASET: voc12, coco14 or folder (docs/data.md)
#
# Needs    what scripts/stage1.sh and stage2.sh need. True masks are needed only for scores.
# Writes   OUT/stage1 and OUT/stage2, as scripts/stage1.sh and stage2.sh; stage 2 is trained on OUT/stage1/masks.
# Resumes  Run the same line again: steps that are done are left out, the one that was stopped continues. A step is done
#          when its folder says that it ended, with these settings, on what the steps before it have written: delete
#          a step's folder, and it and all that follow are run again.
# Expect   a table of mIoU at the end, for the DeiT-S of both stages:
#            voc12   pseudo-masks 69.4, segmenter 74.0 published; not measured here
#            coco14  pseudo-masks 42.6, segmenter 46.9 published; not measured here
#            folder  voc-animals: not measured in one go; both stages apart: docs/results.md
# Time     voc12, coco14: not measured here. folder, voc-animals, one CPU core: the stages' times add up to 2 hours.
#
# Settings, by environment variable: those of stage1.sh and stage2.sh, for both; STAGE1_X and STAGE2_X in place of X
# for one stage, where X is BACKBONE, EPOCHS, SPLITS, PANELS, PRETRAINED_WEIGHTS or TRAIN_OPTIONS. So for the best
# published results: STAGE2_BACKBONE=vit_small_patch16_384.
#   GPUS=8              processes (GPUS of each machine); stage 2 trains with 4 of them, as its batch has 4 pictures
#   NODES NODE MASTER   several machines (docs/training.md): NODES=2 NODE=0 MASTER=node0:29500 on one, NODE=1 on the other
#   OVERWRITE=1         do anew what holds results of other settings: those are deleted
set -euo pipefail

usage() { echo "error: $1; usage: bash scripts/all.sh voc12|coco14|folder DATA OUT" >&2; exit 2; }
[ $# -eq 3 ] || usage "3 arguments are needed, $# were given"
dataset=$1 data=$2 out=$3
case $dataset in
    voc12 | coco14 | folder) ;;
    *) usage "unknown data set $dataset" ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

stage() (  # stage N ARGUMENTS...: in a shell of its own, with its own settings; its steps are numbered from N000
    for name in BACKBONE EPOCHS SPLITS PANELS PRETRAINED_WEIGHTS TRAIN_OPTIONS; do
        own=STAGE$1_$name
        [ -z "${!own:-}" ] || export "$name=${!own}"
    done
    export WEAKTR_STEP=${1}000 WEAKTR_LISTS=$lists WEAKTR_PYTHON=$PYTHON
    bash "$scripts/stage$1.sh" "${@:2}" && exit
    status=$?
    echo "stopped in stage $1; mend what it says (OVERWRITE=1 gives --overwrite) and run the same line again" >&2
    exit "$status"
)
stage 1 "$dataset" "$data" "$out/stage1"
stage 2 "$dataset" "$data" "$out/stage1/masks/$train_split" "$out/stage2"

if [ "$NODE" -eq 0 ]; then
    printf '\n== result\n'
    "$PYTHON" "$scripts/summary.py" "$out"
fi
