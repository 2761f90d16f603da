"""The Python in README.md and docs/ runs as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from data import ASSETS, REPOSITORY, RESNET20, cifar10, digits, needs_data, normalised

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The page's Python."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def check_page(page: Path, folder: Path) -> None:
    """Runs a page's Python in `folder`, in a process of its own. A block that begins with "# file: NAME" is written to that file."""
    program = []
    for block in blocks(page):
        named = re.match(r"# file: (\w+\.py)\n", block)
        if named:
            (folder / named[1]).write_text(block, encoding="utf-8")
        else:
            program.append(block)
    (folder / "page.py").write_text("\n".join(program), encoding="utf-8")
    done = subprocess.run([sys.executable, "page.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((ASSETS / "digits.onnx").read_bytes())
    np.save(tmp_path / "calibration.npy", digits()["calibration"][0])
    assert sum(line.strip() != "" for block in blocks(PAGES[0]) for line in block.splitlines()) <= 10
    check_page(PAGES[0], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.int8.onnx", providers=["CPUExecutionProvider"])
    images, labels = digits()["test"]
    assert np.mean(session.run(None, {"image": images})[0].argmax(1) == labels) > 0.98


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda page: page.stem)
def test_docs(page: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes((ASSETS / "digits.onnx").read_bytes())
    np.save(tmp_path / "samples.npy", digits()["calibration"][0][:64])
    check_page(page, tmp_path)


@needs_data("cifar10-resnets", "cifar10-data")
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if "samples.npy" in page.read_text("utf-8")], ids=lambda page: page.stem)
def test_docs_on_a_residual_network(page: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(RESNET20.read_bytes())
    np.save(tmp_path / "samples.npy", normalised(cifar10(0)[0][:32]))
    check_page(page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")) if "://" not in link]
    assert all((page.parent / link).exists() for link in links)
