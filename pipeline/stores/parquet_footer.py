"""Checks a Parquet footer in a way that a forged one cannot crash the process."""

import pyarrow as pa
import pyarrow.parquet as pq

from .ranges import SizedFile


def described(metadata: pq.FileMetaData, size: int) -> pa.Schema:
    """The schema of a file of this size. Raises OSError for a footer that pyarrow refuses.

    ``metadata.row_group(i).column(j)`` crashes the process if the footer describes that column
    wrongly. Reading a row group checks all descriptions first, and raises. So this begins to read
    each row group, from a file that gives no bytes. (``pre_buffer`` and
    ``metadata.schema.to_arrow_schema`` would both leak memory here.)
    """
    nothing = pa.PythonFile(_Unreadable(size), mode="r")
    file = pq.ParquetFile(nothing, metadata=metadata, pre_buffer=False, buffer_size=4096)
    for group in range(metadata.num_row_groups):
        try:
            file.read_row_group(group, use_threads=False)
        except OSError as error:
            if _Unreadable.REFUSAL not in str(error):
                raise
    return file.schema_arrow.remove_metadata()


class _Unreadable(SizedFile):
    """A file of known size that cannot be read."""

    REFUSAL = "this file gives no bytes"

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(self.REFUSAL)
