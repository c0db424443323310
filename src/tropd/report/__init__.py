"""One self-contained HTML page from plain data: no script, no file beside it. Whatever models wrote is escaped."""
