"""The Serve deployment around one vLLM engine. Imports without vLLM: the engine is loaded in the replica."""

from typing import Any

from ray import serve


class _Replica:
    """One vLLM engine with vLLM's own FastAPI application, behind the door; every route passes through."""

    # Serve awaits the constructor, so the engine can be awaited here.
    async def __init__(self, plan: dict[str, Any]) -> None:  # type: ignore[misc]
        # Here and not above: this module is also imported where no vLLM is installed, to build the app.
        from serve_apps.engine.replica import Replica

        self._replica = await Replica.start(plan)

    def __serve_build_asgi_app__(self) -> Any:
        """The application that Serve puts behind its proxy."""
        return self._replica.app

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy may look at; Serve asks several times a look-back period."""
        return self._replica.stats()

    async def describe(self) -> dict[str, Any]:
        """What the front tells of this app."""
        return self._replica.describe()

    async def check_health(self) -> None:
        """Raise when the engine is dead; Serve then replaces the replica."""
        await self._replica.check_health()

    # Serve awaits the destructor too.
    async def __del__(self) -> None:  # type: ignore[misc]
        if hasattr(self, "_replica"):
            await self._replica.stop()


# Not as a decorator on a name of its own: Serve pickles the class by its module and name, so the name must
# be the wrapped class itself.
_Replica.__name__ = _Replica.__qualname__ = "VllmReplica"
VllmReplica = serve.ingress()(_Replica)
