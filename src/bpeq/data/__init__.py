"""Data sets, built in or read from files, as NumPy arrays in host memory."""

from bpeq.data._built_in import diabetes, digits, xor
from bpeq.data._csv import csv
from bpeq.data._dataset import Dataset, Splits, Task, finish, folded, shuffled, single
from bpeq.data._mnist import fashion_mnist, mnist, read_idx
from bpeq.data._npz import npz

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
