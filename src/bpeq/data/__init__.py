"""Data sets, built in or read from files, as NumPy arrays in host memory."""

from bpeq.data._built_in import diabetes, digits, xor
from bpeq.data._csv import csv
from bpeq.data._finish import finish
from bpeq.data._idx import read_idx
from bpeq.data._mnist import fashion_mnist, mnist
from bpeq.data._npz import npz
from bpeq.data._splits import Splits, folded, shuffled, single
from bpeq.data._types import Dataset, Task

__all__ = [
    "Dataset",
    "Splits",
    "Task",
    "csv",
    "diabetes",
    "digits",
    "fashion_mnist",
    "finish",
    "folded",
    "mnist",
    "npz",
    "read_idx",
    "shuffled",
    "single",
    "xor",
]
