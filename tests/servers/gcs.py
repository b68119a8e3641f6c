"""A small stand-in for Google Cloud Storage over HTTP, for tests. It is not Google Cloud Storage.

It speaks as much of the JSON and the XML API as Google's Python clients and Tandem use, as Google documents
it, and keeps everything in memory. It checks no signatures, keeps no old generations, knows no access rules,
and one loop does everything, one thing after the other: what passes here can still fail at Google.

Run: python -m tests.servers.gcs --port 0 [--require-token]. Prints its URL when it listens (port 0: any that
is free) and ends when its standard input is closed. A bucket named ``forbidden`` refuses everybody, those
named ``missing...`` never exist.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
from urllib.parse import unquote

from aiohttp import web

from tests.servers import gcs_json, gcs_uploads, gcs_xml
from tests.servers.gcs_json import query_of
from tests.servers.gcs_state import Conditions, Refusal, State, number
from tests.servers.gcs_transfer import read_body, send

EMAIL = "tandem-test@tandem.test"
"""The service account that ``/token`` knows."""

TOKEN = "good-token"
_READ_BYTES = 1024 * 1024
_JSON_PATHS = ("/storage/v1/", "/upload/storage/v1/", "/download/storage/v1/", "/batch/storage/v1")


class Server:
    """Answers every request; what is common to both APIs.

    Args:
        require_token: Refuse requests that do not carry the token that ``/token`` gives.
    """

    def __init__(self, *, require_token: bool) -> None:
        self._require_token = require_token
        self._state = State()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request; refusals in the words of the API that was asked."""
        path, _, query_text = request.raw_path.partition("?")
        is_json = path.startswith(_JSON_PATHS)
        query = query_of(query_text)
        try:
            if path == "/token":
                return await _token(request)
            self._check_token(request)
            return await (self._json if is_json else self._xml)(request, path, query)
        except Refusal as refusal:
            if refusal.status == 304:
                return web.Response(status=304)
            if is_json:
                return web.json_response(gcs_json.error_body(refusal), status=refusal.status)
            text = gcs_xml.error_body(refusal)
            return web.Response(status=refusal.status, text=text, content_type="application/xml")

    def _check_token(self, request: web.BaseRequest) -> None:
        if self._require_token and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "authError", "AuthenticationRequired", "Invalid Credentials")

    async def _json(self, request: web.BaseRequest, path: str, query: dict[str, str]) -> web.StreamResponse:
        before, _, rest = path.partition(gcs_json.PREFIX)
        call = gcs_json.Call(request.method, rest, query)
        if path.startswith("/batch/"):
            body = bytes(await read_body(request))
            found_type, text = gcs_json.batch(self._state, request.headers.get("Content-Type", ""), body)
            return web.Response(body=text, headers={"Content-Type": found_type})
        if before == "/upload" and len(call.segments) == 3:
            bucket = self._state.bucket(call.segments[1])
            return await gcs_uploads.upload(request, self._state, bucket, query)
        if (before == "/download" or query.get("alt") == "media") and request.method == "GET":
            return await self._download(request, call)
        body = bytes(await read_body(request))
        found = gcs_json.answer(self._state, gcs_json.Call(request.method, rest, query, body))
        return web.Response(status=204) if found is None else web.json_response(found)

    async def _download(self, request: web.BaseRequest, call: gcs_json.Call) -> web.StreamResponse:
        match call.segments:
            case ["b", bucket, "o", name]:
                generation = number(call.query.get("generation"), "generation")
                stored = self._state.bucket(bucket).live(name, generation)
                Conditions.of_query(call.query).check(stored, reading=True)
                return await send(request, stored)
        raise Refusal(404, "notFound", "NotFound", f"There is nothing to download at {call.path}")

    async def _xml(self, request: web.BaseRequest, path: str, query: dict[str, str]) -> web.StreamResponse:
        bucket, _, name = path.removeprefix("/").partition("/")
        return await gcs_xml.answer(request, self._state.bucket(unquote(bucket)), unquote(name), query)


async def _token(request: web.BaseRequest) -> web.Response:
    """OAuth's grant for a service account's signed assertion; its signature is not checked."""
    form = query_of((await read_body(request)).decode())
    try:
        claims = form["assertion"].split(".")[1]
        issuer = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iss"]
    except (KeyError, IndexError, ValueError):
        issuer = None
    if issuer == EMAIL:
        return web.json_response({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
    error = {"error": "invalid_grant", "error_description": "Invalid grant: account not found"}
    return web.json_response(error, status=400)


async def serve(port: int, *, require_token: bool) -> None:
    """Serves on 127.0.0.1 until standard input is closed, which ends it together with whoever started it."""
    # An object sent with Content-Encoding is kept as it came.
    server = web.Server(
        Server(require_token=require_token).handle,
        access_log=None,
        read_bufsize=_READ_BYTES,
        auto_decompress=False,
    )
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A stand-in for Google Cloud Storage, for tests.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: any that is free")
    parser.add_argument("--require-token", action="store_true", help="refuse requests without the token")
    given = parser.parse_args()
    asyncio.run(serve(given.port, require_token=given.require_token))


if __name__ == "__main__":
    main()
