"""``pip install -e .``: the three packages, their commands, and the exact versions of requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# Each has a function run(). The console command is named like its module: weaktr-generate-cam.
COMMANDS = (
    "weaktr.train",
    "weaktr.generate_cam",
    "weaktr.search_threshold",
    "weaktr.make_masks",
    "weaktr.evaluate",
    "segmentation.train",
    "segmentation.predict",
    "segmentation.evaluate",
    "segmentation.getam.train",
    "segmentation.getam.generate_cam",
    "segmentation.getam.predict",
    "segmentation.getam.evaluate",
    "wsss.score",
    "wsss.download_checkpoints",
    "wsss.datasets.check",
    "wsss.report",
    "wsss.shapes",
    "wsss.shapes_baseline",
    "wsss.voc_animals",
    "wsss.prepare.voc12",
    "wsss.prepare.coco14",
)


def runtime_requirements() -> list[str]:
    """The lines of requirements.txt above its "# development" line."""
    text = (HERE / "requirements.txt").read_text(encoding="utf8").split("\n# development")[0]
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


setup(
    name="weaktr",
    version="0.1.0",
    description="WeakTr: weakly supervised semantic segmentation with plain vision transformers",
    long_description=(HERE / "README.md").read_text(encoding="utf8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["wsss*", "weaktr*", "segmentation*"]),
    python_requires=">=3.11,<3.13",  # numpy's release needs 3.11; the CRF package does not build on 3.13
    install_requires=runtime_requirements(),
    entry_points={
        "console_scripts": [f"{m.replace('.', '-').replace('_', '-')} = {m}:run" for m in COMMANDS]
    },
)
