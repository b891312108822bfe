"""The report: figures from committed scores, as JSON, Markdown and one HTML page.

`build.build_report` writes it. Importing the package loads none of it: posteriors
(`inference.py`) are wanted without pages.
"""
