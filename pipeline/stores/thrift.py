"""Reads Thrift's compact encoding, as far as Parquet's page headers and footers use it.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from typing import Any

DAMAGED = "damaged Parquet metadata: not valid Thrift"
_MAX_DEPTH = 12  # of structures in structures
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


def read_struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """The structure at offset ``at``: its fields by number, and its end. Raises ValueError."""
    reader = _Reader(data, at)
    try:
        return reader.struct(), reader.at
    except IndexError as error:
        raise ValueError(DAMAGED) from error


def count_structs(data: bytes) -> int:
    """How many structures ``data`` holds, nested ones included. Raises ValueError."""
    reader = _Reader(memoryview(data), 0)
    try:
        reader.struct()
    except IndexError as error:
        raise ValueError(DAMAGED) from error
    return reader.structs


class _Reader:
    def __init__(self, data: memoryview, at: int) -> None:
        self.data, self.at, self.structs = data, at, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > _MAX_DEPTH:
            raise ValueError(DAMAGED)
        self.structs += 1
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._number()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int, in_list: bool = False) -> Any:
        if kind in (_TRUE, _FALSE):
            return self._byte() == _TRUE if in_list else kind == _TRUE
        if kind in (_I16, _I32, _I64):
            return self._number()
        if kind in (_BYTE, _DOUBLE):
            return self._skip(1 if kind == _BYTE else 8)
        if kind == _BINARY:
            return self._skip(self._unsigned())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            for _ in range(count):
                self._value(head & 15, depth + 1, in_list=True)
            return None
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(DAMAGED)  # Parquet has no maps

    def _byte(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise ValueError(DAMAGED)

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError(DAMAGED)

    def _number(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
