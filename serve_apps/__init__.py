"""Serving: a spec becomes a plan (pure); engine/ runs it in the serve environment."""
