"""What a footer of Parquet describes, asked so that a forged one does not end the process."""

import pyarrow as pa
import pyarrow.parquet as pq

from .ranges import SizedFile


def described(metadata: pq.FileMetaData, size: int) -> pa.Schema:
    """The columns of a file of this size. Raises OSError for a footer that pyarrow refuses.

    Asked with ``row_group(i).column(j)`` for a description that it refuses, pyarrow ends the
    whole process. Before it reads a row group, it checks all descriptions and raises. So let
    it begin to read. (``pre_buffer`` and ``metadata.schema.to_arrow_schema`` would both leak
    memory here.)
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

    REFUSAL = "this file is not to be read"

    def read(self, size: int | None = -1) -> bytes:
        raise OSError(self.REFUSAL)
