"""``python -m benchmarks.sizes``: what a smaller store finds: bytes a video against R@1, for every way to keep tokens.

run.py      settings, the stores that differ in nothing else, and what each finds
report.py   results -> table, JSON and picture
"""
