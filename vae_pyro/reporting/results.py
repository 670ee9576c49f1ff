from vae_pyro.reporting.tables import RESULT_FILE, JobResult

__all__ = ["RESULT_FILE", "JobResult"]
