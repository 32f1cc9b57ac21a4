"""README and docs: links lead somewhere, commands take the options shown, both papers are named."""

import importlib
import re
import shlex
import subprocess

import pytest

from tests.commands import ROOT
from wsss.config import parse

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "data/README.md",
    ROOT / "checkpoints/README.md",
]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


def _anchors(text: str) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(path.read_text(encoding="utf8")), f"{page.name}: {target}"


def _joined(page) -> str:
    """A page with continued lines joined, and a subcommand of a package written as the module that it is."""
    text = page.read_text(encoding="utf8").replace("\\\n", " ")
    return text.replace("-m wsss.datasets check", "-m wsss.datasets.check")


def _shown_commands():
    """(page, module, words) of every ``-m module --option ...`` in pages and scripts."""
    for page in [*PAGES, *SCRIPTS]:
        text = _joined(page)
        for module, rest in re.findall(r"-m ((?:weaktr|wsss|segmentation)\.[\w.]+)([^\n`|]*)", text):
            yield page.name, module, rest


def test_commands_take_the_options_shown(capsys):
    seen = set()
    for page, module, rest in _shown_commands():
        command = importlib.import_module(module)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            parse(command.Config, ["--help"], prog=module)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", rest):
            assert re.search(rf"{option}(?![\w-])", text), f"{page}: {module} has no {option}"
            seen.add((module, option))
    # the pages do show the commands: this test cannot pass by finding nothing
    assert {m for m, _ in seen} >= {
        "weaktr.train", "weaktr.generate_cam", "weaktr.search_threshold", "weaktr.make_masks", "wsss.score",
        "segmentation.train", "segmentation.predict",
    }  # fmt: skip
    assert len(seen) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_whole_command_lines_parse(page):
    """Every indented ``python -m`` line of a page, as it stands."""
    text = _joined(page)
    for line in re.findall(r"^(?: {4})?python (-m (?:weaktr|wsss|segmentation)\..*)$", text, re.M):
        words = shlex.split(line)
        command = importlib.import_module(words[1])
        parse(command.Config, words[2:], prog=words[1])


def test_scripts_that_are_shown_exist():
    for page in PAGES:
        for name in re.findall(r"scripts/[\w-]+\.sh", page.read_text(encoding="utf8")):
            assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_readme_names_both_papers_and_the_commands():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    for words in (
        "2304.01184",
        "2112.02841",
        "Lianghui Zhu",
        "Weixuan Sun",
        "bash scripts/test.sh",
        "bash scripts/quickstart.sh",
        "bash scripts/stage1.sh",
        "bash scripts/stage2.sh",
    ):
        assert words in text, words


def test_no_page_has_a_placeholder():
    for page in [*PAGES, *SCRIPTS]:
        found = re.findall(r"@[A-Z0-9]+@|TODO|FIXME", page.read_text(encoding="utf8"))
        assert not found, f"{page.name}: {found}"


def test_no_page_or_source_names_one_machines_folders():
    """Absolute paths of somebody's machine are of no use to a reader."""
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    names = listed.stdout.split("\n") if listed.returncode == 0 else [str(p.relative_to(ROOT)) for p in PAGES]
    own = re.compile(r"(?<![\w.~])/(?:w[o]rk|ro[o]t|ho[m]e|op[t]|Us[e]rs)/")
    for name in filter(re.compile(r"\.(md|py|sh|txt|toml|ini)$|^\.ci/run$").search, names):
        for number, line in enumerate((ROOT / name).read_text(encoding="utf8").split("\n"), 1):
            assert not own.search(line), f"{name}:{number}: {line}"
