"""report.html: how a run went, or how several runs compare, as one file that a browser opens from disk."""
