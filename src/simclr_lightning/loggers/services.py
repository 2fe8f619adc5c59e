"""Make the loggers of MLflow and Comet: on this machine by default, with the run's files in its folder."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CometLogger, MLFlowLogger
from lightning.pytorch.loggers.logger import Logger

from simclr_lightning.extras import require
from simclr_lightning.loggers.background import Background


def make_mlflow(options: Mapping[str, Any], folder: Path, *, name: str) -> Background:
    """Return the logger of MLflow: to a server, or to files in mlruns/ of the run's folder.

    Args:
        options: the node ``logger.mlflow`` of the configuration.
        folder: the run's folder; a resumed run continues its run of MLflow.
        name: the run's name.

    Raises:
        ValueError: mlflow is not installed.
    """
    require("mlflow", "logger=mlflow")
    importlib.import_module("mlflow")  # here, since no process may be forked while a thread imports

    logging.getLogger(MLFlowLogger.__module__).setLevel(logging.ERROR)  # a new experiment is no warning
    uri = options.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").as_uri()
    known = folder / ".mlflow_run_id"
    if uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow 3 asks for it
    else:  # its own limits are minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")

    def make() -> Logger:
        logger = MLFlowLogger(
            experiment_name=options.get("experiment_name") or "simclr",
            run_name=options.get("run_name") or name,
            tracking_uri=uri,
            prefix=options.get("prefix") or "",
            run_id=known.read_text().strip() if known.exists() else None,
        )
        known.write_text(str(logger.run_id))
        return logger

    # MLflow refuses to change a value, such as trainer.max_epochs.
    return Background("MLflow", make, results=_log_artifacts, resumed=known.exists())


def _log_artifacts(logger: Any, pictures: list[Path]) -> None:
    for path in pictures:
        logger.experiment.log_artifact(logger.run_id, str(path))


def make_comet(options: Mapping[str, Any], folder: Path, *, name: str) -> Background:
    """Return the logger of Comet: online if there is a key, else to a file in comet/ of the run's folder.

    Args:
        options: the node ``logger.comet`` of the configuration.
        folder: the run's folder.
        name: the run's name.

    Raises:
        ValueError: comet_ml is not installed.
    """
    require("comet_ml", "logger=comet", "comet")
    importlib.import_module("comet_ml")  # as mlflow above

    online = options.get("online", "auto")
    online = bool(os.environ.get("COMET_API_KEY")) if online == "auto" else online
    where: dict[str, Any] = {} if online else {"offline_directory": str(folder / "comet")}

    def make() -> Logger:
        return CometLogger(
            workspace=options.get("workspace"),
            project=options.get("project") or "simclr",
            online=online,
            prefix=options.get("prefix") or "",
            name=name,
            **where,
        )

    return Background("Comet", make, results=_log_images)


def _log_images(logger: Any, pictures: list[Path]) -> None:
    for path in pictures:
        logger.experiment.log_image(str(path), name=path.stem)
