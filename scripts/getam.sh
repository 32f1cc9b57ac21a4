#!/usr/bin/env bash
# GETAM, the one-stage system: train it on image labels, predict, score; and its maps as CAM files, with their score.
#
#   bash scripts/getam.sh DATASET DATA OUT        DATASET: voc12, coco14 or folder (docs/data.md)
#
# Needs    the packages (installed on first use, scripts/env.sh), and ImageNet weights of the encoder, as
#          scripts/stage1.sh; for the published system saliency maps (SALIENCY). Masks are needed only for scores.
# Writes   OUT/train, OUT/test/SPLIT (the published test: squares of three sizes, CRF), OUT/cams/SPLIT, OUT/threshold
#          (docs/formats.md).
# Resumes  Run the same line again: steps that are done are left out, the one that was stopped continues.
# Expect   val mIoU of the published test, with saliency maps, for hybrid / ViT-B / DeiT-B / DeiT-B distilled:
#            voc12   71.7 / 68.1 / 66.0 / 70.7 published; not measured here
#            coco14  36.4 published (hybrid); not measured here
#            folder  voc-animals, DeiT-Ti, without saliency maps: 64.8 measured (one seed; docs/results.md)
# Time     voc12, coco14: not measured here. folder, voc-animals, DeiT-Ti, one busy CPU core: training an hour, val with CRF 6 minutes.
#
# Settings, by environment variable (defaults in the table below):
#   BACKBONE            encoder, a name of segmentation/getam/encoders.py
#   PRETRAINED_WEIGHTS  file, timm name, "hub", or "none" to start from nothing
#   SALIENCY=DIR        saliency maps, DIR/<id>.png, 255 salient; without, docs/getam.md says what is done
#   SPLITS              lists to predict, such as "val train"
#   CAMS=0              leave the maps of the training list out
#   GPUS NODES NODE MASTER WORKERS VOC_MASKS OVERWRITE   as scripts/stage2.sh
#   TRAIN_OPTIONS PREDICT_OPTIONS CAM_OPTIONS            further options of segmentation.getam.train, predict, generate_cam
set -euo pipefail

usage() { echo "error: $1; usage: bash scripts/getam.sh voc12|coco14|folder DATA OUT" >&2; exit 2; }
[ $# -eq 3 ] || usage "3 arguments are needed, $# were given"
dataset=$1 data=$2 out=$3

# Published settings are the commands' own defaults; the table holds what differs.
case $dataset in
    #        encoder               further options
    voc12)   backbone=vitb_hybrid  train_options="" ;;
    coco14)  backbone=vitb_hybrid  train_options="" ;;
    folder)  backbone=deit_tiny    train_options="--epochs 10 --class-share 0.6 --batch-size 8 --crop-size 224 --band 0.2"
             train_options+=" --optimizer adamw --lr 5e-4 --encoder-lr-scale 0.1 --joint-lr-scale 1" ;;  # chosen on voc-animals
    *)       usage "unknown data set $dataset" ;;
esac
backbone=${BACKBONE:-$backbone}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
[ "$val_split" = - ] && predicted=$train_split || predicted=$val_split
splits=${SPLITS:-$predicted}
case $backbone in  # the small encoders' weights have the names of wsss/backbones.py
    deit_tiny | deit_small | vit_tiny) weights=$(starting_weights "${backbone}_patch16_224") ;;
    vit_small) weights=$(starting_weights vit_small_patch16_384) ;;
    *) weights=$(starting_weights "$backbone") ;;
esac

run_step all "training on $train_split" "$out/train" segmentation.getam.train --train-split "$train_split" \
    --backbone "$backbone" --pretrained "$weights" ${SALIENCY:+--saliency-dir "$SALIENCY"} $train_options \
    ${workers[@]+"${workers[@]}"} ${TRAIN_OPTIONS:-}

for split in $splits; do  # the last step's network: nothing was chosen on masks
    run_step all "prediction of $split, the published test" "$out/test/$(basename "$split" .txt)" segmentation.getam.predict \
        --checkpoint "$out/train/last.pth" --split "$split" --crf --overlays 12 ${workers[@]+"${workers[@]}"} ${PREDICT_OPTIONS:-}
done

if [ "${CAMS:-1}" != 0 ]; then
    compact=()
    [ "$dataset" != coco14 ] || compact=(--compact)  # full-size maps of 82,081 pictures are 150 GB
    run_step all "maps of $train_split" "$out/cams/$train_split" segmentation.getam.generate_cam \
        --checkpoint "$out/train/last.pth" --split "$train_split" ${compact[@]+"${compact[@]}"} ${CAM_OPTIONS:-}
    run_step one "threshold, on $scored_split" "$out/threshold" weaktr.search_threshold \
        --cam-dir "$out/cams/$train_split" --split "$scored_split" --thresholds 0.01 0.6 0.01 ${workers[@]+"${workers[@]}"}
fi
[ "$NODE" -ne 0 ] || printf '\n%s\n' "done: label maps in $out/test"
