"""What pyproject.toml can't say: the configs of the repository's top folder are installed as jaxgpt/configs."""

from setuptools import find_namespace_packages, find_packages, setup

setup(
    packages=[
        *find_packages(include=["jaxgpt", "jaxgpt.*"]),
        "jaxgpt.configs",
        *(f"jaxgpt.configs.{folder}" for folder in find_namespace_packages("configs")),
    ],
    package_dir={"jaxgpt.configs": "configs"},
)
