"""Calls of a component's functions, and functions for its imports, whose types are read once.

wasmtime-py 50 reads the type of a function, and of each part of it, from the C library at every call: 122 times for one
acquisition and release, which is most of its time (wasmtime-py#308). Here each function keeps its types. Nothing of
wasmtime-py is changed: the classes below only replace those of the types that this package keeps.
"""

import ctypes
from collections.abc import Callable
from functools import cached_property
from typing import Any

from wasmtime import WasmtimeError
from wasmtime import _ffi as ffi
from wasmtime._slab import Slab
from wasmtime.component import Func, FuncType, LinkerInstance, ListType, OptionType, RecordType, ResultType, VariantType
from wasmtime.component._enter import catch_exceptions


def kept(type_: Any) -> Any:
    """Makes the type keep its parts once it has read them. Returns it."""
    keeping = KEEPING.get(type(type_))
    if keeping is not None:
        type_.__class__ = keeping
    return type_


class KeepingList(ListType):
    """A list type that reads the type of its elements once."""

    element = cached_property(lambda self: kept(ListType.element.fget(self)))


class KeepingRecord(RecordType):
    """A record type that reads its fields once."""

    fields = cached_property(lambda self: [(name, kept(type_)) for name, type_ in RecordType.fields.fget(self)])


def keeping_cases(base: Any) -> Any:
    """Returns a class of types that read their cases once, and whether values of these need tags."""

    class Keeping(base):
        _cases = lambda self: self.kept_cases
        _tagged = lambda self: self.is_tagged
        kept_cases = cached_property(lambda self: [(name, kept(type_)) for name, type_ in base._cases(self)])
        is_tagged = cached_property(base._tagged)

    return Keeping


KEEPING = {
    ListType: KeepingList,
    RecordType: KeepingRecord,
    **{base: keeping_cases(base) for base in (VariantType, OptionType, ResultType)},
}


class Signature:
    """The types of a function's parameters and of its result, with the members that `Func` reads."""

    def __init__(self, type_: FuncType):
        self.params = [(name, kept(parameter)) for name, parameter in type_.params]
        self.result = kept(type_.result)


class KeepingFunc(Func):
    """A function of a component that keeps its types."""

    signature: Signature

    @classmethod
    def of(cls, function: Func, store: Any) -> "KeepingFunc":
        keeping = cls._from_raw(function._func)
        keeping.signature = Signature(function.type(store))
        return keeping

    def type(self, store: Any) -> Any:
        return self.signature


class Imported:
    """A function of Python that a component imports."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.signature: Signature | None = None

    def call(self, store: Any, type_: Any, arguments: Any, count: int, results: Any) -> None:
        signature = self.signature
        if signature is None:
            # With an owner, the type is not deleted: it belongs to the caller. Its parts are copies.
            signature = self.signature = Signature(FuncType._from_ptr(type_, owner=store))
        values = [signature.params[number][1].convert_from_c(arguments[number]) for number in range(count)]
        result = self.function(store, *values)
        if signature.result is not None:
            signature.result.convert_to_c(store, result, results)


IMPORTED: Slab[Imported] = Slab()


@ffi.wasmtime_component_func_callback_t
def call_imported(number, context, type_, arguments, count, results, _):  # type: ignore[no-untyped-def]
    imported = IMPORTED.get(number or 0)
    return catch_exceptions(context, lambda store: imported.call(store, type_, arguments, count, results))


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def forget_imported(number):  # type: ignore[no-untyped-def]
    # At the end of the program the slab may have gone before the last component.
    if IMPORTED:
        IMPORTED.deallocate(number or 0)


def define_import(imports: LinkerInstance, name: str, function: Callable[..., Any]) -> None:
    """Defines a function as `imports.add_func` does."""
    text = name.encode()
    error = ffi.wasmtime_component_linker_instance_add_func(
        imports.ptr(),
        ctypes.create_string_buffer(text),
        len(text),
        call_imported,
        IMPORTED.allocate(Imported(function)),
        forget_imported,
    )
    if error:
        raise WasmtimeError._from_ptr(error)
