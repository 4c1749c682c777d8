"""Write the tree in the README from the first line of each file's docstring.

python scripts/readme_tree.py          # rewrite the README
python scripts/readme_tree.py --check  # fail if it is not up to date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
START, END = "<!-- tree: scripts/readme_tree.py -->\n```text\n", "```\n<!-- end of tree -->"


def tree() -> str:
    """One line per file, folder by folder in the order of the stages."""
    package = ROOT / "src" / "lipdet"
    stages = ["", "images", "layers", "detector", "boxes", "certificate", "evaluate", "report"]
    lines = []
    for stage in stages:
        folder = package / stage
        for path in sorted(folder.glob("*.py")):
            leaf = f"  {path.name}" if stage else path.name
            name = f"{stage}/" if path.stem == "__init__" else leaf
            if name != "/":
                lines.append(f"{name:24} {summary(path)}")
    lines.append(f"{'weights/':24} The packaged weights and their cards.")
    return "".join(line + "\n" for line in lines)


def summary(path: Path) -> str:
    """The first line of a file's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n")[0].removesuffix(".")


def updated(readme: str) -> str:
    """The README with the tree as it is now."""
    before, rest = readme.split(START)
    return before + START + tree() + END + rest.split(END)[1]


if __name__ == "__main__":
    current = README.read_text()
    if "--check" in sys.argv:
        sys.exit(0 if updated(current) == current else "README.md: run scripts/readme_tree.py")
    README.write_text(updated(current))
