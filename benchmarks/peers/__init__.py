"""The tools that people would use in place of tbpipe, on the same clips, weights, frames and machine.

``python -m benchmarks.peers [NAME...]`` installs each into a virtual environment of its own, looks first whether its
output is the same, and then counts CPU seconds, of the processes that it starts as well.

    plan.py          which peers there are, and what each needs
    environment.py   their virtual environments
    processes.py     CPU seconds of a command and of all it starts
    job.py           what a program is told to do and what it found: files that both sides read
    clips.py         the clips
    extraction.py    videos -> frame embeddings
    searching.py     vectors, queries -> nearest neighbours
    reranking.py     candidates' tokens, words of a query -> scores
    results.py       finished measurements, a line each
    report.py        the tables
    programs/        what runs in the environments; imports nothing of tbpipe, but for those that begin with tbpipe
"""
