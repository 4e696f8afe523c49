"""The embedder behind an OpenAI-style HTTP API, and a page to search documents with."""
