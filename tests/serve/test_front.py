"""How the front finds the model in a body, whatever its form."""

from __future__ import annotations

import httpx
import pytest

from serve_apps.front.body import model_in
from serve_apps.refusal import Refused


def sent(**how: object) -> str | None:
    request = httpx.Request("POST", "http://front/v1/x", **how)  # type: ignore[arg-type]
    return model_in(request.headers.get("content-type", ""), request.read())


def test_the_model_is_found_in_json_and_in_forms():
    assert sent(json={"messages": [{"model": "no"}], "model": "poët"}) == "poët"
    assert sent(data={"model": "poet", "language": "de"}) == "poet"
    audio = {"file": ("a.wav", b"RIFF\r\n--\x00\xff", "audio/wav")}
    assert sent(data={"model": "whisper", "prompt": "model"}, files=audio) == "whisper"


def test_a_body_without_a_model_names_none():
    assert [sent(json={"prompt": "x"}), sent(json=["model"]), sent(json={"model": 7}), sent()] == [None] * 4
    assert sent(files={"file": b"RIFF"}) is None


def test_a_body_that_is_no_json_is_refused():
    with pytest.raises(Refused, match="cannot be read as JSON"):
        model_in("application/json", b"{")
