"""What the process imports that ``warm_process`` forks from: all that the commands import, but not the commands."""

import pkgutil

import lightning.pytorch  # noqa: F401
import matplotlib.figure  # noqa: F401
import sklearn.mixture  # noqa: F401
import torch

import flowergen

torch.set_num_threads(1)
for found in pkgutil.iter_modules(flowergen.__path__, "flowergen."):
    if found.ispkg:
        for file in pkgutil.walk_packages([f"{flowergen.__path__[0]}/{found.name.rpartition('.')[2]}"], f"{found.name}."):
            __import__(file.name)
