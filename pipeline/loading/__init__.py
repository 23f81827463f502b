"""Datasets for training: decoded pictures for torch, each read once an epoch.

order.py      which rows a reader gets, and in which order
stream.py     rows in that order, read ahead
decoding.py   streams to tensors, some together
images.py     all of it as a torch IterableDataset that can stop and go on
"""

from ..reader.originals import KeptOriginal
from .decoding import decode_batches
from .images import StrataImages

__all__ = ["KeptOriginal", "StrataImages", "decode_batches"]
