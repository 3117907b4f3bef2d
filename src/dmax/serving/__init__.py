"""Serving: the engine behind an OpenAI-compatible HTTP API."""
