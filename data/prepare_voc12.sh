#!/usr/bin/env bash
# PASCAL VOC 2012, ready for --dataset voc12: pictures, annotations, lists, masks and SegmentationClassAug.
#
#   bash data/prepare_voc12.sh DIR [--from DIR2 ...] [--aug-masks PATH] [--partial] [--keep-archives]
#
#          --from       folders with what is there already: VOCtrainval_11-May-2012.tar, benchmark.tgz,
#                       VOC2012test.tar, a finished SegmentationClassAug, or the same unpacked. They are not written to.
#          --aug-masks  a finished SegmentationClassAug, folder or archive; else it is derived from SBD
#          --partial    a part of the official set: other counts are accepted, nothing is downloaded
#          Further options: bash data/prepare_voc12.sh --help
# Needs    the packages (installed on first use, scripts/env.sh), and the network for what --from lacks. VOC2012test.tar
#          has to be fetched with a login at the official server; it is needed for submissions only.
# Writes   DIR/VOCdevkit/VOC2012, DIR/prepared.json (what came from where); while it runs DIR/downloads
# Resumes  Run the same line again: what is done is kept, a download continues.
# Expect   published: 10,582 train_aug, 1,464 train, 1,449 val pictures, 12,031 masks in SegmentationClassAug; the check
#          at the end compares them
# Time     not measured. Disk: archives 2.0 GB (VOC) and 1.4 GB (SBD), published; with what is unpacked about 4 GB at most.
set -euo pipefail
module=wsss.prepare.voc12
source "$(dirname "${BASH_SOURCE[0]}")/prepare.sh"
