"""What an installed package needs, as opposed to a checkout."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed() -> None:
    # Listed by hand because two of them live outside of the package's directory.
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for init in (ROOT / "frontier_mock").rglob("__init__.py")
        if not init.parent.is_symlink()
    }
    listed = set(settings["packages"])
    elsewhere = {name for name in settings["package-dir"] if "." in name}
    assert found - elsewhere == listed - elsewhere
