"""Reading `--sim-compat` and the scenario key `compat`: switches by name, with commas between."""

from frontier_mock.config.errors import ConfigError, nearest, shown
from frontier_mock.wire.compat import COMPAT, DEFAULT_COMPAT


def read_compat(text: str, where: str) -> tuple[str, ...]:
    """The switches that `text` turns on; `none`, `default` and `all` stand for several.

    Raises ConfigError, which begins with `where`, for a name that is none.
    """
    chosen: dict[str, None] = {}
    for word in text.split(","):
        name = word.strip()
        if name == "default":
            chosen |= dict.fromkeys(DEFAULT_COMPAT)
        elif name == "all":
            chosen |= dict.fromkeys(COMPAT)
        elif name in COMPAT:
            chosen[name] = None
        elif name != "none":
            allowed = ", ".join((*COMPAT, "default", "all", "none"))
            raise ConfigError(
                f"{where}: {shown(name)} is none{nearest(name, [*COMPAT])}; allowed: {allowed}"
            )
    return tuple(chosen)
