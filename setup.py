"""The packages of the wheel: those of ``vae_pyro/``, and ``conf/`` inside it as data."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["vae_pyro*"]), "vae_pyro.conf"],
    package_dir={"vae_pyro.conf": "conf"},
)
