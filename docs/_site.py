"""What the site shows in addition to the pages of this folder: the reference of every room, the notebooks, the
animation."""

from __future__ import annotations

import json
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "vdm_jax"


def on_config(config):
    """List the generated pages in the navigation; called by MkDocs first."""
    config.nav += [{"Notebooks": [f"notebooks/{path.stem}.md" for path in notebooks()]},
                   {"Reference": [f"reference/{room}.md" for room in rooms()]}]
    return config


def on_files(files, config):
    """Add the generated pages and the animation."""
    pages = {f"reference/{room}.md": reference(room) for room in rooms()}
    pages |= {f"notebooks/{path.stem}.md": shown(path) for path in notebooks()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "images/shipped.gif", abs_src_path=str(ROOT / "experiments/demo/shipped.gif")))
    return files


def notebooks() -> list[Path]:
    """Files of the notebooks."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def rooms() -> list[str]:
    """Names of the package's folders."""
    return sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def reference(room: str) -> str:
    """The page of a room: its modules with their docstrings."""
    names = [".".join(("vdm_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
             for path in sorted((PACKAGE / room).rglob("*.py"))]
    return f"# {room}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def shown(notebook: Path) -> str:
    """A notebook as a page: its text, its code, and the text and pictures that it printed."""
    parts = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            pictures = [(kind, "".join(data[kind]).strip()) for kind in ("image/png", "image/gif") if kind in data]
            text = "".join(output.get("text", data.get("text/plain", "")))
            if pictures:
                parts += [f'<img src="data:{kind};base64,{content}" alt="">' for kind, content in pictures]
            elif text:
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"
