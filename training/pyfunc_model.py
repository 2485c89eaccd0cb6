"""The model as MLflow runs it ("models from code"): MLflow executes this file, nothing imports it."""

from training.tracking import set_model

set_model()
