"""``python -m wsss.datasets check ...``: see ``wsss.datasets.check``."""

import argparse
import sys

from wsss.datasets import check

parser = argparse.ArgumentParser(
    prog="python -m wsss.datasets", description="Commands for data sets; each answers --help."
)
parser.add_argument("command", choices=("check",), help="check: list everything that is wrong")
parser.parse_args(sys.argv[1:2])
check.run(sys.argv[2:])
