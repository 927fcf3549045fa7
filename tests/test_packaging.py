"""What is on disk is what an install brings along."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA_PACKAGES = {"frontier_mock.profiles": "profiles", "frontier_mock.scenarios": "replay"}


def test_every_package_is_listed_for_installation() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    inits = (ROOT / "frontier_mock").rglob("__init__.py")
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    assert set(settings["packages"]) == found | set(DATA_PACKAGES)
    for package, folder in DATA_PACKAGES.items():
        assert settings["package-dir"][package] == folder


def test_every_data_file_is_listed_for_installation() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, folder in DATA_PACKAGES.items():
        root = ROOT / folder
        files = {path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc"}
        globs = settings["package-data"][package]
        listed = {path for glob in globs for path in root.glob(glob)}
        assert files - listed == {root / "__init__.py"}
