"""Structured logs: one JSON object a line on stderr, with time, level and event first."""

import datetime
import json
import logging
import sys

log = logging.getLogger("gkd.serving")

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """A record as a JSON object: what was given as `extra` becomes its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        fields = {name: value for name, value in vars(record).items() if name not in _OWN}
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def start_logging() -> None:
    """Send our own records, and the errors of the HTTP server, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, threshold in (("gkd.serving", "INFO"), ("uvicorn", "ERROR")):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(threshold)
        logger.propagate = False
