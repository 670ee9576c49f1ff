"""Data sets, as integer levels (or real numbers) in memory; one file for each kind of source."""

from vae_pyro.data.arrays import ArrayFile
from vae_pyro.data.cifar10 import CIFAR10
from vae_pyro.data.dataset import Dataset, Split, batches
from vae_pyro.data.digits import Digits
from vae_pyro.data.hugging_face import HuggingFace
from vae_pyro.data.images import ImageFolder
from vae_pyro.data.linear_gaussian import LinearGaussian
from vae_pyro.data.mnist import KMNIST, MNIST, FashionMNIST
from vae_pyro.data.omniglot import Omniglot
from vae_pyro.data.omniglot_burda import OmniglotBurda
from vae_pyro.data.source import ImageSource
from vae_pyro.likelihoods.preparation import binarise, dequantise

__all__ = [
    "CIFAR10",
    "KMNIST",
    "MNIST",
    "ArrayFile",
    "Dataset",
    "Digits",
    "FashionMNIST",
    "HuggingFace",
    "ImageFolder",
    "ImageSource",
    "LinearGaussian",
    "Omniglot",
    "OmniglotBurda",
    "Split",
    "batches",
    "binarise",
    "dequantise",
]
