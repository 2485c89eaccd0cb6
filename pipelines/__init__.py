"""Raw files to snapshots, with Apache Beam."""

import logging


def _is_news(record: logging.LogRecord) -> bool:
    """Beam warns of its Google Cloud extra on every import; nobody here can act on it."""
    return "apitools not found" not in record.getMessage()


logging.getLogger().addFilter(_is_news)
