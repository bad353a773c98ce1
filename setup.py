from setuptools import find_packages, setup

# All else is in pyproject.toml, which cannot say "every package found, and agents/ as one more".
setup(packages=[*find_packages(include=["echostream", "echostream.*"]), "echostream.agents"])
