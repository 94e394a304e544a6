"""The report: tables, figures and samples of a table on one self-contained page."""
