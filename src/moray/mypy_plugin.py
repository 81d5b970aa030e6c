"""For mypy: ``@moray.remote`` on a class. Enable it with ``plugins = ["moray.mypy_plugin"]``.

mypy ignores what the decorator of a class returns: the class stays a plain class, without ``remote`` and ``options``.
This plugin gives it both, with the types that they have on ``moray.remote(Class)``. pyright needs nothing.

``get`` of a list of different references gives list[Any].

A decorated class gets the names in its symbol table, marked in its metadata. When mypy then looks at ``Class.remote``,
the type is asked of an :class:`~moray.actor.ActorClass` with the class and its constructor's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from mypy.nodes import MDEF, MemberExpr, SymbolTableNode, Var
from mypy.plugin import AttributeContext, ClassDefContext, FunctionContext, Plugin
from mypy.types import AnyType, CallableType, Instance, Parameters, Type, TypeOfAny, get_proper_type

if TYPE_CHECKING:
    from mypy.checker import TypeChecker

_DECORATORS: Final = frozenset({"moray.remote", "moray.api.remote"})
_NAMES: Final = ("remote", "options", "bind", "__ray_actor_class__", "__ray_metadata__")
_MARK: Final = "moray"


class MorayPlugin(Plugin):
    """See the module."""

    def get_class_decorator_hook_2(self, fullname: str) -> Callable[[ClassDefContext], bool] | None:
        return _decorated if fullname in _DECORATORS else None

    def get_class_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        return _attribute if fullname.rpartition(".")[2] in _NAMES else None

    def get_function_hook(self, fullname: str) -> Callable[[FunctionContext], Type] | None:
        return _got if fullname == "moray.api.get" else None


def _got(context: FunctionContext) -> Type:
    """The type of ``get([a, b])``: mypy finds nothing in common but object, of which nobody has any use."""
    result = get_proper_type(context.default_return_type)
    if isinstance(result, Instance) and result.type.fullname == "builtins.list":
        item = get_proper_type(result.args[0])
        if isinstance(item, Instance) and item.type.fullname == "builtins.object":
            return result.copy_modified(args=[AnyType(TypeOfAny.special_form)])
    return result


def _decorated(context: ClassDefContext) -> bool:
    """Mark the class, and let it have the names."""
    info = context.cls.info
    info.metadata[_MARK] = {}
    for name in _NAMES:
        if name not in info.names:
            variable = Var(name, AnyType(TypeOfAny.special_form))
            variable.info = info
            variable.is_classvar = True
            variable._fullname = f"{info.fullname}.{name}"
            info.names[name] = SymbolTableNode(MDEF, variable, plugin_generated=True)
    return True


def _attribute(context: AttributeContext) -> Type:
    """The type of ``Class.remote``."""
    kind = get_proper_type(context.type)
    if not isinstance(kind, CallableType) or not kind.is_type_obj():
        return context.default_attr_type
    info = kind.type_object()
    if _MARK not in info.metadata:
        return context.default_attr_type
    assert isinstance(context.context, MemberExpr)
    checker = cast("TypeChecker", context.api)
    parameters = Parameters(kind.arg_types, kind.arg_kinds, kind.arg_names, is_ellipsis_args=kind.is_ellipsis_args)
    actor_class = checker.named_generic_type("moray.actor.ActorClass", [kind.ret_type, parameters])
    return checker.expr_checker.analyze_external_member_access(context.context.name, actor_class, context.context)


def plugin(_version: str) -> type[Plugin]:
    """What mypy asks a plugin's module for."""
    return MorayPlugin
