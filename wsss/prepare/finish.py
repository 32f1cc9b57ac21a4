"""What both preparations end with: the check of the data set, and the lines that come next."""

import logging
import shlex

from wsss.datasets import check

log = logging.getLogger(__name__)


def check_and_tell(kind: str, config) -> None:
    """Check the data set in ``config.output_dir`` (``wsss.datasets.check``), and name the next commands.

    Raises:
        UserError: The check finds problems; they are listed first.
    """
    root = config.output_dir
    log.info("checking %s", root)
    check.main(check.Config(dataset=kind, data_path=root, partial=config.partial, workers=config.workers))
    name = f"weaktr_{kind}_deit_s"
    log.info("or, with a released checkpoint:")
    log.info("  bash scripts/download_checkpoints.sh %s", name)
    log.info("  %s", shlex.join(["bash", "scripts/evaluate.sh", name, kind, str(root)]))
