"""Utilities shared by all parts of the engine."""

from __future__ import annotations

from . import ranks
from .archives import unpack_archive
from .checkpoint import (
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from .devices import choose_device, device_of_run
from .logger import Logger, hides_bars, is_quiet, print_detail, print_result, setup_logger
from .meters import AverageMeter, MetricMeter
from .registry import Registry, check_availability
from .tools import (
    ImageError,
    MissingImageError,
    SettingError,
    check_isfile,
    check_range,
    collect_env_info,
    download_url,
    listdir_nohidden,
    mkdir_if_missing,
    read_image,
    read_json,
    set_random_seed,
    tolist_if_not,
    use_deterministic_algorithms,
    write_json,
)
from .torchtools import (
    count_num_param,
    init_network_weights,
    open_all_layers,
    open_specified_layers,
)

__all__ = [
    "AverageMeter",
    "ImageError",
    "Logger",
    "MetricMeter",
    "MissingImageError",
    "Registry",
    "SettingError",
    "check_availability",
    "check_isfile",
    "check_range",
    "choose_device",
    "collect_env_info",
    "count_num_param",
    "device_of_run",
    "download_url",
    "hides_bars",
    "init_network_weights",
    "is_quiet",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "print_detail",
    "print_result",
    "ranks",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "unpack_archive",
    "use_deterministic_algorithms",
    "write_json",
]
