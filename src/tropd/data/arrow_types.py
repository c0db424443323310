"""One Arrow type for values that came in chunks: the type that Arrow would have found for all of them together."""

from typing import Any


def as_array(values: list[Any]) -> Any:
    """The values as Arrow has them, or `None` where they have no common type. Lists of small whole numbers get int32.

    >>> as_array([[3, 4]]).type, as_array([[2**40]]).type, as_array([3, 4]).type, as_array([3, "x"])
    (ListType(list<item: int32>), ListType(list<item: int64>), DataType(int64), None)

    Arrow would take `True` for 1.0 behind a fraction, and refuse it before one. Here the two never go together.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

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


def common_type(one: Any, other: Any) -> Any:
    """The type that holds the values of both, or `None`.

    Nothing goes with everything, whole numbers go with fractions, lists with lists and structs with structs where what
    they hold goes together. A struct has the fields of both.

    >>> import pyarrow as pa
    >>> print(common_type(pa.null(), pa.string()), common_type(pa.list_(pa.int32()), pa.list_(pa.float64())))
    string list<item: double>
    >>> print(common_type(pa.struct({"a": pa.int64()}), pa.struct({"b": pa.bool_()})))
    struct<a: int64, b: bool>
    >>> common_type(pa.int64(), pa.string())
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        inside = common_type(one.value_type, other.value_type)
        return None if inside is None else pa.list_(inside)
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return _common_struct(one, other)
    numbers = (pa.int32(), pa.int64(), pa.float64())
    if one in numbers and other in numbers:
        return max(one, other, key=numbers.index)
    if pa.types.is_decimal(one) and pa.types.is_decimal(other):
        schemas = [pa.schema({"": one}), pa.schema({"": other})]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    return None


def _common_struct(one: Any, other: Any) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]

    fields = {field.name: field.type for field in one}
    for field in other:
        fields[field.name] = common_type(fields.get(field.name, pa.null()), field.type)
    return None if None in fields.values() else pa.struct(fields)


def as_type(array: Any, kind: Any) -> Any:
    """The array as a type that `common_type` gave.

    Raises:
        pyarrow.ArrowInvalid: a whole number that float64 cannot hold.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    if array.type == kind:
        return array
    if pa.types.is_nested(kind) and "struct" in str(kind):  # Arrow casts structs by position, or not at all
        return pa.array(array.to_pylist(), type=kind)
    return array.cast(kind)
