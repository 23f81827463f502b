"""Datasets for training: decoded pictures for torch, each read once per epoch.

order.py      which rows a reader gets, and in which order
stream.py     reads the rows in that order, and reads ahead
iteration.py  one pass over an epoch, which counts its position
decoding.py   decodes streams to tensors, in batches
images.py     all of this as a torch IterableDataset that can be resumed
ray_data.py   a dataset as a source of Ray Data
"""

from ..reader.originals import KeptOriginal
from .decoding import decode_batches
from .images import StrataImages

__all__ = ["KeptOriginal", "StrataImages", "decode_batches"]
