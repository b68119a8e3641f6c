"""Training: a spec becomes a plan (pure); engine/ runs it in the train environment."""
