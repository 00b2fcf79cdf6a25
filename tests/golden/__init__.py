"""Numbers of the authors' own code against ours: one module a system, named as the file with its numbers."""
