"""Build a run from its configuration, and run it."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genexp import checkpoint
from genexp.config import bind, require
from genexp.data import load_dataset
from genexp.data.dataset import Dataset
from genexp.data.stream import BatchStream, SplitBatches, examples, place
from genexp.device import DeviceConfig, choose_device, describe_device, use_deterministic_algorithms
from genexp.errors import ConfigError, GenexpError
from genexp.learner import Learner
from genexp.optimizers import plan_optimizers
from genexp.recorders.checkpoints import Checkpoints, cut_back
from genexp.recorders.console import Console
from genexp.recorders.figures import Figures
from genexp.recorders.gif import Gif
from genexp.recorders.metrics_log import MetricsLog
from genexp.recorders.recorder import Recorder
from genexp.recorders.status import Status
from genexp.recorders.tensorboard import TensorBoard
from genexp.seeding import seed_generators
from genexp.snapshot import Outcome, RunInfo, Snapshot
from genexp.stopping import stop_on_signals
from genexp.technique import Technique, find_technique
from genexp.trainer import Material, TrainerConfig, train

log = logging.getLogger(__name__)
REPORTED_PACKAGES = ("genexp", "torch", "torchvision", "hydra-core", "numpy", "scikit-learn")
EVALUATION_BATCH = 500
