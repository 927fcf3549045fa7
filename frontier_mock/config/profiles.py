"""Profiles by name: hardware, models, engines and kernel tables out of the data package.

They live under `profiles/` and install as `frontier_mock.profiles`. Everything here raises
`ConfigError` with one line for a name that is not there.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import yaml
from numpy.typing import NDArray

from frontier_mock.config.errors import ConfigError, nearest
from frontier_mock.config.hf_config import read_config
from frontier_mock.cost.specs import (
    EnginePreset,
    ExpertsSpec,
    HardwareSpec,
    LatentSpec,
    ModelSpec,
    VisionSpec,
)
from frontier_mock.cost.tables import (
    ContiguousFit,
    Curve,
    DecodeAttentionTable,
    ExpertFit,
    ExpertTable,
    Floats,
    GemmFit,
    GemmTable,
    KernelTables,
    PrefillAttentionFit,
    PrefillAttentionTable,
    RaggedFit,
)

RESIDUAL_SCALE = 4096.0
"""Residuals of GEMM tables are stored as int16 in units of 1 / RESIDUAL_SCALE."""

_Spec = TypeVar("_Spec", HardwareSpec, EnginePreset, ModelSpec)

_CALIBRATED: Final = (".yaml", ".yml")
"""Endings of a hardware or engine name that is a file."""

_ANY_PATCH: Final = 1 << 30
"""Newer than every patch of a release."""

_FORM_FACTORS: Final = ("sxm", "sxm4", "sxm5", "80gb", "80gbsxm")
"""Endings of a GPU's name that say nothing new: a profile is of one form factor."""

_YamlLoader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_hardware(name: str) -> HardwareSpec:
    """The GPU called `name`, or of a file that `calibrate` wrote.

    Case, blanks and punctuation do not matter, nor does a form factor at the end: `RTX PRO 6000`,
    `rtx4090` and `h100_sxm` will do.
    """
    if name.endswith(_CALIBRATED):
        return _calibrated(HardwareSpec, name, "hardware")
    return _hardware(name.lower())


@cache
def _hardware(name: str) -> HardwareSpec:
    folder = _root() / "hardware"
    known = _stems(folder)
    if name not in known:
        plain = {_plain(stem): stem for stem in known}
        asked = _plain(name)
        for form in ("", *_FORM_FACTORS):
            if asked.endswith(form) and (stem := plain.get(asked.removesuffix(form))):
                return _hardware(stem)
        raise _unknown("hardware", name, known)
    return _filled(HardwareSpec, _read_yaml(folder / f"{name}.yaml"), f"hardware {name}")


def _plain(name: str) -> str:
    """Letters and digits only."""
    return "".join(character for character in name if character.isalnum())


def known_hardware() -> list[str]:
    """Names `load_hardware` accepts."""
    return _stems(_root() / "hardware")


@cache
def load_model(name: str) -> ModelSpec:
    """The model with this Hugging Face name, or described by this `config.json` (or its folder).

    The last component of a known name is enough when it is spelt in full.
    """
    path = Path(name)
    if path.is_dir() and (path / "config.json").is_file():
        path = path / "config.json"
    if path.suffix == ".json" or path.is_file():
        return read_config(name, path)
    cards = _model_cards()
    card = cards.get(name.lower())
    if card is None:
        known = sorted({c["name"] for c in cards.values()})
        hint = nearest(name, known)
        raise ConfigError(
            f"model: no profile for {name!r}{hint}; allowed: a path to a Hugging Face config.json, "
            f"or one of {', '.join(known)}"
        )
    return _filled(ModelSpec, card, f"model {name}")


def known_models() -> list[str]:
    """Names `load_model` accepts, in full."""
    return sorted({card["name"] for card in _model_cards().values()})


@cache
def _model_cards() -> dict[str, dict[str, Any]]:
    """Every model card by lower-case full name, alias and unambiguous last component."""
    cards: dict[str, dict[str, Any]] = {}
    for stem in _stems(_root() / "models"):
        for name, entry in _read_yaml(_root() / "models" / f"{stem}.yaml").items():
            aliases = entry.pop("aliases", {})
            own_weights = entry.pop("weights", "bf16")
            kinds = (("experts", ExpertsSpec), ("latent", LatentSpec), ("vision", VisionSpec))
            for key, spec in kinds:
                if key in entry:
                    entry[key] = spec(**entry[key])
            for alias, weights in {name: own_weights, **aliases}.items():
                card = {**entry, "name": alias, "checkpoint_weights": weights}
                cards[alias.lower()] = card
                cards.setdefault(alias.rsplit("/", 1)[-1].lower(), card)
    return cards


@cache
def load_engine(name: str) -> EnginePreset:
    """The preset of an engine version: the newest one not newer than `vllm-X.Y[.Z]`.

    Without Z any patch of X.Y will do; `vllm` alone is the newest preset. The returned preset keeps
    its own name and version. A file that `calibrate` wrote will do too.
    """
    if name.endswith(_CALIBRATED):
        return _calibrated(EnginePreset, name, "engine")
    presets = {stem: _version_of(stem) for stem in _stems(_root() / "engines")}
    family, _, version = name.lower().partition("-")
    ours = {stem: at for stem, at in presets.items() if stem.startswith(f"{family}-")}
    parts = version.split(".")
    if not ours or (version and not all(part.isdecimal() for part in parts)):
        raise _unknown("engine", name, sorted(presets, key=lambda stem: presets[stem]))
    wanted = tuple(int(part) for part in parts) if version else max(ours.values())
    wanted += (_ANY_PATCH,) * (3 - len(wanted))
    older = [stem for stem, at in ours.items() if at <= wanted]
    if not older:
        oldest = min(ours, key=lambda stem: ours[stem])
        raise ConfigError(f"engine: {name!r} is older than any preset; allowed: {oldest} or later")
    best = max(older, key=lambda stem: ours[stem])
    return _filled(EnginePreset, _read_yaml(_root() / "engines" / f"{best}.yaml"), f"engine {best}")


def _calibrated(spec: type[_Spec], name: str, key: str) -> _Spec:
    """The profile under `key` of a file that `calibrate` wrote."""
    try:
        data = yaml.load(Path(name).read_text(encoding="utf-8"), Loader=_YamlLoader)
        values = data[key]
        expected = {field.name for field in dataclasses.fields(spec)}
        if set(values) != expected:
            raise KeyError(min(set(values) ^ expected))
        return spec(**values)
    except OSError as error:
        raise ConfigError(f"{key}: {name}: {error.strerror}") from None
    except (KeyError, TypeError, yaml.YAMLError):
        raise ConfigError(
            f"{key}: {name} has no {key} as `frontier-mock calibrate` of this version writes it"
        ) from None


def _version_of(stem: str) -> tuple[int, ...]:
    version = tuple(int(part) for part in stem.partition("-")[2].split("."))
    return version + (0,) * (3 - len(version))


@cache
def load_kernels(name: str) -> KernelTables:
    """The kernel tables called `name`, as `HardwareSpec.kernels` names them."""
    folder = _root() / "kernels"
    known = sorted(entry.name for entry in folder.iterdir() if (entry / "kernels.json").is_file())
    if name not in known:
        raise _unknown("kernels", name, known)
    data = json.loads((folder / name / "kernels.json").read_text(encoding="utf-8"))
    base = data.get("base", name)
    if base != name:
        below = json.loads((folder / base / "kernels.json").read_text(encoding="utf-8"))
        data = {**below, **data}
    with resources.as_file(folder / base / "grids.npz") as path, np.load(path) as grids:
        return KernelTables(
            name=name,
            gemm={
                weights: _gemm(weights, fit, grids, data.get("gemm_residual", True))
                for weights, fit in data["gemm"].items()
            },
            sustained=data["sustained"],
            decode=_by_size(data["decode"], _decode, grids),
            prefill=_by_size(data["prefill"], _prefill, grids),
            all_reduce=_curves(data["all_reduce"]),
            all_gather=_curves(data["all_gather"]),
            experts=_all_experts(data, grids),
            elementwise_us=data["elementwise_us"],
            elementwise_memory=data["elementwise_memory"],
            contiguous=ContiguousFit(**data["contiguous"]) if "contiguous" in data else None,
            ragged=RaggedFit(**data["ragged"]) if "ragged" in data else None,
        )


_Grids = Mapping[str, NDArray[Any]]
_Table = TypeVar("_Table")


def _gemm(weights: str, fit: Mapping[str, float], grids: _Grids, residual: bool) -> GemmTable:
    """The equation, with its measured correction unless the GPU only borrows the equation."""
    if not residual:
        none = np.empty(0)
        return GemmTable(GemmFit(**fit), none, none, none, np.empty((0, 0, 0), dtype=np.float32))

    def axis(name: str) -> Floats:
        return np.log(grids[f"gemm_{weights}_{name}"].astype(np.float64))

    scaled = grids[f"gemm_{weights}_residual"].astype(np.float32) / np.float32(RESIDUAL_SCALE)
    return GemmTable(GemmFit(**fit), axis("n"), axis("k"), axis("m"), scaled)


def _by_size(
    fits: Mapping[str, Mapping[str, Mapping[str, float]]],
    build: Callable[[str, Mapping[str, float], _Grids], _Table],
    grids: _Grids,
) -> dict[str, dict[int, _Table]]:
    """Attention tables by cache type and head size."""
    return {
        kv: {int(size): build(f"{kv}_{size}", fit, grids) for size, fit in sizes.items()}
        for kv, sizes in fits.items()
    }


def _decode(key: str, fit: Mapping[str, float], grids: _Grids) -> DecodeAttentionTable:
    tiles = grids[f"decode_{key}_tiles"].astype(np.float64)
    contexts = grids[f"decode_{key}_contexts"].astype(np.float64)
    time_us = grids[f"decode_{key}_time_us"].astype(np.float64)
    return DecodeAttentionTable(tiles, contexts, time_us, fit["bandwidth"], fit["stream"])


def _prefill(key: str, fit: Mapping[str, Any], grids: _Grids) -> PrefillAttentionTable:
    def axis(name: str) -> Floats:
        return np.log(grids[f"prefill_{key}_{name}"].astype(np.float64))

    ratio = grids[f"prefill_{key}_work_ratio"].astype(np.float64)
    heads = grids[f"prefill_{key}_head_ratio"].astype(np.float64)
    constants = PrefillAttentionFit(**fit)
    return PrefillAttentionTable(
        constants, axis("group"), axis("length"), ratio, axis("heads"), heads
    )


def _all_experts(data: Mapping[str, Any], grids: _Grids) -> dict[str, dict[str, ExpertTable]]:
    """Expert kernels by collection and weights. Equations of this GPU alone (`experts_own`) stand
    in place of the lender's tables."""
    tables = {
        collection: {
            weights: _experts(f"experts_{collection}_{weights}", fit, grids)
            for weights, fit in fits.items()
        }
        for collection, fits in data["experts"].items()
    }
    none = np.empty(0)
    for collection, fits in data.get("experts_own", {}).items():
        for weights, fit in fits.items():
            bare = ExpertTable(ExpertFit(**fit), np.empty((0, 5)), none, none, none, 1.0)
            tables[collection][weights] = bare
    return tables


def _experts(key: str, fit: Mapping[str, float], grids: _Grids) -> ExpertTable:
    constants = {name: value for name, value in fit.items() if name != "reach"}
    rows, most = int(constants.pop("block_rows")), int(constants.pop("block_rows_most", 0))
    return ExpertTable(
        ExpertFit(**constants, block_rows=rows, block_rows_most=most),
        shapes=grids[f"{key}_shapes"].astype(np.float64),
        log_tokens=np.log(grids[f"{key}_tokens"].astype(np.float64)),
        mean=grids[f"{key}_mean"].astype(np.float64),
        kernel=grids[f"{key}_kernel"].astype(np.float64),
        reach=fit["reach"],
    )


def _curves(curves: Mapping[str, Mapping[str, list[float]]]) -> dict[int, Curve]:
    def array(values: list[float]) -> Floats:
        return np.asarray(values, dtype=np.float64)

    return {
        int(ranks): Curve(array(curve["size_bytes"]), array(curve["time_us"]))
        for ranks, curve in curves.items()
    }


def _root() -> Traversable:
    return resources.files("frontier_mock.profiles")


def _stems(folder: Traversable) -> list[str]:
    return sorted(e.name[: -len(".yaml")] for e in folder.iterdir() if e.name.endswith(".yaml"))


def _read_yaml(file: Traversable) -> dict[str, Any]:
    data = yaml.load(file.read_text(encoding="utf-8"), Loader=_YamlLoader)
    assert isinstance(data, dict), f"{file} is not a mapping"
    return data


def _filled(spec: type[_Spec], data: Mapping[str, Any], what: str) -> _Spec:
    """`data` as a spec; a profile that lacks a field or has one too many is our own mistake."""
    fields = {field.name: field for field in dataclasses.fields(spec)}
    assert set(data) <= set(fields), f"{what}: unknown {sorted(set(data) - set(fields))}"
    return spec(**data)


def _unknown(key: str, name: str, known: Iterable[str]) -> ConfigError:
    words = list(known)
    return ConfigError(
        f"{key}: {name!r} is not known{nearest(name, words)}; allowed: {', '.join(words)}"
    )
