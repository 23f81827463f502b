"""``--filter``: a condition over the metadata columns, as an Arrow expression.

Conditions look like Python and are parsed by Python's parser, but never evaluated. Only the forms
below are accepted. For anything else, an error names the place.

    width >= 512 and source_format == "jpeg"
    256 <= height < 1024, width * height > 1e6, source_bytes / (width * height) < 0.5
    key.startswith("birds/"), key.endswith("_2"), key.matches("^[a-f]+/"), "rotated" in notes
    source_format in ["png", "webp"], status != "ok", alpha is None, psnr is not None

A comparison with a missing value (``width`` of a bad sample) is never true, and neither is its
negation; ``is None`` tests for it.
"""

import ast
import operator as operators
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..dataset.rows import schema
from ..running.options import OptionError

MAX_LENGTH = 10_000  # characters
Kind = Literal["number", "text", "other"]


@dataclass(frozen=True)
class Condition:
    """A condition in normal form (for plans and workers), and its Arrow expression."""

    text: str
    expression: pc.Expression


class FilterError(OptionError):
    """An invalid ``--filter``; the message names the place and the columns."""


def parse_condition(text: str) -> Condition:
    """Parse a ``--filter``. Raises FilterError for an invalid one."""
    source = " ".join(text.split("\n")).strip()
    if len(source) > MAX_LENGTH:
        raise FilterError(f"--filter: more than {MAX_LENGTH} characters: use --keys-file for lists")
    try:
        tree = ast.parse(source, mode="eval")
        expression = _Parser(source).condition(tree.body)
        return Condition(ast.unparse(tree), expression)
    except SyntaxError as error:
        place = f"at character {error.offset}" if error.offset else "at its end"
        raise FilterError(f"--filter {source!r:.200}: {place}: {error.msg}{_EXAMPLE}") from None
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise FilterError(f"--filter {source!r:.200}: {error}{_EXAMPLE}") from None
    except (RecursionError, MemoryError):
        raise FilterError("--filter: nested too deeply") from None


def _kind(column: pa.DataType) -> Kind:
    if pa.types.is_string(column):
        return "text"
    return "number" if pa.types.is_integer(column) else "other"


# All metadata columns but the sample's fields. Columns of neither numbers nor text can only be
# compared with None.
COLUMNS: dict[str, Kind] = {
    column.name: _kind(column.type)
    for column in schema(0)
    if column.name not in ("fields", "header")
}
_EXAMPLE = "; an example is 'width >= 512 and source_format == \"jpeg\"'"
_KINDS = {"number": "a number", "text": "text", "other": "neither number nor text"}

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda left, right: left == right,
    ast.NotEq: lambda left, right: left != right,
    ast.Lt: lambda left, right: left < right,
    ast.LtE: lambda left, right: left <= right,
    ast.Gt: lambda left, right: left > right,
    ast.GtE: lambda left, right: left >= right,
}
_OF_CONSTANTS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operators.add,
    ast.Sub: operators.sub,
    ast.Mult: operators.mul,
    ast.Div: operators.truediv,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
}
_METHODS = {
    "startswith": lambda text, pattern: pc.starts_with(text, pattern=pattern),
    "endswith": lambda text, pattern: pc.ends_with(text, pattern=pattern),
    "matches": lambda text, pattern: pc.match_substring_regex(text, pattern=pattern),
}


@dataclass(frozen=True)
class _Value:
    """An operand; ``constant`` is its value if that does not depend on the row."""

    kind: Kind
    expression: pc.Expression
    constant: Any = None
    column: str = ""


class _Parser:
    """Turns a syntax tree into an expression. Errors name the place in the text."""

    def __init__(self, source: str) -> None:
        self._source = source

    def condition(self, node: ast.expr) -> pc.Expression:
        match node:
            case ast.BoolOp(op=operator, values=values):
                first, *others = [self.condition(value) for value in values]
                for other in others:
                    first = first & other if isinstance(operator, ast.And) else first | other
                return first
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.condition(operand)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                return self._method(node)
        raise self._error(node, "this is not a condition: compare it with something")

    def _comparison(self, node: ast.Compare) -> pc.Expression:
        """A comparison, or a chain of them: ``a < b <= c`` means ``a < b and b <= c``."""
        whole = None
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            one = self._compared(left, operator, right)
            whole = one if whole is None else whole & one
            left = right
        return whole

    def _compared(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
        match operator:
            case ast.Is() | ast.IsNot():
                return self._presence(left, operator, right)
            case ast.In() | ast.NotIn():
                value, found = self._membership(left, right)
                # Arrow returns False for null in a list, so its negation would be true.
                found = pc.if_else(value.is_valid(), found, pa.scalar(None, pa.bool_()))
                return found if isinstance(operator, ast.In) else ~found
        one, other = self._value(left), self._value(right)
        if one.kind != other.kind:
            raise self._error(right, f"{_KINDS[one.kind]} is compared with {_KINDS[other.kind]}")
        if not (one.column or other.column):
            raise self._error(left, "one side of a comparison must be a column")
        return _COMPARISONS[type(operator)](one.expression, other.expression)

    def _presence(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> pc.Expression:
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise self._error(right, "only None can follow 'is': write == to compare")
        name = self._name(left)
        missing = pc.field(name).is_null()
        return missing if isinstance(operator, ast.Is) else ~missing

    def _membership(self, left: ast.expr, right: ast.expr) -> tuple[pc.Expression, pc.Expression]:
        """``column in [...]`` or ``"part" in column``: the column, and the test."""
        one = self._value(left)
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            if not one.column:
                raise self._error(left, "only a column can be in a list")
            values = [self._value(element) for element in right.elts]
            for element, value in zip(right.elts, values, strict=True):
                if value.column or value.kind != one.kind:
                    raise self._error(element, f"this list may only hold {_KINDS[one.kind]}")
            if one.kind == "number":
                numbers = pa.array([float(value.constant) for value in values], pa.float64())
                return one.expression, one.expression.cast(pa.float64()).isin(numbers)
            texts = pa.array([value.constant for value in values], pa.string())
            return one.expression, one.expression.isin(texts)
        whole = self._value(right)
        if not isinstance(one.constant, str) or not whole.column or whole.kind != "text":
            raise self._error(
                right, "'in' takes a list (width in [64, 128]) or text (\"a\" in key)"
            )
        return whole.expression, pc.match_substring(whole.expression, pattern=one.constant)

    def _method(self, node: ast.Call) -> pc.Expression:
        match node:
            case ast.Call(
                func=ast.Attribute(value=owner, attr=name), args=[ast.Constant(value=str(text))]
            ) if name in _METHODS and not node.keywords:
                of = self._value(owner)
                if not of.column or of.kind != "text":
                    raise self._error(owner, f"only a column of text has .{name}")
                if name == "matches":  # raises now for a bad pattern
                    pc.match_substring_regex(pa.array([""]), pattern=text)
                return _METHODS[name](of.expression, text)
        known = ", ".join(f'.{name}("...")' for name in _METHODS)
        raise self._error(node, f"the only methods of a column are {known}")

    def _value(self, node: ast.expr) -> _Value:
        match node:
            case ast.Name(id=name):
                self._name(node)
                return _Value(COLUMNS[name], pc.field(name), column=name)
            case ast.Constant(value=bool() | None | bytes() | complex()):
                raise self._error(node, "only numbers and text can be compared")
            case ast.Constant(value=int() | float() as number):
                return _Value("number", pc.scalar(number), number)
            case ast.Constant(value=str(text)):
                return _Value("text", pc.scalar(text), text)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
                of = self._number(operand)
                if of.column:
                    return self._computed(node, ast.Sub(), _constant(0), of)
                return _constant(of.constant if isinstance(sign, ast.UAdd) else -of.constant)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
                return self._computed(node, operator, self._number(left), self._number(right))
        raise self._error(node, "this is not understood")

    def _number(self, node: ast.expr) -> _Value:
        value = self._value(node)
        if value.kind != "number":
            raise self._error(node, f"{_KINDS[value.kind]} cannot be used in arithmetic")
        return value

    def _computed(
        self, node: ast.expr, operator: ast.operator, left: _Value, right: _Value
    ) -> _Value:
        """Arithmetic in double precision: the product of two sides may overflow their type."""
        if not (left.column or right.column):
            if isinstance(operator, ast.Div) and not right.constant:
                raise self._error(node, "this divides by zero")
            parts = (float(left.constant), float(right.constant))
            return _constant(_OF_CONSTANTS[type(operator)](*parts))
        columns = (value.expression.cast(pa.float64()) for value in (left, right))
        return _Value("number", _ARITHMETIC[type(operator)](*columns), column="computed")

    def _name(self, node: ast.expr) -> str:
        if not isinstance(node, ast.Name):
            raise self._error(node, "this must be a column")
        if node.id not in COLUMNS:
            raise self._error(node, f"there is no column {node.id!r}")
        return node.id

    def _error(self, node: ast.expr, problem: str) -> FilterError:
        # ast counts bytes of UTF-8, people count characters.
        place = len(self._source.encode()[: node.col_offset].decode()) + 1
        part = ast.get_source_segment(self._source, node) or ""
        return FilterError(
            f"--filter {self._source!r:.200}: at character {place} ({part[:60]}): {problem}. "
            f"The columns are {', '.join(COLUMNS)}"
        )


def _constant(value: float) -> _Value:
    return _Value("number", pc.scalar(value), value)
