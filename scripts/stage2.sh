#!/usr/bin/env bash
# Stage 2: train a segmenter on masks, usually stage 1's pseudo-masks, predict, and score.
#
#   bash scripts/stage2.sh DATASET DATA MASKS OUT [BACKBONE]
#
#          DATASET: voc12, coco14 or folder (docs/data.md). MASKS: folder of <id>.png for the training list, or
#          "true" for the data set's own masks (the supervised bound). BACKBONE: a name of wsss/backbones.py.
# Needs    the packages (installed on first use, scripts/env.sh), and ImageNet weights: a file named like the
#          backbone in the folder PRETRAINED or in checkpoints/imagenet, or PRETRAINED_WEIGHTS=FILE, or the network,
#          where timm's hub delivers the published ones. True masks of the validation list are needed only for scores.
# Writes   OUT/train, OUT/single/SPLIT (one scale), OUT/multi_crf/SPLIT (the published test: six scales with mirrors,
#          both decoder blocks, CRF); docs/formats.md.
# Resumes  Run the same line again: steps that are done are left out, the one that was stopped continues.
# Expect   val mIoU of the published test, for DeiT-S / DINOv2-S / ViT-S / EVA-02-S:
#            voc12   74.0 / 75.8 / 78.4 / 78.5 published; not measured here
#            coco14  46.9 / 48.9 / 50.3 / 51.1 published; not measured here
#            folder  voc-animals, ViT-Ti, one scale: 69.4 measured (one seed; docs/results.md)
# Time     voc12, coco14: not measured here. folder, voc-animals, one CPU core: training 32 minutes, val at one scale 2.
#
# Settings, by environment variable (defaults in the table below):
#   PRETRAINED_WEIGHTS  file, timm name, "hub", or "none" to start from nothing
#   BACKBONE            as the fifth argument
#   SPLITS              lists to predict, such as "val train"
#   GPUS=N              N processes for training and prediction (torchrun), on N GPUs, or on the CPU; for training at
#                       most one for each picture of a batch, which are 4 in the published recipe
#   NODES NODE MASTER   several machines (docs/training.md)
#   WORKERS             processes for reading pictures, CRF and scoring
#   VOC_MASKS           voc12: SegmentationClass for VOC's own masks in place of SegmentationClassAug
#   OVERWRITE=1         do anew what holds results of other settings: those are deleted
#   PANELS=N            small pictures (docs/formats.md) of N pictures of each list that is predicted; default 0
#   TRAIN_OPTIONS       further options of segmentation.train, such as "--batch-size 8 --lr 2e-4" for 8 processes (not
#                       published)
#   PREDICT_OPTIONS     further options of both predictions, such as "--window-batch 32"
set -euo pipefail

usage() {
    echo "error: $1; usage: bash scripts/stage2.sh voc12|coco14|folder DATA MASKS OUT [BACKBONE]" >&2
    exit 2
}
[ $# -eq 4 ] || [ $# -eq 5 ] || usage "4 or 5 arguments are needed, $# were given"
dataset=$1 data=$2 masks=$3 out=$4

# Published settings are the commands' own defaults; the table holds what differs.
case $dataset in
    #        network                          further options
    voc12)   backbone=deit_small_patch16_224  train_options="" ;;
    coco14)  backbone=deit_small_patch16_224  train_options="--eval-every 20000" ;;  # 40,137 pictures each time
    folder)  backbone=vit_tiny_patch16_224    train_options="--epochs 12 --short-side 240 --crop-size 224"
             train_options+=" --optimizer adamw --lr 5e-4 --min-lr 1e-6 --clip-start 0.6" ;;  # small data: chosen on voc-animals
    *)       usage "unknown data set $dataset" ;;
esac
backbone=${5:-${BACKBONE:-$backbone}}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ "$val_split" = - ] && predicted=$train_split || predicted=$val_split
splits=${SPLITS:-$predicted}
mask_dir=(--mask-dir "$masks")
[ "$masks" = true ] && mask_dir=() || earlier=("$masks")  # of stage 1: made anew, it is trained anew

batch=4  # the command's default; a process without a picture would only wait
previous=
for word in $train_options ${TRAIN_OPTIONS:-}; do
    [ "$previous" != --batch-size ] || batch=$word
    [[ $word != --batch-size=* ]] || batch=${word#*=}
    previous=$word
done
[[ $batch =~ ^[1-9][0-9]{0,5}$ ]] || batch=$((GPUS * NODES))  # the command says what is wrong with it
[ "$((GPUS * NODES))" -le "$batch" ] \
    || printf '\n%s\n' "a batch of $batch feeds at most $batch processes in training; TRAIN_OPTIONS=\"--batch-size N\" feeds more"

run_step "$batch" "training on $train_split" "$out/train" segmentation.train --train-split "$train_split" ${mask_dir[@]+"${mask_dir[@]}"} \
    --backbone "$backbone" --pretrained "$(starting_weights "$backbone")" $train_options ${workers[@]+"${workers[@]}"} \
    ${TRAIN_OPTIONS:-}

predict() {  # predict TITLE FOLDER SPLIT OPTIONS...
    run_step all "$1" "$out/$2/$(basename "$3" .txt)" segmentation.predict --checkpoint "$out/train/last.pth" --split "$3" \
        --panels "${PANELS:-0}" ${workers[@]+"${workers[@]}"} "${@:4}" ${PREDICT_OPTIONS:-}
}
for split in $splits; do  # the last step's network, as published: nothing was chosen on masks
    predict "prediction of $split at one scale" single "$split" --overlays 12
    predict "prediction of $split, the published test" multi_crf "$split" --multi-scale --decoder-blocks fused --crf
done
[ "$NODE" -ne 0 ] || printf '\n%s\n' "done: label maps in $out/single and $out/multi_crf"
