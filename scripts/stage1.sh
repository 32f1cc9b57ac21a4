#!/usr/bin/env bash
# Stage 1 from start to scored pseudo-masks: train WeakTr, generate CAMs, find the threshold, make masks, score.
#
#   bash scripts/stage1.sh DATASET DATA OUT        DATASET: voc12, coco14 or folder (docs/data.md)
#
# Needs    the packages (installed on first use, scripts/env.sh), and ImageNet weights: a file named like the
#          backbone in the folder PRETRAINED or in checkpoints/imagenet, or PRETRAINED_WEIGHTS=FILE, or the network,
#          where timm's hub delivers the published ones. Masks are needed only for scores and for the threshold.
# Writes   OUT/train, OUT/cams/SPLIT, OUT/threshold, OUT/masks/SPLIT with its score, and OUT/score/SPLIT where the
#          published score is that of a part of the training list (docs/formats.md).
# Resumes  Run the same line again: steps that are done are left out, the one that was stopped continues.
# Expect   mIoU of the pseudo-masks (CAM + CRF) on the training pictures that have masks:
#            voc12   69.4 published (train, 1,464 pictures); not measured here
#            coco14  42.6 published (1,250 pictures of train, the published choice is not known); not measured here
#            folder  voc-animals: about 55 measured (CAM + CRF, a quarter of train, mean of two seeds; docs/results.md)
# Time     voc12, coco14: not measured here. folder, voc-animals, one CPU core: training 36 minutes, CAMs 30, CRF 8.
#
# Settings, by environment variable (defaults in the table below):
#   PRETRAINED_WEIGHTS  file, timm name, "hub", or "none" to start from nothing
#   BACKBONE EPOCHS     as weaktr.train's options
#   SPLITS              lists that get CAMs and masks, such as "train val"
#   GPUS=N              N processes for training and CAM generation (torchrun), on N GPUs, or on the CPU; 64 pictures
#                       a step must divide by N
#   NODES NODE MASTER   several machines (docs/training.md)
#   WORKERS             processes for reading pictures, CRF and scoring
#   VOC_MASKS           voc12: SegmentationClass for VOC's own masks in place of SegmentationClassAug
#   OVERWRITE=1         do anew what holds results of other settings: those are deleted
#   PANELS=N            small pictures of the method's steps (docs/formats.md) of N pictures of the validation list,
#                       or of the training list where the former gets no masks; default 0
#   TRAIN_OPTIONS CAM_OPTIONS MASK_OPTIONS   further options of weaktr.train, generate_cam, make_masks
set -euo pipefail

usage() { echo "error: $1; usage: bash scripts/stage1.sh voc12|coco14|folder DATA OUT" >&2; exit 2; }
[ $# -eq 3 ] || usage "3 arguments are needed, $# were given"
dataset=$1 data=$2 out=$3

# Published settings are the commands' own defaults; the table holds what differs.
cam_options="--overlays 12" splits="all there are"
case $dataset in
    #        network                          learning rate, length       further options
    voc12)   backbone=deit_small_patch16_224  epochs=60 train_options="" ;;
    coco14)  backbone=deit_small_patch16_224  epochs=60 train_options=""
             cam_options+=" --compact" splits="train" ;;  # full-size maps of 82,081 pictures are 150 GB
    folder)  backbone=deit_tiny_patch16_224   epochs=20
             train_options="--batch-size 16 --lr 6.4e-3 --schedule step --warmup-epochs 1 --reduction 4"
             train_options+=" --select last --eval-every 10 --cam-stride 4" ;;  # small data, chosen on voc-animals
    *)       usage "unknown data set $dataset" ;;
esac
backbone=${BACKBONE:-$backbone} epochs=${EPOCHS:-$epochs} splits=${SPLITS:-$splits}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ "$splits" = "all there are" ] && splits="$train_split ${val_split#-}"
[[ " $splits " == *" $val_split "* ]] && shown_split=$val_split || shown_split=$train_split
panels() { [ "$1" = "$shown_split" ] && echo "${PANELS:-0}" || echo 0; }  # panels SPLIT: how many it gets

run_step all "training on $train_split" "$out/train" weaktr.train --train-split "$train_split" --backbone "$backbone" \
    --pretrained "$(starting_weights "$backbone")" --epochs "$epochs" $train_options ${workers[@]+"${workers[@]}"} ${TRAIN_OPTIONS:-}

for split in $splits; do
    run_step all "CAMs of $split" "$out/cams/$split" weaktr.generate_cam --checkpoint "$out/train/best.pth" \
        --split "$split" --panels "$(panels "$split")" $cam_options ${CAM_OPTIONS:-}
done

run_step one "threshold, on $scored_split" "$out/threshold" weaktr.search_threshold --cam-dir "$out/cams/$train_split" \
    --split "$scored_split" ${workers[@]+"${workers[@]}"}

for split in $splits; do  # scored by the way where every picture of the list has a mask
    run_step one "pseudo-masks of $split" "$out/masks/$split" weaktr.make_masks --cam-dir "$out/cams/$split" \
        --split "$split" --threshold-file "$out/threshold/threshold.json" --panels "$(panels "$split")" \
        ${workers[@]+"${workers[@]}"} ${MASK_OPTIONS:-}
done

# The published score is that of a part of the training list.
if [ "$scored_split" != "$train_split" ] && has_masks "$scored_split" && [[ " $splits " == *" $train_split "* ]]; then
    run_step one "score of $scored_split" "$out/score/$scored_split" wsss.score --pred-dir "$out/masks/$train_split" \
        --split "$scored_split" ${workers[@]+"${workers[@]}"}
fi
[ "$NODE" -ne 0 ] || printf '\n%s\n' "done: pseudo-masks in $out/masks"
