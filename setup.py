"""The packages of the wheel: those of ``vae_pyro/``, and the folders of ``conf/`` inside it."""

from setuptools import find_namespace_packages, find_packages, setup

conf = ["vae_pyro.conf", *(f"vae_pyro.conf.{name}" for name in find_namespace_packages("conf"))]

setup(
    packages=[*find_packages(include=["vae_pyro*"]), *conf],
    package_dir={"vae_pyro.conf": "conf"},
)
