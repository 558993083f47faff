"""The one error of this package."""


class ExportError(Exception):
    """A model can't be exported; the message names the graph and port, and what would be right."""
