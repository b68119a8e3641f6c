"""What a caller of the front may see: the apps that are open, and those that its key opens."""

from __future__ import annotations

from collections.abc import Iterable

from serve_apps.front.known import KnownApp
from serve_apps.keyring import Keyring
from serve_apps.refusal import Refused
from storage.keys import KeyRecord, keys_in
from storage.store import open_store

Headers = Iterable[tuple[bytes, bytes]]


class FrontKeys:
    """The key folders of all apps, each read once."""

    def __init__(self) -> None:
        self._rings: dict[tuple[str | None, str | None], Keyring] = {}

    async def visible(self, apps: Iterable[KnownApp], headers: Headers) -> dict[str, list[str]]:
        """Names of models that this caller may use, by app.

        Raises:
            Refused: 401: it has no key that is known, and no app is open.
        """
        given, refused = list(headers), None
        found: dict[str, list[str]] = {}
        for app in apps:
            try:
                key = None if app.spec.auth == "none" else await self._key(app, given)
            except Refused as error:
                refused = error
                continue
            found[app.spec.name] = [name for name in app.names() if key is None or key.allows_model(name)]
        if refused and not found:
            raise refused
        return found

    async def _key(self, app: KnownApp, headers: list[tuple[bytes, bytes]]) -> KeyRecord:
        place = (app.spec.store, app.spec.keys)
        if place not in self._rings:
            # Kept before it has looked: who comes meanwhile waits for the same look.
            ring = self._rings[place] = Keyring(keys_in(open_store(app.spec.store).root, app.spec.keys))
            try:
                await ring.start()
            except BaseException:
                del self._rings[place]  # it would never look again
                raise
        return await self._rings[place].key_of(headers)
