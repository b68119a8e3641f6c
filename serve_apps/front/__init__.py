"""The front: one small app at ``/`` that knows every app; asked where HAProxy does not know the way."""
