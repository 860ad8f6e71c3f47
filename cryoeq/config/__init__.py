"""Settings: frozen pydantic models, seen by cli and pipelines only."""
