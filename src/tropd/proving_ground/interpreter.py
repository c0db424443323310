"""A small safe interpreter: runs a function of one list, written in a subset of Python, and always halts.

The program text is parsed with `ast` and walked here; it is never compiled or executed by Python. The subset: one
function of one argument, assignments to names, `+=`, `for … in`, `if`, list comprehensions with at most one condition,
`append`, `insert`, lists of whole numbers, their arithmetic (`+ - * % // **`), comparisons, indexes and slices, and the
functions `sum len sorted reversed list range min max abs`. Everything else is refused with a sentence that names it.

>>> run("def solve(xs):\\n    return sum(xs)", "solve", [1, 2, 3])
6
"""

import ast
import operator
import warnings
from collections.abc import Callable, Iterable
from typing import Any

MAX_CHARACTERS = 8_000
MAX_STEPS = 20_000
"""Nodes that one run may visit."""
MAX_NUMBER = 10**12
MAX_LIST = 1_000
_MAX_DEPTH = 40

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sum": sum,
    "len": len,
    "sorted": sorted,
    "reversed": lambda values: values[::-1],
    "list": list,
    "range": lambda *bounds: list(range(*bounds)[:MAX_LIST]),
    "min": min,
    "max": max,
    "abs": abs,
}


class ProgramError(Exception):
    """A program that cannot be run to its end; the message is a sentence that says why."""


class _Returned(Exception):
    """Carries the value of a return statement to the function's end."""

    def __init__(self, value: Any) -> None:
        self.value = value


def run(source: str, name: str, argument: list[int]) -> Any:
    """What function `name` of the program returns for the argument; `ProgramError` where it does not get there."""
    return Program(source, name)(argument)


class Program:
    """A parsed program, to be called with a list of whole numbers as often as needed."""

    def __init__(self, source: str, name: str) -> None:
        """Parse the program; refuse what is no single function of this name with one argument."""
        function = _parse(source)
        arguments = function.args
        plain = len(arguments.args) == 1 and not any(
            (arguments.posonlyargs, arguments.kwonlyargs, arguments.vararg, arguments.kwarg, arguments.defaults)
        )
        if function.name != name or not plain or function.decorator_list:
            raise ProgramError(f"The program should define {name} with one argument.")
        self._body, self._argument = function.body, arguments.args[0].arg

    def __call__(self, argument: list[int]) -> Any:
        """Run the program; the argument itself is not changed."""
        try:
            _Run({self._argument: list(argument)}).body(self._body, 0)
        except _Returned as returned:
            return returned.value
        except (TypeError, ValueError, ArithmeticError, IndexError, AttributeError) as error:
            raise ProgramError(f"The program fails: {error}.") from None
        raise ProgramError("The program ends without a return.")


class _Run:
    def __init__(self, variables: dict[str, Any]) -> None:
        self.variables = variables
        self.steps = 0

    def body(self, statements: Iterable[ast.stmt], depth: int) -> None:
        for statement in statements:
            self._statement(statement, depth + 1)

    def _statement(self, node: ast.stmt, depth: int) -> None:
        self._count(depth)
        match node:
            case ast.Return(value=ast.expr() as value):
                raise _Returned(self._value(value, depth))
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self.variables[name] = self._value(value, depth)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                self.variables[name] = self._binary(op, self._named(name), self._value(value, depth))
            case ast.For(target=ast.Name(id=name), iter=values, body=body, orelse=[]):
                for item in self._list(values, depth):
                    self.variables[name] = item
                    self.body(body, depth)
            case ast.If(test=test, body=body, orelse=orelse):
                self.body(body if self._value(test, depth) else orelse, depth)
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method), keywords=[]) as call
            ):
                self._change(self._named(name), method, [self._value(each, depth) for each in call.args])
            case _:
                raise ProgramError(f"The program uses {_described(node)}, which this small Python does not have.")

    def _change(self, values: Any, method: str, arguments: list[Any]) -> None:
        expected = {"append": 1, "insert": 2}.get(method)
        if not isinstance(values, list) or len(arguments) != expected:
            raise ProgramError(f"The program calls {method}, which this small Python does not have here.")
        getattr(values, method)(*map(_whole, arguments))
        _bounded(values)

    def _value(self, node: ast.expr, depth: int) -> Any:
        self._count(depth)
        depth += 1
        match node:
            case ast.Constant(value=bool() | int() as value):
                return _bounded(value)
            case ast.Name(id=name):
                return self._named(name)
            case ast.List(elts=items):
                return [_whole(self._value(item, depth)) for item in items]
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(op, self._value(left, depth), self._value(right, depth))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -_whole(self._value(operand, depth))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, depth)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
                return _COMPARE[type(op)](self._value(left, depth), self._value(right, depth))
            case ast.Subscript(value=values, slice=ast.Slice() as cut):
                return self._list(values, depth)[self._slice(cut, depth)]
            case ast.Subscript(value=values, slice=index):
                return self._list(values, depth)[_whole(self._value(index, depth))]
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return _bounded(_FUNCTIONS[name](*[self._value(each, depth) for each in arguments]))
            case ast.ListComp(elt=item, generators=[ast.comprehension(target=ast.Name(id=name)) as loop]):
                return self._comprehension(item, name, loop, depth)
        raise ProgramError(f"The program uses {_described(node)}, which this small Python does not have.")

    def _comprehension(self, item: ast.expr, name: str, loop: ast.comprehension, depth: int) -> list[Any]:
        """Values of a list comprehension, whose variable is its own as in Python."""
        if loop.is_async or len(loop.ifs) > 1:
            raise ProgramError("The program uses a comprehension of a kind that this small Python does not have.")
        outside, found = dict(self.variables), []
        for each in self._list(loop.iter, depth):
            self.variables[name] = each
            if all(self._value(test, depth) for test in loop.ifs):
                found.append(_whole(self._value(item, depth)))
        self.variables = outside
        return found

    def _list(self, node: ast.expr, depth: int) -> list[Any]:
        """A copy of a list's values, so that a loop ends even where its body appends to the list."""
        values = self._value(node, depth)
        if not isinstance(values, list):
            raise ProgramError("The program takes a number for a list.")
        return list(values)

    def _slice(self, cut: ast.Slice, depth: int) -> slice:
        return slice(*[each and _whole(self._value(each, depth)) for each in (cut.lower, cut.upper, cut.step)])

    def _named(self, name: str) -> Any:
        if name not in self.variables:
            raise ProgramError(f"The program uses {name} before it has a value.")
        return self.variables[name]

    def _binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return _bounded(left + right)
        left, right = _whole(left), _whole(right)
        if isinstance(op, ast.Pow) and 0 <= right <= 3:
            return _bounded(left**right)
        if type(op) not in _BINARY:
            raise ProgramError(f"The program uses {_described(op)}, which this small Python does not have.")
        return _bounded(_BINARY[type(op)](left, right))

    def _count(self, depth: int) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS or depth > _MAX_DEPTH:
            raise ProgramError("The program takes too many steps.")


def _parse(source: str) -> ast.FunctionDef:
    if len(source) > MAX_CHARACTERS:
        raise ProgramError("The program is too long.")
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd but valid Python
            statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ProgramError(f"The program is no Python: {getattr(error, 'msg', None) or error}.") from None
    if len(statements) != 1 or not isinstance(statements[0], ast.FunctionDef):
        raise ProgramError("The program should be a single function.")
    return statements[0]


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ProgramError("The program takes a list for a number.")
    return value


def _bounded(value: Any) -> Any:
    """The value, if it is a whole number or a list of a size that a run may hold."""
    if isinstance(value, list):
        if len(value) > MAX_LIST:
            raise ProgramError("The program makes a list that is too long.")
    elif not isinstance(value, int) or abs(value) > MAX_NUMBER:
        raise ProgramError("The program makes a number that is too large.")
    return value


def _described(node: ast.AST) -> str:
    """Name of a piece of syntax, such as 'while' or 'import'."""
    return "'" + type(node).__name__.lower() + "'"
