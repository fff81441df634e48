"""Checks that the links between the project's own pages lead somewhere.

`python -m tests.links` prints each dead link with its page and exits with 1 if there is one.
A link is dead where its file is missing or its file has no heading of that name (GitHub's rule:
lower case, punctuation dropped, spaces to hyphens). Links to other hosts are not followed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: str) -> set[str]:
    r"""Names that a page's headings can be linked by.

    >>> sorted(anchors("# The commit protocol\n## Order, lateness"))
    ['order-lateness', 'the-commit-protocol']
    """
    headings = _HEADING.findall(_FENCE.sub("", page))
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.strip().replace(" ", "-") for word in words}


def dead_links(root: Path = ROOT) -> list[str]:
    """One line for each link of a page at `root` or under its docs/ that leads nowhere."""
    dead = []
    for page in sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")]):
        for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            where = f"{page.relative_to(root)}: {link}"
            if not target.exists():
                dead.append(f"{where} (no such file)")
            elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
                dead.append(f"{where} (no such heading)")
    return dead


if __name__ == "__main__":
    found = dead_links()
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.exit(1 if found else 0)
