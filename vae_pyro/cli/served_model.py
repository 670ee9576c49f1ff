"""The script that MLflow runs to load a registered run (*models from code*: nothing is pickled)."""

from vae_pyro.runs.service import Service
from vae_pyro.tracking.serving import serve

serve(Service)
