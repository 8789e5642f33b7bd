"""The README and the pages of `docs/`: their code blocks and the names in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "deploy/README.md", *sorted(ROOT.glob("docs/**/*.md"))]
# Their examples are whole files, which tests/docs/test_plug_ins.py runs.
PAGES = [page for page in PAGES if page.parent.name != "plug-ins"]
# Found by the name that a failed test shows.
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    """All code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(name), re.S | re.M)


def inline(name: str) -> list[str]:
    """All inline code of a page, and its lines of commands."""
    plain = re.sub(r"^```.*?^```$", "", text_of(name), flags=re.S | re.M)
    return re.findall(r"`([^`\n]+)`", plain) + "".join(blocks(name, "bash")).splitlines()
