"""Who calls what: the command line, and the order in which stages run over one store."""

__version__ = "0.1.0"
