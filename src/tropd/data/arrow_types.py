"""One Arrow type for values that came in chunks: the type that Arrow would have found for all of them together.

Of objects Arrow makes structs, and gives every row the fields of all rows. What a chat template renders must stay as it
was written, so messages and tools are stored as JSON.
"""

import json
from typing import Any

import pyarrow as pa


def as_array(values: list[Any]) -> Any:
    """The values as Arrow has them, or `None` where they have no common type. Lists of small whole numbers get int32.

    >>> as_array([[3, 4]]).type, as_array([[2**40]]).type, as_array([3, 4]).type, as_array([3, "x"])
    (ListType(list<item: int32>), ListType(list<item: int64>), DataType(int64), None)

    Arrow would take `True` for 1.0 after a fraction, and refuse it before one. Here the two are never mixed.
    """
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None
    if array.type == pa.float64() and any(type(value) is bool for value in values):
        return None
    if array.type == pa.list_(pa.int64()):
        try:
            return array.cast(pa.list_(pa.int32()))
        except pa.ArrowInvalid:
            return array
    return array


def as_json_array(values: list[Any]) -> Any:
    """Lists of objects (or `None`) as Arrow has them, each object as its JSON; `None` where JSON cannot keep one.

    >>> print(as_json_array([[{"x": 1}, {"x": "1"}], None]).type)
    list<item: extension<arrow.json>>
    """
    from datasets.utils.json import ujson_loads

    try:
        lists = [
            None if value is None else [json.dumps(item, ensure_ascii=False) for item in value] for value in values
        ]
        if any(
            value != [ujson_loads(item) for item in items] for value, items in zip(values, lists, strict=True) if items
        ):
            return None  # what `datasets` reads with keeps 64 bits of a number
        return pa.array(lists, pa.list_(pa.string())).cast(pa.list_(pa.json_()))
    except (TypeError, ValueError):  # dates and bytes, numbers of more than 64 bits, half a character
        return None


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch, with the objects of what is stored as JSON."""
    rows = batch.to_pylist()
    for field in batch.schema:
        if "arrow.json" in str(field.type):
            for row in rows:
                row[field.name] = _read_json(row[field.name], field.type)
    return rows  # type: ignore[no-any-return]


def _read_json(value: Any, kind: Any) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_read_json(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: _read_json(value[field.name], field.type) for field in kind}
    return json.loads(value) if isinstance(kind, pa.BaseExtensionType) else value


def common_type(one: Any, other: Any) -> Any:
    """The type that holds the values of both, by Arrow's permissive unification, or `None`.

    >>> import pyarrow as pa
    >>> print(common_type(pa.null(), pa.string()), common_type(pa.list_(pa.int32()), pa.list_(pa.float64())))
    string list<item: double>
    >>> print(common_type(pa.struct({"a": pa.int64()}), pa.struct({"b": pa.bool_()})))
    struct<a: int64, b: bool>
    >>> common_type(pa.int64(), pa.string())
    """
    schemas = [pa.schema({"": kind}) for kind in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return None


def as_type(array: Any, kind: Any) -> Any:
    """The array as a type that `common_type` gave.

    Raises:
        pyarrow.ArrowInvalid: a whole number that float64 cannot hold.
    """
    if array.type == kind:
        return array
    if pa.types.is_nested(kind) and "struct" in str(kind):  # Arrow casts structs by position, or not at all
        return pa.array(array.to_pylist(), type=kind)
    return array.cast(kind)
