"""Runs and versions in MLflow; the only room that imports it."""

import os

# MLflow reads these once, when it is imported. Usage statistics do not leave the house, and the terminal belongs to
# the command that runs; each can be set otherwise in the environment.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
