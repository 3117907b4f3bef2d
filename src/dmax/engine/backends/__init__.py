"""How passes are computed: one interface, and an implementation of it for every kind of device."""

from dmax.engine.backends.base import Backend, Decided, PassInput
from dmax.engine.backends.choice import backend_name, choose_backend

__all__ = ["Backend", "Decided", "PassInput", "backend_name", "choose_backend"]
